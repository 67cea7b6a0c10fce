"""Weights that stay outside of a conversion: a module is traced and converted with numbers that name them.

A placeholder is as large as its weight and as small as one row in memory: its first row is a number of its
own, all others are ``REST``. So a constant of a converted graph says which weight belongs there, and in which
order of its axes. A conversion that computes with weights makes a constant of other numbers, which names
none: a graph whose placeholders are not all found again is refused.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from mobile_o_export.compression.compress import weights_of
from mobile_o_export.compression.half import stored_array
from mobile_o_export.compression.placed import Placed, arrange
from mobile_o_export.errors import ExportError

if TYPE_CHECKING:
    from torch import nn

    from mobile_o_export.compression.compress import Compressed
    from mobile_o_export.parity.metrics import Array

REST = np.float16(1.5)
NAMES = np.arange(0x0400, 0x7C00, dtype=np.uint16).view(np.float16)
"""What first rows are: each normal number of fp16 but ``REST``, so that a cast keeps them."""

LEAST_SIZE = 1 << 14
"""Elements of a floating-point weight that has a placeholder; compressed ones all have."""


@dataclass(frozen=True)
class Kept:
    """A weight that stays floating point, as a constant of a graph.

    Attributes:
        name: of the parameter.
        source: its numbers, in its own axes.
        axes: these in the order that the constant has them; axes of length 1 aside.
        shape: of the constant.
    """

    name: str
    source: Array
    axes: tuple[int, ...]
    shape: tuple[int, ...]

    def numbers(self, dtype: type[np.floating]) -> Array:
        """The constant."""
        return arrange(self.source, self.source.shape, self.axes, self.shape).astype(dtype)


class Placeholders:
    """The weights of one module whose places placeholders keep.

    Args:
        module: ready to be traced. Its compressed weights, and large ones that are not, are replaced.
        compressed: weights of it, by name.
        dtype: of the placeholders.
    """

    def __init__(
        self, module: nn.Module, compressed: Mapping[str, Compressed], dtype: torch.dtype = torch.float32
    ) -> None:
        self.compressed = compressed
        self._kept: dict[str, Array] = {}
        self._named: dict[float, str] = {}
        self._rows: dict[int, tuple[str, torch.Tensor]] = {}
        names = iter(NAMES[NAMES != REST].tolist())
        for name, parameter in weights_of(module):
            if name not in compressed:
                # A converter has to see what fp16 cannot hold.
                if parameter.numel() < LEAST_SIZE or not _fits_half(parameter):
                    continue
                self._kept[name] = stored_array(parameter)
            marker = next(names)
            self._named[marker] = name
            parameter.data = _placeholder(marker, tuple(parameter.shape), dtype)
            # Kept with its row, so that no other tensor comes to lie there.
            self._rows[parameter.data_ptr()] = name, parameter.data

    @property
    def names(self) -> tuple[str, ...]:
        """The parameters that are placeholders."""
        return tuple(self._named.values())

    def shape_of(self, name: str) -> tuple[int, ...]:
        """The shape of the parameter ``name``."""
        compressed = self.compressed.get(name)
        return self._kept[name].shape if compressed is None else compressed.form.shape

    def name_of(self, tensor: torch.Tensor) -> str | None:
        """The weight that ``tensor`` stands for, if it is a placeholder."""
        return self._rows.get(tensor.data_ptr(), (None,))[0]

    def among(self, tensors: Iterable[torch.Tensor]) -> set[str]:
        """The weights that placeholders among ``tensors`` stand for."""
        return {name for tensor in tensors if (name := self.name_of(tensor)) is not None}

    def find(self, constant: Array) -> Placed | Kept | None:
        """The weight that a floating-point ``constant`` keeps the place of, if it is a placeholder."""
        if not constant.size:
            return None
        first = constant[(0,) * constant.ndim]
        name = self._named.get(float(first))
        if name is None:
            return None
        axes = _order(constant, first, self.shape_of(name))
        return None if axes is None else self.at(name, axes, constant.shape)

    def at(self, name: str, axes: tuple[int, ...], shape: tuple[int, ...]) -> Placed | Kept:
        """The weight ``name`` as a constant of ``shape``, its axes that are longer than 1 in that order."""
        compressed = self.compressed.get(name)
        if compressed is None:
            return Kept(name, self._kept[name], axes, shape)
        return Placed(compressed, axes, shape)

    def require(self, found: Iterable[str], used: Iterable[torch.Tensor], where: str) -> None:
        """Raises ExportError where a placeholder among ``used`` stands for none of the weights ``found``."""
        if missing := sorted(self.among(used) - set(found)):
            raise ExportError(
                f"{where}: {len(missing)} weights are not in the converted graph as they are in the module, "
                f"the first {missing[0]}. Report this."
            )

    def require_all(self, found: Iterable[str], component: str) -> None:
        """Raises ExportError where a compressed weight is not among those ``found`` in any graph."""
        if missing := sorted(self.compressed.keys() - set(found)):
            raise ExportError(
                f"{component}: {len(missing)} compressed weights are not in the converted graphs, the first "
                f"{missing[0]}. Report this; until then leave them floating point by a rule."
            )


def _fits_half(parameter: torch.Tensor) -> bool:
    """Whether each number is finite as fp16; without temporaries, which a NaN comes through as well."""
    low, high = torch.aminmax(parameter.detach())
    largest = torch.finfo(torch.float16).max
    return bool(low >= -largest) and bool(high <= largest)


def _placeholder(marker: float, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """The first row along its first axis of several numbers is ``marker``, the others are ``REST``."""
    axis = next(axis for axis, size in enumerate(shape) if size > 1)
    row = torch.full((shape[axis],), float(REST), dtype=dtype)
    row[0] = marker
    assert float(row[0]) == marker, f"{dtype} has no {marker}"
    return row.reshape([-1 if at == axis else 1 for at in range(len(shape))]).expand(shape)


def _order(constant: Array, first: np.floating, shape: tuple[int, ...]) -> tuple[int, ...] | None:
    """The axes of a weight of ``shape`` in the order that its placeholder ``constant`` has them."""
    dense = [size for size in shape if size > 1]
    squeezed = constant.reshape([size for size in constant.shape if size > 1])
    for axes in (tuple(range(len(dense))), tuple(reversed(range(len(dense))))):
        if squeezed.shape != tuple(dense[axis] for axis in axes):
            continue
        rows = np.moveaxis(squeezed, axes.index(0), 0)
        if (rows[0] == first).all() and (rows[1:] == REST).all():
            return axes
    return None
