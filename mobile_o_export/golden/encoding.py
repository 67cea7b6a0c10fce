"""How a golden stores an array: as it is, or smaller where that loses nothing."""

from __future__ import annotations

from enum import StrEnum
from hashlib import sha256
from math import prod
from typing import Annotated, Literal, Self

import numpy as np
from pydantic import Field, model_validator

from mobile_o_export.parity.metrics import Array
from mobile_o_export.strict import Strict
from mobile_o_export.tensors import DType


class Encoding(StrEnum):
    """What the stored array is."""

    RAW = "raw"
    ZEROS = "zeros"
    """Nothing is stored: the unconditional branch's hidden states, megabytes of them at real size."""
    PIXELS = "pixels"
    """uint8, to be divided by 255 in fp32: an image as it was before preprocessing."""


MOST_VALUES = 2**28
"""Of one array: a gigabyte in fp32, six times the hidden states of a long prompt at real size."""


class Stored(Strict):
    """One array of a golden; its key is the digest of its content, so that equal arrays are stored once."""

    encoding: Encoding
    dtype: DType
    shape: tuple[Annotated[int, Field(ge=0)], ...]

    @model_validator(mode="after")
    def _can_be_read(self) -> Self:
        if prod(self.shape) > MOST_VALUES:
            raise ValueError(f"the shape {list(self.shape)} has more than {MOST_VALUES} values")
        if self.encoding is not Encoding.RAW and self.dtype is not DType.FLOAT32:
            raise ValueError(f"{self.encoding} stand for float32, not for {self.dtype}")
        return self

    @property
    def kept_as(self) -> DType | Literal["uint8"]:
        """The element type of the stored array, which for pixels is not that of the array itself."""
        return "uint8" if self.encoding is Encoding.PIXELS else self.dtype


def key_of(value: Array) -> str:
    """The key of an array: a digest of dtype, shape and bytes."""
    return sha256(f"{value.dtype}{value.shape}".encode() + value.tobytes()).hexdigest()[:16]


def encode(value: Array) -> tuple[Stored, Array | None]:
    """How ``value`` is stored, and the array to store, if any; :func:`decode` gives the same bits back."""

    def stored(encoding: Encoding) -> Stored:
        return Stored(encoding=encoding, dtype=DType(str(value.dtype)), shape=value.shape)

    # A negative number is no pixel, and -0.0 is no zero.
    if value.dtype == np.float32 and value.size and not np.signbit(value).any():
        if not value.any():
            return stored(Encoding.ZEROS), None
        if value.max() <= 1:
            pixels = np.rint(value * 255).astype(np.uint8)
            if np.array_equal(_from_pixels(pixels), value):
                return stored(Encoding.PIXELS), pixels
    return stored(Encoding.RAW), value


def decode(stored: Stored, array: Array | None) -> Array:
    """The array that :func:`encode` was given."""
    match stored.encoding:
        case Encoding.ZEROS:
            return np.zeros(stored.shape, np.dtype(str(stored.dtype)))
        case Encoding.PIXELS:
            assert array is not None
            return _from_pixels(array)
        case Encoding.RAW:
            assert array is not None
            return array


def _from_pixels(pixels: Array) -> Array:
    return pixels.astype(np.float32) / np.float32(255.0)
