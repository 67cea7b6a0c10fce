"""What a component is: functions with contracts, the graphs that realise them, the module to lower.

A *function* is what a caller sees, with unpadded tensors: ``project(hidden_states) → conditioning``. A
*graph* is what a file holds: one function at one bucket length, or at dynamic lengths, with the masks,
lengths and caches that it needs to keep the function's promise. ``session.Session`` turns calls of the
first into calls of the second by roles and layout letters alone, so that no backend knows a component.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Protocol

from mobile_o_export.tensors import DType, TensorSpec

if TYPE_CHECKING:
    import torch
    from torch import nn

    from mobile_o_export.checkpoint import Checkpoint


class CacheStyle(StrEnum):
    """How the LLM's keys and values travel between calls."""

    STATE = "state"
    """State tensors inside the program, updated in place (Core ML)."""
    FIXED = "fixed"
    """Inputs and outputs of fixed capacity (LiteRT)."""
    GROWING = "growing"
    """``past_key_values`` in, longer ``present`` out (Hugging Face's ONNX convention)."""


class Continuity(StrEnum):
    """What a call does to the sequence that a runner keeps."""

    STATELESS = "stateless"
    STARTS = "starts"
    CONTINUES = "continues"


@dataclass(frozen=True)
class FunctionSpec:
    """The contract of one function, in unpadded shapes; letters are sizes that vary by call."""

    name: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    continuity: Continuity = Continuity.STATELESS


@dataclass(frozen=True)
class Extent:
    """The lengths that a dynamic axis may take; ``typical`` is what an optimiser should tune for."""

    minimum: int
    typical: int
    maximum: int


@dataclass(frozen=True)
class Profile:
    """One function of a dynamic graph, with the extent of each letter while it runs."""

    function: str
    extents: Mapping[str, Extent]


@dataclass(frozen=True)
class GraphSpec:
    """One lowered graph: what it realises, its exact inputs, outputs and states.

    ``feeds`` maps an output to the input that the next call takes it back as. ``profiles`` is empty
    for a static graph.

    Where others fixed what a file looks like, ``aliases`` maps its tensors' names to those of the function's
    contract; ``then`` names the graph that takes this one's outputs further, for a function in two files;
    and ``zeros_are_padding`` says that no mask goes in: positions that are zero throughout count as padding,
    unless every one is, when all count as real.
    """

    name: str
    functions: tuple[str, ...]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    states: tuple[TensorSpec, ...] = ()
    feeds: Mapping[str, str] = field(default_factory=dict)
    profiles: tuple[Profile, ...] = ()
    aliases: Mapping[str, str] = field(default_factory=dict)
    then: str = ""
    zeros_are_padding: bool = False


@dataclass(frozen=True)
class GraphOptions:
    """What a target decides about graphs, in no vendor's words.

    Attributes:
        lengths: bucket lengths of sequence functions, ascending; empty for dynamic axes.
        max_length: the longest sequence a dynamic graph must take (the last bucket otherwise).
        context: capacity of the KV cache, positions.
        cache: how the cache travels.
        token_dtype: element type of token ids and positions.
        compute_dtype: element type that the module is cast to before it is traced.
        elementary: apply the exact rewrites that keep to floats in tensors of four axes, without gathers.
        half_safe: apply the exact rewrites that keep fp16 in range where nothing can stay in fp32.
        head_chunk: the widest piece of the vocabulary head, or None for one piece.
    """

    lengths: tuple[int, ...]
    max_length: int
    context: int
    cache: CacheStyle
    token_dtype: DType
    compute_dtype: DType = DType.FLOAT32
    elementary: bool = False
    half_safe: bool = False
    head_chunk: int | None = None

    @property
    def dynamic(self) -> bool:
        """Whether sequence axes are dynamic rather than buckets."""
        return not self.lengths


class Component(Protocol):
    """One subgraph of Mobile-O."""

    name: str

    @property
    def widens(self) -> bool:
        """Whether rewriting computes with weights, and makes them fp32."""
        ...

    def functions(self, checkpoint: Checkpoint) -> tuple[FunctionSpec, ...]:
        """The contracts, from sizes alone; no weights are read."""
        ...

    def graphs(self, checkpoint: Checkpoint, options: GraphOptions) -> tuple[GraphSpec, ...]:
        """The graphs that realise the functions under ``options``; no weights are read."""
        ...

    def load(self, checkpoint: Checkpoint, *, stored: bool = False) -> nn.Module:
        """The component in PyTorch, in evaluation mode: in fp32, or each tensor as it is ``stored``."""
        ...

    def rewrite(self, module: nn.Module, options: GraphOptions) -> nn.Module:
        """``module`` with the rewrites of ``options``; may share or change its weights.

        What is computed from weights is fp32, whatever they are.
        """
        ...

    def graph(self, module: nn.Module, spec: GraphSpec, options: GraphOptions) -> nn.Module:
        """The module of one graph around a prepared ``module``.

        It takes the inputs of ``spec`` in order and gives its outputs in order, a bare tensor where
        there is one; its buffers named in ``spec.states`` are mutated.
        """
        ...

    def reference(self, module: nn.Module, checkpoint: Checkpoint) -> ReferenceCalls:
        """The functions as PyTorch computes them, unpadded; the truth that goldens record."""
        ...


class ReferenceCalls(Protocol):
    """A component's functions over one PyTorch module; keeps the sequence between calls."""

    def call(self, function: str, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Outputs of ``function`` by name."""
        ...
