"""Core ML packages: lowered with coremltools, run by Core ML on macOS and by our interpreter anywhere."""
