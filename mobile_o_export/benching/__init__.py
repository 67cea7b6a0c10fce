"""Latency, peak memory and size of a bundle's functions on this host, next to PyTorch eager."""
