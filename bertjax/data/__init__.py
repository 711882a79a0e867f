"""SQuAD v1.1 in, windows and batches between, answers and scores out. No JAX here."""
