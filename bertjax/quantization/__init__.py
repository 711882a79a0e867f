"""INT8: which ranges the activations have, and the scales that follow."""
