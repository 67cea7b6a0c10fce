"""Goldens: recorded inputs and outputs of every function, taken from the PyTorch pipeline at work."""

from mobile_o_export.golden.store import Case, Golden, GoldenIndex, Step

__all__ = ["Case", "Golden", "GoldenIndex", "Step"]
