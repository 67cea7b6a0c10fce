"""Symmetric integers: a scale for each output channel, or for each block of weights along an axis."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from mobile_o_export.compression.half import chunks, within_half

if TYPE_CHECKING:
    from mobile_o_export.parity.metrics import Array

LEAST_SCALE = np.float16(2.0**-20)
"""Sixteen of fp16's smallest steps: rounding a scale up to the next costs a sixteenth at the most."""

CANDIDATES = np.linspace(1.0, 0.7, 31)
"""Parts of a group's largest magnitude that its integers are tried to span; the rest is clipped."""


@dataclass(frozen=True)
class Integers:
    """Weights of G groups as integers times a scale a group; zero is zero.

    Attributes:
        values: int8 [G, N], within ±(2**(bits - 1) - 1).
        scales: float16 [G], positive.
    """

    values: Array
    scales: Array

    def restored(self, dtype: type[np.floating] = np.float16) -> Array:
        """The weights that the integers stand for, [G, N], as a runtime computes them in ``dtype``."""
        product: Array = np.multiply(self.values, self.scales[:, None].astype(dtype), dtype=dtype)
        return product

    def rows(self, part: slice) -> Integers:
        """Some of the groups."""
        return Integers(self.values[part], self.scales[part])


def quantize(groups: Array, bits: int, *, clip: bool = False) -> Integers:
    """The nearest integers.

    Args:
        groups: floating point [G, N], a row for each scale.
        bits: 2 to 8 of an integer; the most negative one is not used, as int8 Q/DQ of TensorRT wants it.
        clip: choose each scale among a few for the least squared error, not the one that clips nothing.

    Raises:
        ExportError: a weight is not finite, or beyond fp16's range.
    """
    if not 2 <= bits <= 8:
        raise ValueError(f"integers of weights have 2 to 8 bits, not {bits}")
    values, scales = np.empty(groups.shape, np.int8), np.empty(len(groups), np.float16)
    most = 2 ** (bits - 1) - 1
    for part in chunks(*groups.shape):
        wide = within_half(groups[part], "quantized")
        found = _fitted(wide, most, clip=clip)
        values[part], scales[part] = _steps(wide, found, most), found
    return Integers(values, scales)


def _fitted(wide: Array, most: int, *, clip: bool) -> Array:
    """Scales, float32 [G], of ``wide`` [G, N] over integers up to ``most``."""
    largest = np.abs(wide).max(axis=1, initial=0)
    scales = _scales(largest / most)
    if clip:
        least = np.full(len(wide), np.inf)
        best = scales
        for part in CANDIDATES:
            tried = _scales(part * largest / most)
            error = np.square(_steps(wide, tried, most) * tried[:, None] - wide).sum(axis=1)
            best = np.where(error < least, tried, best)
            least = np.minimum(error, least)
        scales = best
    return scales


def _scales(wanted: Array) -> Array:
    """float32 [G] of fp16 numbers, no smaller than ``wanted``, lest the largest weight is clipped.

    A group of zeros has scale 1: runtimes refuse zero, and would divide by what fp16 rounds to it.
    """
    half = wanted.astype(np.float16)
    half = np.where(half < wanted, np.nextafter(half, np.float16(np.inf)), half)
    half = np.maximum(half, LEAST_SCALE)
    return np.where(wanted > 0, half, 1).astype(np.float32)


def _steps(wide: Array, scales: Array, most: int) -> Array:
    return np.clip(np.rint(wide / scales[:, None]), -most, most)
