"""From a model directory to an ONNX file with explicit Q/DQ. Pure NumPy: no JAX, no PyTorch."""
