"""PyTorch graphs → one .tflite model with a signature each, whose weights are still outside.

To the converter a weight is a constant of one number throughout, which MLIR keeps as that one: turned or
reshaped it stays what it was. Behind the converter's passes such constants become inputs, which need no
content, and go by the names of their parameters.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import numpy as np
import torch
from torch import nn

from mobile_o_export.backends.litert import flatbuffer
from mobile_o_export.backends.litert.encode import FENCE
from mobile_o_export.backends.tracing import Named, quickly
from mobile_o_export.components import building

if TYPE_CHECKING:
    from mobile_o_export.components.base import GraphSpec
    from mobile_o_export.compression.placeholders import Placeholders

ENTRY, INPUTS = "tf.entry_function", "inputs"
"""Where a function has the names of its arguments, which those of tensors follow."""

PREFIX = "weight "
"""How names of arguments begin that stand for weights; no name of a graph's input has a space."""


@dataclass(frozen=True)
class Converted:
    """What the converter made.

    Attributes:
        model: a ``ModelT``.
        weights: of each of its subgraphs, by their tensors' numbers, the parameters that belong there. These
            tensors have no content.
    """

    model: Any
    weights: tuple[Mapping[int, str], ...]


def convert(graphs: Sequence[tuple[GraphSpec, nn.Module]], weights: Placeholders) -> Converted:
    """Converts ``graphs`` to signatures of one model.

    Args:
        graphs: what each takes and gives, and its module.
        weights: what placeholders of the modules stand for.

    Raises:
        ExportError: a weight that a module uses is not in the model as it was.
    """
    import litert_torch

    converter, marks = litert_torch, _Marks(weights)
    with torch.no_grad(), quickly(), marks.instead_of_placeholders():
        for spec, module in graphs:
            arguments = dict(
                zip((tensor.name for tensor in spec.inputs), building.examples(spec), strict=True)
            )
            converter = converter.signature(spec.name, Named(module, spec).eval(), sample_kwargs=arguments)
        exporter = converter.convert()._exporter
    marks.lift(exporter.module)
    model = flatbuffer.parse_model(exporter.to_bytes())
    found = tuple(_take_weights(model, index) for index in range(len(model.subgraphs)))
    weights.require({name for names in found for name in names.values()}, marks.used, "litert-torch")
    return Converted(model, found)


class _Marks:
    """Numbers by which the converter's constants say which weight belongs in their places.

    No two are a simple multiple or sum of others: a constant that was computed from one names none.
    """

    def __init__(self, weights: Placeholders) -> None:
        self._weights = weights
        random = np.random.default_rng(0)
        count = len(weights.names)
        mantissas = random.choice(1 << 23, count, replace=False).astype(np.uint32)
        numbers = (mantissas | np.float32(1).view(np.uint32)).view(np.float32)
        self._numbers = dict(zip(weights.names, numbers.tolist(), strict=True))
        self._names = {number: name for name, number in self._numbers.items()}
        self.used: list[torch.Tensor] = []

    @contextmanager
    def instead_of_placeholders(self) -> Iterator[None]:
        """Has litert-torch (0.10) make constants of marks where a graph has placeholders."""
        from litert_torch.backend import inline_consts
        from litert_torch.backend.lowerings import registry, utils

        kind = inline_consts.tensor_lowering_placeholder
        constant = registry.lookup(kind)

        def lower(context: Any, tensor: torch.Tensor) -> Any:
            name = self._weights.name_of(tensor)
            if name is None:
                return constant(context, tensor)
            if context.node.users:
                self.used.append(tensor)
            element = utils.torch_dtype_to_ir_element_type(tensor.dtype)
            return utils.splat(self._numbers[name], element, tuple(tensor.shape))

        with patch.dict(registry.global_registry.registered_ops, {kind: lower}):
            yield

    def lift(self, module: Any) -> None:
        """Makes arguments of the constants of an MLIR ``module`` that are marks, in each of its functions."""
        from litert_converter.mlir import ir

        with module.context, ir.Location.unknown():
            body = module.body if isinstance(module, ir.Module) else module.regions[0].blocks[0]
            for function in body.operations:
                if ENTRY in function.attributes:
                    self._lift(function)

    def _lift(self, function: Any) -> None:
        from litert_converter.mlir import ir

        (block,) = function.regions[0].blocks
        names: list[str] = []
        for operation in list(block.operations):
            name = self._named_by(operation)
            if name is None:
                continue
            (constant,) = operation.results
            constant.replace_all_uses_with(block.add_argument(constant.type, ir.Location.unknown()))
            operation.operation.erase()
            names.append(PREFIX + name)
        attributes = function.attributes
        kind, entry = attributes["function_type"].value, attributes[ENTRY]
        types = [argument.type for argument in block.arguments]
        attributes["function_type"] = ir.TypeAttr.get(ir.FunctionType.get(types, kind.results))
        paths = [{"tf_saved_model.index_path": ir.ArrayAttr.get([ir.StringAttr.get(name)])} for name in names]
        attributes["arg_attrs"] = ir.ArrayAttr.get([*attributes["arg_attrs"], *map(ir.DictAttr.get, paths)])
        inputs = ir.StringAttr.get(",".join([entry[INPUTS].value, *names]))
        attributes[ENTRY] = ir.DictAttr.get({item.name: item.attr for item in entry} | {INPUTS: inputs})

    def _named_by(self, operation: Any) -> str | None:
        """The weight whose mark is all of a constant, which has as many numbers."""
        from litert_converter.mlir import ir

        if "value" not in operation.attributes or len(operation.results) != 1:
            return None
        value = operation.attributes["value"]
        if not isinstance(value, ir.DenseFPElementsAttr) or not value.is_splat:
            return None
        name = self._names.get(value.get_splat_value().value)
        size = prod(value.type.shape)
        return name if name is not None and size == prod(self._weights.shape_of(name)) else None


def _take_weights(model: Any, index: int) -> dict[int, str]:
    """Makes no inputs of what stands for weights in a subgraph; the tensors' numbers and parameters."""
    graph = model.subgraphs[index]
    names = {
        number: graph.tensors[number].name.decode().removeprefix(PREFIX)
        for number in map(int, graph.inputs)
        if graph.tensors[number].name.decode().startswith(PREFIX)
    }
    for number, name in names.items():
        graph.tensors[number].name = name.encode()
    graph.inputs = [number for number in map(int, graph.inputs) if number not in names]
    for signature in model.signatureDefs:
        if signature.subgraphIndex == index:
            signature.inputs = [entry for entry in signature.inputs if entry.tensorIndex not in names]
    return names


def fence(module: nn.Module) -> None:
    """Keeps the converter from multiplying norms and scales into the weights of linear layers.

    It would give products that fp16 rounds, and that integers do not restore.
    """
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            layer.register_forward_pre_hook(_fenced_input)
            layer.register_forward_hook(_fenced_output)


def _fenced_input(_layer: nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    return tuple(x.clamp_min(float(FENCE)) for x in inputs)


def _fenced_output(_layer: nn.Module, _inputs: object, output: torch.Tensor) -> torch.Tensor:
    return output.clamp_min(float(FENCE))
