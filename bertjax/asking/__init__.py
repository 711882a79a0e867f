"""Answering a person's questions about a text, in a terminal or on a page. Nothing here imports JAX."""
