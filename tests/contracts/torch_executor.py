"""An executor over graph modules themselves: what a file would compute if its converter were perfect."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Self

import numpy as np
import torch
from torch import nn

from mobile_o_export.checkpoint import Checkpoint
from mobile_o_export.components import building
from mobile_o_export.components.base import Component, GraphOptions, GraphSpec
from mobile_o_export.parity.metrics import Array
from mobile_o_export.session import Session
from mobile_o_export.tensors import DType, Role

SEQUENCE = "S"
NOISE = 3.0
"""Standard deviation of what padding is filled with: far from zero, in range for fp32."""


class TorchExecutor:
    """
    Runs graph modules in fp32, states shared between them as a Core ML package shares them.

    Where ``garbage`` is given, padding is overwritten with noise from that generator before each call:
    whatever lies there must not matter. Padding is what lies behind the ``real`` positions, which the
    executor reads off the mask or length of the call, or is told.
    """

    runtime = "PyTorch, graph modules"

    def __init__(
        self,
        graphs: Sequence[GraphSpec],
        modules: Mapping[str, nn.Module],
        garbage: np.random.Generator | None = None,
    ) -> None:
        self._graphs = {graph.name: graph for graph in graphs}
        self._modules = modules
        self._garbage = garbage
        self.real: int | None = None
        self.states: dict[str, torch.Tensor] = {}
        for graph in graphs:
            for spec in graph.states:
                shape = [dim for dim in spec.shape if isinstance(dim, int)]
                self.states.setdefault(spec.name, torch.zeros(shape))
        for graph in graphs:
            for spec in graph.states:
                setattr(modules[graph.name], spec.name, self.states[spec.name])

    def run(self, graph: str, inputs: Mapping[str, Array]) -> dict[str, Array]:
        spec = self._graphs[graph]
        assert list(inputs) == [tensor.name for tensor in spec.inputs]
        fed = inputs if self._garbage is None else self._spoiled(spec, inputs)
        with torch.no_grad():
            arguments = [torch.from_numpy(np.ascontiguousarray(value)) for value in fed.values()]
            for tensor, argument in zip(spec.inputs, arguments, strict=True):
                assert argument.dtype == building.TORCH_DTYPES[tensor.dtype]
            outputs = self._modules[graph](*arguments)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        return {
            tensor.name: output.clone().numpy() for tensor, output in zip(spec.outputs, outputs, strict=True)
        }

    def _spoiled(self, spec: GraphSpec, inputs: Mapping[str, Array]) -> dict[str, Array]:
        assert self._garbage is not None
        real = self.real
        for tensor in spec.inputs:
            if tensor.role is Role.LENGTH:
                real = int(inputs[tensor.name][0])
            elif tensor.role is Role.MASK:
                real = int(inputs[tensor.name].sum())
        spoiled = dict(inputs)
        for tensor in spec.inputs:
            axes = tensor.layout.split()
            if SEQUENCE not in axes or tensor.role in (Role.MASK, Role.POSITION) or real is None:
                continue
            value = inputs[tensor.name].copy()
            padding = value[(slice(None),) * axes.index(SEQUENCE) + (slice(real, None),)]
            if tensor.role is Role.TOKENS:
                assert tensor.range is not None
                padding[...] = self._garbage.integers(0, int(tensor.range[1]) + 1, padding.shape)
            else:
                padding[...] = self._garbage.standard_normal(padding.shape) * NOISE
            spoiled[tensor.name] = value
        return spoiled

    def reset(self) -> None:
        """Zeros, or noise where everything unwritten must not matter."""
        for state in self.states.values():
            state.zero_()
            if self._garbage is not None:
                state += torch.from_numpy(self._garbage.standard_normal(tuple(state.shape)) * NOISE)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.states.clear()


def torch_session(
    component: Component,
    checkpoint: Checkpoint,
    options: GraphOptions,
    garbage: np.random.Generator | None = None,
) -> tuple[Session, TorchExecutor]:
    """A session over ``component``'s own graph modules under ``options``."""
    assert options.compute_dtype is DType.FLOAT32
    graphs = component.graphs(checkpoint, options)
    module = building.prepare(component, component.load(checkpoint), options)
    modules = {graph.name: component.graph(module, graph, options).eval() for graph in graphs}
    executor = TorchExecutor(graphs, modules, garbage)
    return Session(component.functions(checkpoint), graphs, executor), executor
