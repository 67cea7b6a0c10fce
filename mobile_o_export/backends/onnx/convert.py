"""PyTorch graph → ONNX file: pinned opset and IR, named axes, external data, no trace of the build host."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from mobile_o_export.backends.tracing import (
    Positional,
    dynamic_examples,
    dynamic_shapes,
    quickly,
    used_parameters,
)

if TYPE_CHECKING:
    from torch import nn

    from mobile_o_export.backends.onnx.backend import OnnxOptions
    from mobile_o_export.backends.onnx.encode import Encoder
    from mobile_o_export.components.base import GraphSpec

AXIS_NAMES: Mapping[str, str] = {
    "S": "sequence_length",
    "P": "past_sequence_length",
    "M": "total_sequence_length",
}
"""Hugging Face's names of the dynamic axes."""

NO_ZERO = 1e-8
"""Constants below it are zero to onnxscript's rewriter."""

DYNAMIC = dict.fromkeys(AXIS_NAMES, torch.export.Dim.DYNAMIC)
"""Every letter is of any size."""


def convert(
    spec: GraphSpec, graph: nn.Module, path: Path, settings: OnnxOptions, encoder: Encoder
) -> set[str]:
    """Writes ``graph`` to ``path`` with its weights in ``<path>.data`` beside it.

    Returns:
        The operators that the file uses.
    """
    with torch.no_grad(), quickly():
        # A size of 0 or 1 is one among others, as torch.onnx has it when it captures by itself.
        with torch.fx.experimental._config.patch(backed_size_oblivious=True):  # type: ignore[attr-defined]
            exported = torch.export.export(
                Positional(graph).eval(),
                dynamic_examples(spec),
                # In a tuple of their own: the graph takes any number of inputs.
                dynamic_shapes=(dynamic_shapes(spec, DYNAMIC),) if spec.profiles else None,
                prefer_deferred_runtime_asserts_over_guards=True,
            )
        keep_guards(exported)
        program: Any = torch.onnx.export(
            exported,
            dynamo=True,
            opset_version=settings.opset,
            input_names=[tensor.name for tensor in spec.inputs],
            output_names=[tensor.name for tensor in spec.outputs],
            verbose=False,
        )
    model = program.model
    if model.graph.opset_imports[""] != settings.opset:
        # torch only warns where it cannot convert to the version that was asked for.
        raise ValueError(
            f"torch wrote opset {model.graph.opset_imports['']} where the target asks for {settings.opset}"
        )
    model.ir_version = settings.ir_version
    model.graph.name = spec.name
    _name_axes(model.graph, spec)
    encoder.encode(model.graph, used_parameters(exported))
    _clean(model)
    program.save(str(path), external_data=True)
    return {node.op_type for node in model.graph.all_nodes()}


def keep_guards(program: torch.export.ExportedProgram) -> None:
    """Writes a / (b + ε) as a / max(b, ε) where onnxscript would take ε for zero and drop it.

    The same to a rounding for b ≥ 0, as sums of non-negative numbers are. These may all be zero; attention's
    quotient is zero there, and 0 / 0 without ε. In fp16 ε becomes the smallest normal number.

    Raises:
        ValueError: so small a number is added to something else than a divisor.
    """
    aten = torch.ops.aten
    for node in program.graph.nodes:
        if node.target is not aten.add.Tensor or not isinstance(node.args[1], float):
            continue
        divided, epsilon = node.args
        if not 0 < abs(epsilon) < NO_ZERO:
            continue
        divides = (use.target is aten.div.Tensor and use.args[1] is node for use in node.users)
        if epsilon < 0 or not all(divides):
            raise ValueError(f"{node} adds {epsilon}, which onnxscript would drop")
        node.target = aten.clamp_min.default
        node.args = (divided, max(epsilon, torch.finfo(node.meta["val"].dtype).smallest_normal))


def _name_axes(graph: Any, spec: GraphSpec) -> None:
    """Gives the dynamic axes of inputs and outputs their names; other symbols of the tracer go."""
    import onnx_ir

    for values, tensors in ((graph.inputs, spec.inputs), (graph.outputs, spec.outputs)):
        for value, tensor in zip(values, tensors, strict=True):
            dims = [AXIS_NAMES[dim] if isinstance(dim, str) else dim for dim in tensor.shape]
            value.shape = onnx_ir.Shape(dims)
    boundary = {*graph.inputs, *graph.outputs, *graph.initializers.values()}
    for node in graph.all_nodes():
        for value in node.outputs:
            if value not in boundary and value.shape is not None and not value.shape.is_static():
                value.shape = None


def _clean(model: Any) -> None:
    """Removes what names files of this machine; makes the nodes' names the graph's own."""
    model.metadata_props.clear()
    model.graph.metadata_props.clear()
    for node in model.graph.all_nodes():
        node.metadata_props.clear()
        node.doc_string = None
        # onnx.compose refuses to join graphs that have a node's name in common.
        node.name = f"{model.graph.name}/{node.name}"
        for value in node.outputs:
            value.metadata_props.clear()
    for value in (*model.graph.inputs, *model.graph.initializers.values()):
        value.metadata_props.clear()
