"""Edits of onnx_ir graphs: constants added, weights' nodes replaced."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from mobile_o_export.compression.placeholders import Kept
    from mobile_o_export.parity.metrics import Array

CONTRIBUTED = "com.microsoft"
"""The domain of ONNX Runtime's own operators."""


@dataclass(frozen=True)
class Product:
    """A matrix product of activations [..., K] and a constant.

    Attributes:
        node: a ``MatMul`` or ``Gemm``.
        transposed: whether the constant is [N, K] rather than [K, N].
        bias: what is added to the product [..., N], or None.
    """

    node: Any
    transposed: bool
    bias: Any | None

    @property
    def activations(self) -> Any:
        """The value [..., K]."""
        return self.node.inputs[0]


def products(value: Any) -> list[Product]:
    """The products that use ``value``, a matrix; none where it is used for anything else as well."""
    found = [_product(use.node, use.idx) for use in value.uses()] if len(value.shape) == 2 else []
    return [product for product in found if product] if all(found) else []


def _product(node: Any, index: int) -> Product | None:
    if index != 1 or node.domain:
        return None
    if node.op_type == "MatMul":
        return Product(node, False, None)
    given = {name: attribute.value for name, attribute in node.attributes.items()}
    transposed = bool(given.pop("transB", 0))
    if node.op_type == "Gemm" and given.items() <= {"alpha": 1.0, "beta": 1.0, "transA": 0}.items():
        return Product(node, transposed, node.inputs[2] if len(node.inputs) > 2 else None)
    return None


def gathers(value: Any) -> list[Any]:
    """The nodes that gather rows of ``value``, a matrix; none where it is used for anything else as well."""
    nodes = [use.node for use in value.uses() if use.idx == 0 and use.node.op_type == "Gather"]
    rows = [node for node in nodes if "axis" not in node.attributes or node.attributes["axis"].value == 0]
    return rows if len(rows) == len(value.uses()) and len(value.shape) == 2 else []


def add_constant(graph: Any, name: str, content: Array, dtype: Any) -> Any:
    """A new initializer of ``graph``; int4 is a type of ml_dtypes in NumPy."""
    import onnx_ir

    tensor = onnx_ir.Tensor(np.asarray(content, order="C").astype(dtype.numpy()), dtype, name=name)
    value = onnx_ir.val(name, dtype, tensor.shape, const_value=tensor)
    graph.register_initializer(value)
    return value


def hold(value: Any, kept: Kept) -> None:
    """Makes an initializer of a weight that stays floating point; its numbers are made when it is saved."""
    import onnx_ir

    kind, dtype = value.dtype, value.dtype.numpy().type

    def tensor() -> Any:
        return onnx_ir.Tensor(np.ascontiguousarray(kept.numbers(dtype)), kind, name=value.name)

    value.const_value = onnx_ir.LazyTensor(tensor, kind, onnx_ir.Shape(kept.shape), name=value.name)


def replace_node(graph: Any, old: Any, new: Sequence[Any]) -> None:
    """Puts the nodes ``new``, of which the last gives the output of ``old``, in its place."""
    import onnx_ir

    onnx_ir.convenience.replace_nodes_and_values(graph, old, [old], new, old.outputs, new[-1].outputs)


def replace_product(graph: Any, product: Product, nodes: Sequence[Any]) -> None:
    """Puts ``nodes``, of which the last multiplies, in the place of ``product``, and then adds its bias."""
    import onnx_ir

    last = nodes[-1]
    if product.bias is not None:
        added = onnx_ir.node("Add", [last.outputs[0], product.bias], name=f"{product.node.name}.bias")
        # replace_node names the last output alone.
        last.outputs[0].name = f"{product.node.outputs[0].name}.product"
        nodes = [*nodes, added]
    replace_node(graph, product.node, nodes)
