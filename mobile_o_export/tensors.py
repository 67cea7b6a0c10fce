"""What every input, output and state says of itself, and the one legend of shape letters.

Shape letters, used in every docstring of the package:

    B  batch, always 1            S  sequence length, tokens of this call
    D  width of the LLM           P  positions already in the KV cache
    V  vocabulary size            M  positions in all, P + S
    K  hidden states for the MCP  T  capacity of the KV cache, positions
    L  layers of the LLM          H  key/value heads      E  width of one head
    N  image tokens               R  input resolution of the vision encoder, pixels
    C  latent channels            Y, X  latent height and width
    O  side of the decoded image, pixels
    F  width of the conditioning (the DiT's caption channels)
    W  width of the vision tower, before its projector
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from math import prod

MOST_POSITIONS = 2**24
"""Of an axis: no file has a longer one."""

MOST_VALUES = 2**31
"""Of a tensor that crosses a boundary, axes of any size counted as 1."""

Dim = int | str
"""A size, or the letter of a size that a target fixes (a bucket) or leaves dynamic."""


class DType(StrEnum):
    """Element types that cross a function's boundary."""

    FLOAT32 = "float32"
    FLOAT16 = "float16"
    INT32 = "int32"
    INT64 = "int64"


class Role(StrEnum):
    """What a tensor means: who makes it, and what a gate asks of it beyond distance."""

    IMAGE = "image"
    TOKENS = "tokens"
    FEATURES = "features"
    LOGITS = "logits"
    HIDDEN_STATES = "hidden_states"
    CONDITIONING = "conditioning"
    LATENT = "latent"
    TIMESTEP = "timestep"
    MASK = "mask"
    """1 where a position is real, 0 where it is padding; made by the session."""
    LENGTH = "length"
    """How many positions are real; made by the session."""
    POSITION = "position"
    """Index in the sequence of each position of this call; made by the session."""
    CACHE = "cache"


@dataclass(frozen=True)
class TensorSpec:
    """Name, shape, dtype, layout, role and range of one tensor.

    ``layout`` names each axis with a letter of the legend above (``"B K S D"``). ``range`` is the
    closed interval that well-formed values lie in, or ``None`` where nothing bounds them.
    """

    name: str
    shape: tuple[Dim, ...]
    dtype: DType
    layout: str
    role: Role
    range: tuple[float, float] | None = None
    description: str = ""

    def __post_init__(self) -> None:
        if len(self.layout.split()) != len(self.shape):
            raise ValueError(f"{self.name}: layout {self.layout!r} does not name each axis of {self.shape}")
        sizes = [dim for dim in self.shape if isinstance(dim, int)]
        if any(not 1 <= size <= MOST_POSITIONS for size in sizes) or prod(sizes) > MOST_VALUES:
            raise ValueError(f"{self.name}: the shape {list(self.shape)} is not that of a tensor")

    @property
    def symbols(self) -> tuple[str, ...]:
        """The letters of ``shape`` that are not fixed yet, in order of first appearance."""
        return tuple(dict.fromkeys(dim for dim in self.shape if isinstance(dim, str)))

    def bind(self, sizes: Mapping[str, int]) -> TensorSpec:
        """The same spec with every letter that ``sizes`` knows replaced by its size."""
        return replace(self, shape=tuple(sizes.get(d, d) if isinstance(d, str) else d for d in self.shape))
