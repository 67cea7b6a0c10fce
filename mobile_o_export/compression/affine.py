"""Affine integers: from 0 up, with a scale and an offset for each block of weights, as MLX has them.

MLX anchors the integers at the end of a block that is further from zero, which keeps its value but for the
offset's rounding to fp16; then it bends the scale a little so that zero is an integer as well. Its order of
operations and their precision are part of the format's meaning here: a file holds the very integers that MLX
would have made of the weight, and restores what MLX computes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from mobile_o_export.compression.half import chunks, within_half

if TYPE_CHECKING:
    from mobile_o_export.parity.metrics import Array

SMALLEST_SCALE = np.float32(1e-7)
"""MLX's, before rounding: a block of equal weights, or of zeros, has no range to derive a scale from."""


@dataclass(frozen=True)
class Affines:
    """Weights of G groups as integers times a scale, plus an offset.

    Attributes:
        values: uint8 [G, N], from 0 to 2**bits - 1.
        scales: float16 [G], of either sign.
        offsets: float16 [G]; MLX calls them biases.
    """

    values: Array
    scales: Array
    offsets: Array

    def restored(self, dtype: type[np.floating] = np.float16) -> Array:
        """The weights, [G, N] of ``dtype``: MLX multiplies and adds in fp16, each result rounded."""
        product = self.values.astype(np.float16) * self.scales[:, None]
        weights: Array = (product + self.offsets[:, None]).astype(dtype, copy=False)
        return weights

    def rows(self, part: slice) -> Affines:
        """Some of the groups."""
        return Affines(self.values[part], self.scales[part], self.offsets[part])


def quantize(groups: Array, bits: int) -> Affines:
    """What MLX makes of weights that are fp16.

    Args:
        groups: floating point [G, N], a row for each scale and offset; rounded to fp16 first.
        bits: 4 or 8 of an integer.

    Raises:
        ExportError: a weight is not finite, or beyond fp16's range.
    """
    if bits not in (4, 8):
        raise ValueError(f"affine integers of weights have 4 or 8 bits, not {bits}")
    values = np.empty(groups.shape, np.uint8)
    scales, offsets = np.empty(len(groups), np.float16), np.empty(len(groups), np.float16)
    for part in chunks(*groups.shape):
        rows = within_half(groups[part], "quantized").astype(np.float16).astype(np.float32)
        scale, offset = _grid(rows, 2**bits - 1)
        # By the numbers before they are rounded to fp16, as MLX does.
        steps = np.rint((rows - offset[:, None]) / scale[:, None])
        values[part] = np.clip(steps, 0, 2**bits - 1).astype(np.uint8)
        scales[part], offsets[part] = scale.astype(np.float16), offset.astype(np.float16)
    return Affines(values, scales, offsets)


def _grid(rows: Array, most: int) -> tuple[Array, Array]:
    """Scales and offsets, float32 [G], of ``rows`` float32 [G, N] over integers up to ``most``."""
    lowest, highest = rows.min(axis=1), rows.max(axis=1)
    scale = np.maximum((highest - lowest) / np.float32(most), SMALLEST_SCALE)
    # The integers count from the end that is further from zero, towards zero.
    below = np.abs(lowest) > np.abs(highest)
    scale = np.where(below, scale, -scale)
    edge = np.where(below, lowest, highest)
    steps = np.rint(edge / scale)
    reached = steps != 0
    scale = np.where(reached, edge / np.where(reached, steps, np.float32(1)), scale)
    return scale, np.where(reached, edge, np.float32(0))
