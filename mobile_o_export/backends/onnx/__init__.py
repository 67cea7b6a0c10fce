"""ONNX: for TensorRT on Jetson, and for ONNX Runtime, which runs both here."""
