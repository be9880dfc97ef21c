"""Other formats of a model folder: GGUF and ONNX."""
