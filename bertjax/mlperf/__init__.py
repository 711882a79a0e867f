"""Serving a model directory under MLPerf LoadGen. No JAX here, except in the JAX backend."""
