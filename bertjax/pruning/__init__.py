"""Structured pruning: importance, the search under a MACs target, and physical surgery."""
