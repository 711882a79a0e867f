"""BERT in Flax NNX, and passes over a dataset without training."""
