"""Goldens: recorded inputs and outputs of every function, taken from the PyTorch pipeline at work."""

from mobile_o_export.golden.store import (
    GOLDEN_FILES,
    AnswerChain,
    Case,
    DrawingChain,
    Golden,
    GoldenIndex,
    Step,
)

__all__ = ["GOLDEN_FILES", "AnswerChain", "Case", "DrawingChain", "Golden", "GoldenIndex", "Step"]
