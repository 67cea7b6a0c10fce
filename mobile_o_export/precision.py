"""Precisions by name; the same name means the same thing on every backend that supports it."""

from __future__ import annotations

from enum import StrEnum


class Precision(StrEnum):
    """What weights are stored as and what the arithmetic runs in.

    ``fp32``: both in fp32. ``fp16``: both in fp16. ``w16``: weights stored as fp16, arithmetic in fp32,
    which loses nothing on a checkpoint published in fp16.
    """

    FP32 = "fp32"
    FP16 = "fp16"
    W16 = "w16"

    @property
    def weight_bits(self) -> int:
        """Bits a stored weight takes."""
        return 32 if self is Precision.FP32 else 16
