"""From a component's graph to ``torch.export``, the form that every converter here starts from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import torch
from torch import nn
from torch.fx import GraphModule
from torch.fx.graph import _PyTreeCodeGen

from mobile_o_export.backends.decompose import each_kind_once
from mobile_o_export.components import building
from mobile_o_export.tensors import TensorSpec

if TYPE_CHECKING:
    from mobile_o_export.components.base import GraphSpec


@contextmanager
def quickly() -> Iterator[None]:
    """Keeps torch from what a conversion can do without, which took more than half of its time."""
    with _unprinted(), each_kind_once():
        yield


@contextmanager
def _unprinted() -> Iterator[None]:
    """Has torch write the Python code of a traced graph when something runs it, not each time a pass ends.

    Most of these programs are only walked. torch's own ``_use_lazy_graph_module`` is about few of them.
    """
    write = GraphModule.recompile

    def write_when_run(module: GraphModule) -> None:
        def forward(module: GraphModule, *args: Any, **kwargs: Any) -> Any:
            write(module)
            return type(module).forward(module, *args, **kwargs)

        if isinstance(module.graph._codegen, _PyTreeCodeGen):
            # Of a program as its users call it: torch reads the names of its arguments off the code.
            write(module)
            return
        module.__dict__.pop("_code", None)
        kind = type(module)  # each graph module has a class of its own
        kind.forward = forward
        if "__call__" in vars(kind):
            del kind.__call__  # that of code which was written before

    with patch.object(GraphModule, "recompile", write_when_run):
        yield


def used_parameters(program: torch.export.ExportedProgram) -> list[torch.Tensor]:
    """The parameters that a graph uses."""
    names = program.graph_signature.inputs_to_parameters
    used = [names[node.name] for node in program.graph.nodes if node.name in names and node.users]
    return [program.state_dict[name] for name in used]


class Positional(nn.Module):
    """A graph called with a tuple of inputs, so that all graphs look alike to an exporter."""

    def __init__(self, graph: nn.Module) -> None:
        super().__init__()
        self.wrapped = graph

    def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Inputs in the order of the spec → outputs in the order of the spec."""
        outputs = self.wrapped(*inputs)
        return outputs if isinstance(outputs, tuple) else (outputs,)


class Named(nn.Module):
    """A graph called with keywords that gives a dictionary, for exporters that take names from those."""

    def __init__(self, graph: nn.Module, spec: GraphSpec) -> None:
        super().__init__()
        self.wrapped = Positional(graph)
        self.inputs = tuple(tensor.name for tensor in spec.inputs)
        self.outputs = tuple(tensor.name for tensor in spec.outputs)

    def forward(self, **inputs: torch.Tensor) -> dict[str, torch.Tensor]:
        """Inputs by name → outputs by name."""
        return dict(zip(self.outputs, self.wrapped(*(inputs[name] for name in self.inputs)), strict=True))


EXAMPLE_EXTENTS: Mapping[str, int] = {"S": 5, "P": 7, "M": 12}
"""Sizes of dynamic axes while tracing: all different, none 0 or 1, which torch.export specialises on."""


def dynamic_examples(spec: GraphSpec) -> tuple[torch.Tensor, ...]:
    """Example inputs of a graph, letters taking their ``EXAMPLE_EXTENTS``."""
    return tuple(building.example(tensor.bind(EXAMPLE_EXTENTS)) for tensor in spec.inputs)


def dynamic_shapes(spec: GraphSpec, dims: Mapping[str, Any]) -> tuple[dict[int, Any] | None, ...]:
    """``torch.export``'s dynamic_shapes of a graph's inputs, each letter the one of ``dims``."""

    def axes(tensor: TensorSpec) -> dict[int, Any] | None:
        found = {axis: dims[dim] for axis, dim in enumerate(tensor.shape) if isinstance(dim, str)}
        return found or None

    return tuple(axes(tensor) for tensor in spec.inputs)
