"""How a weight of some shape is stored at some precision: grouping and size."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod

from mobile_o_export.precision import Affine, Integer, Palette, Precision


@dataclass(frozen=True)
class Form:
    """How a weight of some shape is stored at some precision.

    Attributes:
        precision: with the grouping that the shape allows.
        shape: of the weight.
        groups: how many groups there are along each axis.
    """

    precision: Precision
    shape: tuple[int, ...]
    groups: tuple[int, ...]

    @staticmethod
    def exists(precision: Precision, shape: tuple[int, ...]) -> bool:
        """Whether a weight of ``shape`` can be stored at ``precision``; a block with an offset has to fit."""
        if not isinstance(precision.weights, Affine):
            return not precision.floating
        return len(shape) == 2 and shape[1] % precision.weights.block == 0

    @classmethod
    def of(cls, precision: Precision, shape: tuple[int, ...]) -> Form:
        """The form of a weight of ``shape`` [out, …].

        Where output channels or blocks do not divide evenly, palettes are of the whole tensor and scales of
        whole output channels.

        Raises:
            ValueError: there is none; ``exists`` says so beforehand.
        """
        match precision.weights:
            case Palette(bits, channels):
                if channels is not None and shape[0] % channels:
                    precision, channels = replace(precision, weights=Palette(bits)), None
                groups = [1 if channels is None else shape[0] // channels]
            case Integer(bits, block):
                if block is not None and (len(shape) != 2 or shape[1] % block):
                    precision, block = replace(precision, weights=Integer(bits)), None
                groups = [shape[0], 1 if block is None else shape[1] // block]
            case Affine(_, block):
                if not Form.exists(precision, shape):
                    raise ValueError(f"blocks of {block} do not divide the rows of a weight of {shape}")
                groups = [shape[0], shape[1] // block]
            case _:
                raise ValueError(f"{precision} compresses nothing")
        return cls(precision, shape, (*groups, *[1] * (len(shape) - len(groups))))

    @classmethod
    def saving(cls, precision: Precision, shape: tuple[int, ...]) -> Form | None:
        """The form, if there is one and it is smaller than fp16."""
        if not cls.exists(precision, shape):
            return None
        form = cls.of(precision, shape)
        return form if form.saves else None

    @property
    def size_bytes(self) -> int:
        """What indices or integers take, with palettes, or scales and offsets, in fp16."""
        entries: int = {Palette: 2**self.precision.weight_bits, Affine: 2}.get(
            type(self.precision.weights), 1
        )
        return (self.precision.weight_bits * prod(self.shape) + 7) // 8 + 2 * entries * prod(self.groups)

    @property
    def saves(self) -> bool:
        """Whether it is smaller than fp16."""
        return self.size_bytes < 2 * prod(self.shape)
