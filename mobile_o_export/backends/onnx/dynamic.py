"""Products of integers: activations as uint8, scaled at run time, and 8-bit weights, a scale a channel.

ONNX Runtime fuses the operators, which are all the standard's, to ``DynamicQuantizeMatMul``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from mobile_o_export.backends.onnx.edits import Product, add_constant, replace_product
from mobile_o_export.precision import Integer

if TYPE_CHECKING:
    from mobile_o_export.compression.placed import Placed
    from mobile_o_export.parity.metrics import Array


MIDDLE = 128
"""The uint8 that stands for zero."""


def unsigned(placed: Placed) -> Array:
    """The int8 of ``placed`` as uint8 around 128.

    On x86 CPUs without VNNI, ONNX Runtime adds up pairs of products with int8 weights in 16 bits, where they
    overflow (microsoft/onnxruntime#12088).
    """
    return (placed.numbers().astype(np.int16) + MIDDLE).astype(np.uint8)


def fits(placed: Placed) -> bool:
    """Whether ``placed``, a matrix [K, N], is int8 with a scale for each of the N channels."""
    whole = placed.weight.form.precision.weights == Integer(8)
    return whole and placed.tables().shape == (1, placed.shape[1])


def multiply(graph: Any, name: str, placed: Placed, uses: list[Product]) -> None:
    """Replaces products of a weight by ``MatMulInteger``, whose sums are scaled.

    Args:
        graph: an onnx_ir graph.
        name: of the stored tensors, with suffixes.
        placed: the weight as a matrix [K, N].
        uses: the products.
    """
    import onnx_ir

    integers = add_constant(graph, f"{name}.integers", unsigned(placed), onnx_ir.DataType.UINT8)
    middle = add_constant(graph, f"{name}.middle", np.array(MIDDLE), onnx_ir.DataType.UINT8)
    scales = add_constant(graph, f"{name}.scales", placed.tables()[0], onnx_ir.DataType.FLOAT)
    for use in uses:
        quantized, scale, zero = _quantized(graph, use.activations).outputs
        prefix = use.node.outputs[0].name
        sums = onnx_ir.val(f"{prefix}.sums", onnx_ir.DataType.INT32)
        real = onnx_ir.val(f"{prefix}.real", onnx_ir.DataType.FLOAT)
        both = onnx_ir.val(f"{prefix}.scale", onnx_ir.DataType.FLOAT)
        inputs = [quantized, integers, zero, middle]
        nodes = [
            onnx_ir.node("MatMulInteger", inputs, outputs=[sums], name=use.node.name),
            onnx_ir.node(
                "Cast", [sums], {"to": onnx_ir.DataType.FLOAT}, outputs=[real], name=f"{use.node.name}.real"
            ),
            onnx_ir.node("Mul", [scale, scales], outputs=[both], name=f"{use.node.name}.scale"),
            onnx_ir.node("Mul", [real, both], name=f"{use.node.name}.scaled"),
        ]
        replace_product(graph, use, nodes)


def _quantized(graph: Any, activations: Any) -> Any:
    """The ``DynamicQuantizeLinear`` of ``activations``: one that is there already, or a new one."""
    import onnx_ir

    for use in activations.uses():
        if use.node.op_type == "DynamicQuantizeLinear":
            return use.node
    kinds = {
        "quantized": onnx_ir.DataType.UINT8,
        "scale": onnx_ir.DataType.FLOAT,
        "zero": onnx_ir.DataType.UINT8,
    }
    outputs = [onnx_ir.val(f"{activations.name}.{part}", kind) for part, kind in kinds.items()]
    name = f"{activations.name}/DynamicQuantizeLinear"
    node = onnx_ir.node("DynamicQuantizeLinear", [activations], outputs=outputs, name=name)
    producer = activations.producer()
    if producer is None:
        graph.insert_before(graph[0], node)
    else:
        graph.insert_after(producer, node)
    return node
