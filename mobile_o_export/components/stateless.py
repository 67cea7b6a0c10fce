"""Components of one function that remembers nothing: all but the LLM."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mobile_o_export.components import building
from mobile_o_export.components.base import Extent, FunctionSpec, GraphOptions, GraphSpec, Profile
from mobile_o_export.tensors import DType, Role, TensorSpec

if TYPE_CHECKING:
    import torch
    from torch import nn

    from mobile_o_export.checkpoint import Checkpoint

TYPICAL_SEQUENCE = 64
"""What an optimiser tunes for: a text-to-image prompt of a sentence or two, template included."""


def sequence_extent(options: GraphOptions) -> Extent:
    """The lengths that a dynamic sequence axis takes."""
    return Extent(1, min(TYPICAL_SEQUENCE, options.max_length), options.max_length)


def sequence_graphs(
    function: FunctionSpec, options: GraphOptions, mask_name: str | None
) -> tuple[GraphSpec, ...]:
    """The graphs of a stateless function over one sequence axis S.

    Buckets get an input ``mask_name`` [1, S] (none where padding cannot matter); a dynamic graph runs
    at the exact length and needs none.
    """
    if options.dynamic:
        profile = Profile(function.name, {"S": sequence_extent(options)})
        return (
            GraphSpec(
                function.name, (function.name,), function.inputs, function.outputs, profiles=(profile,)
            ),
        )
    graphs = []
    for length in options.lengths:
        inputs = tuple(spec.bind({"S": length}) for spec in function.inputs)
        if mask_name is not None:
            inputs += (
                TensorSpec(
                    mask_name,
                    (1, length),
                    DType.FLOAT32,
                    "B S",
                    Role.MASK,
                    (0.0, 1.0),
                    "1 for each real position, then 0 for padding",
                ),
            )
        outputs = tuple(spec.bind({"S": length}) for spec in function.outputs)
        graphs.append(GraphSpec(f"{function.name}_{length}", (function.name,), inputs, outputs))
    return tuple(graphs)


@dataclass(frozen=True)
class StatelessComponent:
    """A component of one function whose module takes the contract's inputs and gives its one output.

    Attributes:
        name: of the component.
        contract: the function, from a checkpoint's sizes.
        loader: the module, its tensors cast to a dtype or, without one, as they are stored; where the
            function has a sequence axis it takes a mask [B, S] as one more, optional argument.
        mask_name: what that mask is called in a graph.
        fuse: exact rewrites that every lowered form of the module gets, in place, in fp32.
        elementary: … that ``GraphOptions.elementary`` asks for; parameters keep their names.
    """

    name: str
    contract: Callable[[Checkpoint], FunctionSpec]
    loader: Callable[[Checkpoint, torch.dtype | None], nn.Module]
    mask_name: str | None = None
    fuse: Callable[[nn.Module], None] | None = None
    elementary: Callable[[nn.Module], nn.Module] = lambda module: module

    @property
    def widens(self) -> bool:
        """Whether weights are fused with one another."""
        return self.fuse is not None

    def functions(self, checkpoint: Checkpoint) -> tuple[FunctionSpec, ...]:
        """The one function."""
        return (self.contract(checkpoint),)

    def graphs(self, checkpoint: Checkpoint, options: GraphOptions) -> tuple[GraphSpec, ...]:
        """One graph, or one a bucket where the function has a sequence axis."""
        function = self.contract(checkpoint)
        if any(spec.symbols for spec in function.inputs):
            return sequence_graphs(function, options, self.mask_name)
        return (GraphSpec(function.name, (function.name,), function.inputs, function.outputs),)

    def load(self, checkpoint: Checkpoint, *, stored: bool = False) -> nn.Module:
        """The module, for evaluation."""
        return self.loader(checkpoint, None if stored else building.TORCH_DTYPES[DType.FLOAT32])

    def rewrite(self, module: nn.Module, options: GraphOptions) -> nn.Module:
        """The module with the numerics of ``options``, or one that took it over; both are changed."""
        if self.fuse is not None:
            self.fuse(module)
        module = self.elementary(module) if options.elementary else module
        return building.with_half_safety(module, options)

    def graph(self, module: nn.Module, spec: GraphSpec, options: GraphOptions) -> nn.Module:
        """The module, whose arguments are the graph's inputs, the mask last."""
        if options.compute_dtype is DType.FLOAT32:
            return module
        casts = tuple(tensor.role is not Role.TIMESTEP for tensor in spec.inputs)
        return building.CastAround(module, building.TORCH_DTYPES[options.compute_dtype], casts)

    def reference(self, module: nn.Module, checkpoint: Checkpoint) -> StatelessCalls:
        """The function as PyTorch computes it: exact length, no mask."""
        return StatelessCalls(module, self.contract(checkpoint))


@dataclass(frozen=True)
class StatelessCalls:
    """Calls of one stateless function."""

    module: nn.Module
    spec: FunctionSpec

    def call(self, function: str, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Outputs of ``function`` by name."""
        assert function == self.spec.name
        (output,) = self.spec.outputs
        return {output.name: self.module(*(inputs[spec.name] for spec in self.spec.inputs))}
