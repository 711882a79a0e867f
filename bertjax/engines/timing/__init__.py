"""Engines measured: their speed, the cost of a batch, and the layout of work that follows."""
