"""From an ONNX file to a TensorRT engine, with an account of what the builder made of it."""
