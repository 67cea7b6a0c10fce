"""Mobile-O checkpoints to verified on-device bundles: Core ML, LiteRT and ONNX from one golden."""

__version__ = "0.1.0"
