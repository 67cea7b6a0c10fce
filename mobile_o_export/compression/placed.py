"""Weights as constants of converted graphs: in what order of axes they lie there.

A conversion may reshape or transpose a weight; its integers or indices are then given in the axes that it has
there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from mobile_o_export.compression.affine import Affines
from mobile_o_export.compression.palettes import Palettes

if TYPE_CHECKING:
    from mobile_o_export.compression.compress import Compressed
    from mobile_o_export.compression.integers import Integers
    from mobile_o_export.parity.metrics import Array


@dataclass(frozen=True)
class Placed:
    """A compressed weight as a constant of a graph.

    Attributes:
        weight: what it is.
        axes: the weight's axes in the order that the constant has them; axes of length 1 aside.
        shape: of the constant.
    """

    weight: Compressed
    axes: tuple[int, ...]
    shape: tuple[int, ...]

    def numbers(self) -> Array:
        """Indices into palettes, uint8, or integers, int8, of the constant's shape."""
        data = self._symmetric
        stored = data.indices if isinstance(data, Palettes) else data.values
        return self._arranged(stored.reshape(self.weight.form.shape))

    def tables(self) -> Array:
        """The groups' palettes, float16 [groups along each axis…, K], or scales, without the last axis."""
        data = self._symmetric
        groups = self._arranged(np.arange(len(data.values)).reshape(self.weight.form.groups))
        return (data.values if isinstance(data, Palettes) else data.scales)[groups]

    def returned(self, values: Array) -> Array:
        """``values`` of the constant's shape in the weight's own axes."""
        turned = values.reshape([size for size in values.shape if size > 1])
        return turned.transpose(np.argsort(self.axes)).reshape(self.weight.form.shape)

    @property
    def _symmetric(self) -> Palettes | Integers:
        """What it is stored as; no graph holds offsets."""
        assert not isinstance(self.weight.data, Affines)
        return self.weight.data

    def _arranged(self, values: Array) -> Array:
        return arrange(values, self.weight.form.shape, self.axes, self.shape)


def arrange(values: Array, full: tuple[int, ...], axes: tuple[int, ...], shape: tuple[int, ...]) -> Array:
    """``values`` of a weight's axes in a constant's.

    Args:
        values: a number, or one of a group, for each part of the weight along each of its axes.
        full: the weight's shape.
        axes: its axes in the constant's order; those of length 1 aside.
        shape: of the constant.
    """
    kept = [size for size, whole in zip(values.shape, full, strict=True) if whole > 1]
    turned = values.reshape(kept).transpose(axes)
    sizes = iter(turned.shape)
    return turned.reshape([1 if size == 1 else next(sizes) for size in shape])
