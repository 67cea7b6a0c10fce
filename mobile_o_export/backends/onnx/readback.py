"""Compressed weights as a saved ONNX file restores them, read by what each operator is defined to compute."""

from __future__ import annotations

from collections.abc import Container, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from mobile_o_export.backends.onnx.external import Stored
    from mobile_o_export.parity.metrics import Array


def compressed(model: Any) -> set[str]:
    """The initializers of a ``model`` that are the integers of compressed weights."""
    stored = {tensor.name for tensor in model.graph.initializer}
    operands = ((node.op_type, node.input) for node in model.graph.node)
    return {
        inputs[_INTEGERS[kind]] for kind, inputs in operands if kind in _INTEGERS and len(inputs) > 1
    } & stored


def restored(stored: Stored, wanted: Container[str]) -> Iterator[tuple[str, Array]]:
    """What the integers named in ``wanted`` stand for in a ``stored`` model, in the axes in which they lie.

    A name comes once for each node that uses the integers.
    """
    graph = _Graph(stored)
    for node in stored.model.graph.node:
        place = _INTEGERS.get(node.op_type)
        if place is not None and len(node.input) > place and (name := node.input[place]) in wanted:
            yield name, _READERS[node.op_type](graph, node)


class _Graph:
    """A model's constants and nodes by name."""

    def __init__(self, stored: Stored) -> None:
        self.model = stored.model
        self.whole = stored.whole
        self.tensors = {tensor.name: tensor for tensor in self.model.graph.initializer}
        self.makers = {name: node for node in self.model.graph.node for name in node.output}

    def constant(self, name: str) -> Array:
        """An initializer, or a ``Cast`` of one.

        Raises:
            KeyError: the value ``name`` is neither.
        """
        import onnx

        if name in self.tensors:
            return np.asarray(onnx.numpy_helper.to_array(self.whole(self.tensors[name])))
        cast = self.makers[name]
        if cast.op_type != "Cast":
            raise KeyError(name)
        (to,) = (attribute.i for attribute in cast.attribute if attribute.name == "to")
        return self.constant(cast.input[0]).astype(onnx.helper.tensor_dtype_to_np_dtype(to))

    def user(self, name: str, kind: str) -> Any:
        """The one node that takes the value ``name``, a ``kind``.

        Raises:
            ValueError: there is none, several, or another.
        """
        (node,) = (node for node in self.model.graph.node if name in node.input)
        if node.op_type != kind:
            raise ValueError(f"{name} is taken by {node.op_type}, not by {kind}")
        return node


def _dequantized(graph: _Graph, node: Any) -> Array:
    """``DequantizeLinear``, computed by the standard's own reference."""
    import onnx
    from onnx.reference import ReferenceEvaluator

    model = graph.model
    tensors = [graph.whole(graph.tensors[node.input[0]])]
    tensors += [onnx.numpy_helper.from_array(graph.constant(name), name) for name in node.input[1:]]
    output = onnx.helper.make_empty_tensor_value_info(node.output[0])
    part = onnx.helper.make_graph([node], "weight", [], [output], tensors)
    versions = [entry for entry in model.opset_import if not entry.domain]
    whole = onnx.helper.make_model(part, opset_imports=versions, ir_version=model.ir_version)
    (values,) = ReferenceEvaluator(whole).run(None, {})
    return np.asarray(values)


def _blocks(node: Any, integers: Array, scales: Array, width: int) -> Array:
    """Rows [N, ``width``] of packed ``integers`` without zero points, as ONNX Runtime documents them."""
    given = {attribute.name: attribute.i for attribute in node.attribute}
    bits, block = given["bits"], given["block_size"]
    stored = integers.reshape(len(integers), -1)
    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    codes = ((stored[:, :, None] >> shifts) & (2**bits - 1)).reshape(len(stored), -1)[:, :width]
    result = np.empty(codes.shape, scales.dtype)
    for index, start in enumerate(range(0, width, block)):
        part = codes[:, start : start + block].astype(scales.dtype) - scales.dtype.type(2 ** (bits - 1))
        result[:, start : start + block] = part * scales[:, index, None]
    return result


def _multiplied_rows(graph: _Graph, node: Any) -> Array:
    """``MatMulNBits``: the matrix [N, K] by which it multiplies."""
    (width,) = (attribute.i for attribute in node.attribute if attribute.name == "K")
    _, integers, scales = node.input
    return _blocks(node, graph.constant(integers), graph.constant(scales), width)


def _gathered_rows(graph: _Graph, node: Any) -> Array:
    """``GatherBlockQuantized``: the table [N, K] of which it gathers rows."""
    integers, _, scales = node.input
    stored = graph.constant(integers)
    (bits,) = (attribute.i for attribute in node.attribute if attribute.name == "bits")
    return _blocks(node, stored, graph.constant(scales), stored.shape[1] * 8 // bits)


def _multiplied_integers(graph: _Graph, node: Any) -> Array:
    """``MatMulInteger``: the matrix [K, N] of which its sums, scaled, are products."""
    scaled = graph.user(graph.user(node.output[0], "Cast").output[0], "Mul")
    (factor,) = (graph.makers[name] for name in scaled.input if graph.makers[name].op_type == "Mul")
    activations, scales = factor.input
    if graph.makers[activations].op_type != "DynamicQuantizeLinear":
        raise ValueError(f"{node.name}: its sums are not scaled by its activations' scale")
    values = graph.constant(scales)
    _, integers, _, zero = node.input
    signed = graph.constant(integers).astype(values.dtype) - graph.constant(zero).astype(values.dtype)
    return np.asarray(signed * values)


_READERS = {
    "DequantizeLinear": _dequantized,
    "GatherBlockQuantized": _gathered_rows,
    "MatMulInteger": _multiplied_integers,
    "MatMulNBits": _multiplied_rows,
}

_INTEGERS = {"DequantizeLinear": 0, "GatherBlockQuantized": 0, "MatMulInteger": 1, "MatMulNBits": 1}
"""Which operand of each is the integers."""
