"""What can be compressed: palettes and scales are fp16, and so has to be every weight that they stand for."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
from ml_dtypes import bfloat16

from mobile_o_export.errors import ExportError

if TYPE_CHECKING:
    import torch

    from mobile_o_export.parity.metrics import Array


CHUNK = 1 << 22
"""Weights that are compressed at once, which bounds the memory."""


def chunks(count: int, length: int, most: int = CHUNK) -> Iterator[slice]:
    """Slices of ``count`` rows of ``length`` weights, each of about ``CHUNK`` and at most ``most`` rows."""
    step = max(1, min(most, CHUNK // max(1, length)))
    return (slice(start, start + step) for start in range(0, count, step))


def fits_half(weights: Array) -> bool:
    """Whether each of ``weights`` is finite as fp16."""
    # Beyond its range fp16 is infinite, and NaN compares with nothing.
    return bool(np.abs(weights).max(initial=0) <= np.finfo(np.float16).max)


def within_half(weights: Array, done: str) -> Array:
    """``weights`` as contiguous float32, of which each is finite as fp16; ``done`` says what was to be done.

    Raises:
        ExportError: a weight is not finite, or beyond fp16's range.
    """
    wide = np.ascontiguousarray(weights, np.float32)
    if not fits_half(wide):
        raise ExportError(f"a weight is NaN, infinite or beyond fp16's range: it cannot be {done}.")
    return wide


def stored_array(parameter: torch.Tensor) -> Array:
    """The numbers of a ``parameter`` in no more bits than they have: its own memory, if that is of 16."""
    import torch

    own = parameter.detach()
    if own.dtype == torch.bfloat16:
        bits: Array = own.view(torch.uint16).numpy()
        return bits.view(bfloat16)
    return own.numpy() if own.dtype == torch.float16 else narrowed(own.float().numpy())


def narrowed(weights: Array) -> Array:
    """``weights``, float32 or of 16 bits, as bf16 or fp16 where that is all of them, else as they are."""
    import torch

    if weights.dtype.itemsize == 2:
        return weights
    wide = np.ascontiguousarray(weights)
    halves = wide.reshape(-1).view(np.uint16)
    if not halves[::2].any():  # the lower halves, of little-endian numbers
        narrow: Array = np.ascontiguousarray(halves[1::2]).view(bfloat16)
        return narrow.reshape(wide.shape)
    whole = torch.from_numpy(wide)
    half = whole.half()  # NumPy takes three times as long
    return half.numpy() if torch.equal(half.float(), whole) else weights
