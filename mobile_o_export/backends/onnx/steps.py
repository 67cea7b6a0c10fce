"""``QuantizeLinear`` and ``DequantizeLinear`` around activations, in the element type of what they round."""

from __future__ import annotations

from typing import Any

import numpy as np

from mobile_o_export.backends.onnx.edits import add_constant


def match_types(graph: Any) -> None:
    """Gives every pair in an onnx_ir ``graph`` steps of its input's type; torch writes them as fp32.

    ONNX wants a step of the type of what is quantised, and TensorRT the same type before and after.
    """
    for node in list(graph):
        if node.op_type != "QuantizeLinear":
            continue
        dtype = node.inputs[0].dtype
        (back,) = [use.node for use in node.outputs[0].uses()]
        for pair in (node, back):
            step = pair.inputs[1]
            if step.dtype != dtype:
                number = np.asarray(step.const_value.numpy(), dtype.numpy())
                pair.replace_input_with(1, add_constant(graph, f"{pair.name}.step", number, dtype))
        restored = back.outputs[0]
        restored.dtype = dtype
        for use in list(restored.uses()):
            if use.node.op_type == "Cast" and use.node.outputs[0].dtype == dtype:
                _bypass(graph, use.node)


def _bypass(graph: Any, cast: Any) -> None:
    """Removes a ``cast`` to the type that its input has."""
    import onnx_ir

    onnx_ir.convenience.replace_all_uses_with(cast.outputs[0], cast.inputs[0])
    graph.remove(cast, safe=True)
