"""LiteRT: one .tflite a component, a signature a graph."""
