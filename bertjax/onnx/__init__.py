"""From a model directory to an ONNX file with explicit Q/DQ. No JAX, no PyTorch; TensorFlow in `twin` alone."""
