"""The object that travels: a model directory in Hugging Face's form. NumPy only, no JAX."""
