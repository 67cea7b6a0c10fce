"""What can be compressed: palettes and scales are fp16, and so has to be every weight that they stand for."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from ml_dtypes import bfloat16

from mobile_o_export.errors import ExportError

if TYPE_CHECKING:
    from mobile_o_export.parity.metrics import Array


def within_half(weights: Array, done: str) -> Array:
    """``weights`` as contiguous float32, of which each is finite as fp16; ``done`` says what was to be done.

    Raises:
        ExportError: a weight is not finite, or beyond fp16's range.
    """
    wide = np.ascontiguousarray(weights, np.float32)
    # Beyond its range fp16 is infinite, and NaN compares with nothing.
    if not np.abs(wide).max(initial=0) <= np.finfo(np.float16).max:
        raise ExportError(f"a weight is NaN, infinite or beyond fp16's range: it cannot be {done}.")
    return wide


def narrowed(weight: Array) -> Array:
    """A float32 ``weight`` as fp16 or bf16 where that is all of it, to be kept in half of the memory."""
    for dtype in (np.dtype(np.float16), np.dtype(bfloat16)):
        with np.errstate(over="ignore"):
            narrow = weight.astype(dtype)
        if np.array_equal(narrow, weight):
            return narrow
    return weight
