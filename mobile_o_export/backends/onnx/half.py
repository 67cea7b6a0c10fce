"""Weights stored as fp16 and widened to fp32 by the graph; ONNX Runtime does that once, when it loads."""

from __future__ import annotations

from collections.abc import Container
from typing import TYPE_CHECKING, Any

import numpy as np

from mobile_o_export.backends.onnx.edits import add_constant
from mobile_o_export.compression.half import within_half

if TYPE_CHECKING:
    from torch import nn

FEWEST = 128
"""Of fewer numbers fp16 would save less than the node takes that widens them."""


def round_to_half(module: nn.Module, kept: Container[str]) -> None:
    """Rounds the parameters of ``module`` to fp16, and leaves them so, but for those named in ``kept``.

    The parameters' own tensors, which may be views of the checkpoint's file, are left as they are.

    Raises:
        ExportError: one is not finite, or beyond fp16's range.
    """
    import torch

    for name, parameter in module.named_parameters():
        if name not in kept and parameter.dtype != torch.float16:
            wide = within_half(parameter.detach().float().numpy(), "stored as fp16")
            parameter.data = torch.from_numpy(wide.astype(np.float16))


def store_as_half(graph: Any) -> None:
    """Stores as fp16 every fp32 initializer of an onnx_ir ``graph`` that loses nothing by it.

    Those are the rounded parameters and the scales of integers; what the exporter computed stays as it is.
    """
    import onnx_ir

    for name, value in list(graph.initializers.items()):
        if value.dtype != onnx_ir.DataType.FLOAT or value.const_value.size < FEWEST:
            continue
        wide = value.const_value.numpy()
        with np.errstate(over="ignore"):
            half = wide.astype(np.float16)
        if not np.array_equal(half.astype(np.float32), wide):
            continue
        stored = add_constant(graph, f"{name}.half", half, onnx_ir.DataType.FLOAT16)
        widened = onnx_ir.val(f"{name}.wide", onnx_ir.DataType.FLOAT, value.shape)
        node = onnx_ir.node(
            "Cast", [stored], {"to": onnx_ir.DataType.FLOAT}, outputs=[widened], name=f"{name}/Cast"
        )
        onnx_ir.convenience.replace_all_uses_with(value, widened)
        graph.insert_before(graph[0], node)
        del graph.initializers[name]
