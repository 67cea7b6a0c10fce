"""How values are held while a program runs: floats as fp32, integers in a type that keeps them exact."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mobile_o_export.backends.coreml.interpreter.registry import Labels
from mobile_o_export.backends.coreml.interpreter.rounding import Rounding
from mobile_o_export.backends.coreml.interpreter.tensor_type import ELEMENT_TYPES

# PyTorch has few kernels for unsigned integers wider than 8 bits, so those are held one size up.
_HELD: dict[str, torch.dtype] = {
    "bool": torch.bool,
    "float16": torch.float32,
    "float32": torch.float32,
    "float64": torch.float32,
    "int8": torch.int8,
    "int16": torch.int16,
    "int32": torch.int32,
    "int64": torch.int64,
    "int4": torch.int8,
    "uint8": torch.uint8,
    "uint16": torch.int32,
    "uint32": torch.int64,
    "uint64": torch.int64,
    "uint4": torch.uint8,
    "uint6": torch.uint8,
    "uint3": torch.uint8,
    "uint2": torch.uint8,
    "uint1": torch.uint8,
}

_PART = 1 << 18
"""Elements that are rounded at once: in fp16 they stay in a core's cache until they are read back."""

LARGE = 1 << 15
"""Elements from which on it pays to find out whether a result can be rounded in place, and to do so."""


def held_dtype(dtype: str) -> torch.dtype:
    """The torch type that holds a MIL element type."""
    return _HELD[dtype]


def from_numpy(array: NDArray[Any]) -> Tensor:
    """``array`` as held: same shape, sharing memory where the type needs no change."""
    held = _HELD[_name(array.dtype)]
    if array.dtype.kind == "u" and array.dtype.itemsize > 1:
        array = array.astype(np.int32 if held is torch.int32 else np.int64)
    if not array.flags.writeable or not array.flags.c_contiguous:
        array = array.copy()
    return torch.from_numpy(array).to(held)


def to_numpy(value: Tensor, dtype: str, rounding: Rounding) -> NDArray[Any]:
    """A copy of ``value`` in its declared element type; fp16 stays fp32 under :attr:`Rounding.FP32`."""
    array: NDArray[Any] = value.detach().contiguous().numpy()
    if dtype == "float16" and rounding is Rounding.FP32:
        return array.astype(np.float32)
    if dtype == "float16":
        # Values are fp16 already or inf; NumPy would warn about the latter.
        with np.errstate(over="ignore"):
            return array.astype(np.float16)
    return array.astype(np.dtype(ELEMENT_TYPES[dtype].numpy))


def to_python(labels: Labels) -> str | int | dict[str | int, float]:
    """A class's name or number, or the probability of each class: what Core ML hands to an app."""
    if labels.probabilities is None:
        return labels.names[0]
    return dict(zip(labels.names, labels.probabilities, strict=True))


def settle(value: Tensor, dtype: str, rounding: Rounding, *, own: bool = False) -> Tensor:
    """``value`` in the held form of its declared type, rounded to fp16 where the program says fp16.

    ``own`` says that its memory is nobody else's: then it may be written to.
    """
    held = _HELD[dtype]
    if value.dtype is not held:
        value, own = value.to(held), True  # Float to integer truncates, as MIL's ``cast`` does.
    if dtype != "float16" or rounding is not Rounding.TYPED:
        return value
    if own and value.numel() >= LARGE and value.untyped_storage().nbytes() == 4 * value.numel():
        _round_in_place(value)
        return value
    return value.to(torch.float16).to(torch.float32)


def _round_in_place(value: Tensor) -> None:
    """Rounds fp32 to fp16 a part at a time, whatever the order of its axes: no new memory is touched."""
    numbers = torch.empty(0).set_(value.untyped_storage())
    half = torch.empty(_PART, dtype=torch.float16)
    for part in torch.split(numbers, _PART):
        part.copy_(half[: part.numel()].copy_(part))


def _name(dtype: np.dtype[Any]) -> str:
    return "bool" if dtype.kind == "b" else dtype.name
