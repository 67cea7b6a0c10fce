"""ONNX: for TensorRT on Jetson, run here by ONNX Runtime."""
