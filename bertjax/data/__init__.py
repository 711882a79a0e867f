"""Questions, windows, batches, masks, answers and scores, text for pre-training. Nothing here imports JAX."""
