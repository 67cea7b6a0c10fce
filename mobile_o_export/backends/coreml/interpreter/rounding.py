"""Whether results are rounded to the type that the program declares for them."""

from __future__ import annotations

from enum import StrEnum


class Rounding(StrEnum):
    """What becomes of a result that the program declares as fp16."""

    TYPED = "typed"
    """Rounded to fp16, beyond 65504 to infinity; the operation itself is computed in fp32."""
    FP32 = "fp32"
    """Left in fp32: what the program means, without the loss of its activations' type."""
