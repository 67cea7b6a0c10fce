"""Precisions by name; the same name means the same thing on every backend that supports it.

=================  ================================================================================
``fp32``           weights and arithmetic in fp32
``fp16``           weights and arithmetic in fp16
``w16``            weights stored as fp16, arithmetic in fp32: loses nothing of a checkpoint in fp16
``w6_lut``         each weight one of the 2**6 values of its tensor's palette; 1, 2, 3, 4, 6, 8 bits
``w6_lut_g16``     … of the palette that 16 output channels share
``w8``             symmetric int8, a scale for each output channel; ``w4``: int4
``w4_b32``         symmetric int4, a scale for each block of 32 weights of an output channel; ``w8_b32``: int8
``w8_dyn``         … and what they are multiplied by as int8 too, scaled at run time; ``w4_b32_dyn`` likewise
``w8a8``           … and what they are multiplied by as int8 too, scaled by calibration; ``w8a16``: as int16
``w4_affine_b64``  integers from 0, a scale and an offset for each block of 64, as MLX has them; or of 8 bits
=================  ================================================================================

Compressed weights are restored to the target's floating point, in which the arithmetic stays, except where
activations are integers as well: there products of integers are summed, and the sums scaled.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, ClassVar, Self

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic_core import CoreSchema, core_schema

PATTERN = (
    r"fp32|fp16|w16|w[123468]_lut(_g[1-9][0-9]*)?|w[48](_b[1-9][0-9]*)?(_dyn)?|w[48]_affine_b[1-9][0-9]*"
    r"|w8a8|w8a16"
)
EXAMPLES = "fp32, fp16, w16, w8, w4_b32, w4_affine_b64, w8_dyn, w8a8, w6_lut or w4_lut_g16"


@dataclass(frozen=True)
class Floats:
    """Weights in floating point.

    Attributes:
        bits: 32 or 16, of a stored weight.
        arithmetic_bits: what is computed in.
    """

    bits: int
    arithmetic_bits: int


@dataclass(frozen=True)
class Palette:
    """Weights as indices into a palette.

    Attributes:
        bits: 1, 2, 3, 4, 6 or 8 of an index.
        channels: output channels that share a palette; None for the whole tensor.
    """

    bits: int
    channels: int | None = None


@dataclass(frozen=True)
class Integer:
    """Weights as symmetric integers.

    Attributes:
        bits: 4 or 8.
        block: consecutive weights of an output channel that share a scale; None for all of them.
    """

    bits: int
    block: int | None = None


@dataclass(frozen=True)
class Affine:
    """Weights as integers from 0 with a scale and an offset.

    Attributes:
        bits: 4 or 8.
        block: consecutive weights of an output channel that share a scale and an offset.
    """

    bits: int
    block: int


class Activations(StrEnum):
    """What integer weights are multiplied by, where that is not floating point."""

    DYNAMIC = "dyn"
    INT8 = "a8"
    INT16 = "a16"


@dataclass(frozen=True)
class Precision:
    """What weights are stored as, and with ``Floats`` what the arithmetic runs in; one for each name.

    Attributes:
        weights: their kind.
        activations: as integers, or None in floating point.
    """

    weights: Floats | Palette | Integer | Affine
    activations: Activations | None = None

    FP32: ClassVar[Precision]
    FP16: ClassVar[Precision]
    W16: ClassVar[Precision]

    @classmethod
    def parse(cls, name: str) -> Self:
        """The precision called ``name``.

        Raises:
            ValueError: there is none.
        """
        if name in _FLOATS:
            return cls(_FLOATS[name])
        if found := re.fullmatch(r"w([123468])_lut(?:_g([1-9][0-9]*))?", name):
            return cls(Palette(int(found[1]), int(found[2]) if found[2] else None))
        if found := re.fullmatch(r"w([48])_affine_b([1-9][0-9]*)", name):
            return cls(Affine(int(found[1]), int(found[2])))
        if found := re.fullmatch(r"w([48])(?:_b([1-9][0-9]*))?(?:_(dyn))?|w(8)(a8|a16)", name):
            bits, block, dynamic, wide, static = found.groups()
            activations = Activations(dynamic or static) if dynamic or static else None
            return cls(Integer(int(bits or wide), int(block) if block else None), activations)
        raise ValueError(f"precision {name!r} is unknown. Use {EXAMPLES}")

    def __str__(self) -> str:
        match self.weights:
            case Floats():
                return next(name for name, floats in _FLOATS.items() if floats == self.weights)
            case Palette(bits, channels):
                return f"w{bits}_lut" + (f"_g{channels}" if channels else "")
            case Affine(bits, block):
                return f"w{bits}_affine_b{block}"
            case Integer(bits, block):
                name = f"w{bits}" + (f"_b{block}" if block else "")
                between = "_" if self.activations is Activations.DYNAMIC else ""
                return name + (between + self.activations if self.activations else "")

    @property
    def floating(self) -> bool:
        """Whether weights stay floating point numbers."""
        return isinstance(self.weights, Floats)

    @property
    def arithmetic_bits(self) -> int:
        """What is computed in; only floating precisions say."""
        assert isinstance(self.weights, Floats)
        return self.weights.arithmetic_bits

    @property
    def calibrated_bits(self) -> int | None:
        """Bits of the integers that activations become by calibration, if they do."""
        match self.activations:
            case Activations.INT8:
                return 8
            case Activations.INT16:
                return 16
        return None

    @property
    def weight_bits(self) -> int:
        """Bits that a stored weight takes, palettes and scales aside."""
        return self.weights.bits

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """A string in files."""
        del source, handler
        return core_schema.no_info_plain_validator_function(
            _parsed,
            serialization=core_schema.plain_serializer_function_ser_schema(
                str, return_schema=core_schema.str_schema()
            ),
        )

    @classmethod
    def __get_pydantic_json_schema__(
        cls, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        """What that string looks like."""
        del schema, handler
        return {"type": "string", "pattern": f"^({PATTERN})$"}


def _parsed(value: Any) -> Precision:
    if isinstance(value, Precision):
        return value
    if not isinstance(value, str):
        raise ValueError(f"a precision is a name such as {EXAMPLES}")
    return Precision.parse(value)


_FLOATS = {"fp32": Floats(32, 32), "fp16": Floats(16, 16), "w16": Floats(16, 32)}
Precision.FP32, Precision.FP16, Precision.W16 = (Precision(floats) for floats in _FLOATS.values())
