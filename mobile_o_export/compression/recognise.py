"""Compressed weights found again in a converted graph, by the numbers that they restore.

A conversion may reshape or transpose a weight, and names it as it likes. So a constant is recognised by what
it holds, compared number by number, and its integers or indices are given in the axes that it has there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from mobile_o_export.compression.affine import Affines
from mobile_o_export.compression.palettes import Palettes
from mobile_o_export.errors import ExportError
from mobile_o_export.parity.metrics import PIECE

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


class Recogniser:
    """The compressed weights of one component, to be found in its graphs."""

    def __init__(self, compressed: Mapping[str, Compressed]) -> None:
        self.compressed = compressed
        self._known: dict[tuple[int, int, int], list[Compressed]] = {}
        self._found: set[str] = set()
        for weight in compressed.values():
            self._known.setdefault(_fingerprint(weight.restored()), []).append(weight)

    def find(self, constant: Array) -> Placed | None:
        """The weight that a floating-point ``constant`` holds, if it holds one.

        Of several with the same numbers, as a table of embeddings and the head that is tied to it, all are
        found in one constant, and it is the one whose layer takes integers, if one does: where the constant
        is looked up instead of multiplied, nothing goes by that.
        """
        alike = [
            Placed(weight, axes, constant.shape)
            for weight in self._known.get(_fingerprint(constant), ())
            if (axes := _order(weight, constant)) is not None
        ]
        self._found.update(placed.weight.name for placed in alike)
        return max(alike, key=lambda placed: placed.weight.input_scale is not None, default=None)

    def require_all(self, component: str) -> None:
        """Raises ExportError where a weight was compressed and found in no graph."""
        if missing := sorted(self.compressed.keys() - self._found):
            raise ExportError(
                f"{component}: {len(missing)} compressed weights are not in the converted graphs, the first "
                f"{missing[0]}. Report this; until then leave them floating point by a rule."
            )


def _order(weight: Compressed, constant: Array) -> tuple[int, ...] | None:
    """The axes of ``weight`` in the order that ``constant`` has them, or None if it holds something else."""
    # Restored again rather than kept: that would be as much memory as the module takes.
    restored = weight.restored()
    dense = restored.reshape([size for size in restored.shape if size > 1])
    squeezed = constant.reshape([size for size in constant.shape if size > 1])
    orders = (tuple(range(dense.ndim)), tuple(reversed(range(dense.ndim))))
    return next((axes for axes in orders if np.array_equal(dense.transpose(axes), squeezed)), None)


def _fingerprint(values: Array) -> tuple[int, int, int]:
    """Equal for arrays of the same numbers, fp16 or fp32, in whatever order and shape."""
    patterns = np.ascontiguousarray(values, np.float32).reshape(-1).view(np.uint32)
    total = squares = np.uint64(0)
    with np.errstate(over="ignore"):
        for start in range(0, len(patterns), PIECE):
            wide = patterns[start : start + PIECE].astype(np.uint64)
            total, squares = total + wide.sum(), squares + (wide * wide).sum()
    return patterns.size, int(total), int(squares)
