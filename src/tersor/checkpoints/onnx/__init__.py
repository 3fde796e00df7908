"""Networks as ONNX files, quantizers and codes included."""
