"""Compressed constants of a .tflite as LiteRT itself restores them."""

from __future__ import annotations

import io
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np

from mobile_o_export.backends.litert import flatbuffer
from mobile_o_export.backends.litert.operators import NEEDS

if TYPE_CHECKING:
    from mobile_o_export.parity.metrics import Array


PIECE = 1 << 24
"""Numbers that are restored at a time, which bounds the memory."""


def restored(tensor: Any, scales: Any, buffers: Any) -> Array:
    """What LiteRT makes of a constant, by models of its own: float32 of the constant's shape."""
    rows, *others = map(int, tensor.shape)
    width = prod(others)
    found = np.empty((rows, *others), np.float32)
    # An even number of rows is of whole bytes, also where two numbers share one.
    step = max(2, PIECE // width // 2 * 2)
    for start in range(0, rows, step):
        part = slice(start, min(rows, start + step))
        found[part] = _restored(tensor, scales, buffers, part)
    return found


def _restored(tensor: Any, scales: Any, buffers: Any, part: slice) -> Array:
    """Some rows of a constant.

    ``DEQUANTIZE`` restores scales of channels, and a lookup of every row those of blocks.
    """
    from ai_edge_litert import schema_py_generated as schema
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    shape = (part.stop - part.start, *tensor.shape[1:])
    model, graph, operator = schema.ModelT(), schema.SubGraphT(), schema.OperatorT()
    model.version, model.buffers, model.operatorCodes = 3, [schema.BufferT()], []
    graph.tensors, graph.inputs, graph.outputs, graph.operators = [], [], [0], [operator]
    model.subgraphs = [graph]

    def add(kind: str | int, shape: Any, content: Any = None, quantization: Any = None) -> int:
        new = schema.TensorT()
        new.type = getattr(schema.TensorType, kind) if isinstance(kind, str) else kind
        new.shape, new.quantization = list(shape), quantization
        new.buffer = 0 if content is None else flatbuffer.add_buffer(model, np.frombuffer(content, np.uint8))
        graph.tensors.append(new)
        return len(graph.tensors) - 1

    quantization = schema.QuantizationParametersT()
    operator.outputs = [add("FLOAT32", shape)]
    weight = add(tensor.type, shape, _rows(buffers, tensor, part), quantization)
    if scales is None:
        kind, operator.inputs = "DEQUANTIZE", [weight]
        given = tensor.quantization
        own = part if given.quantizedDimension == 0 and len(given.scale) > 1 else slice(None)
        quantization.scale, quantization.zeroPoint = given.scale[own], given.zeroPoint[own]
        quantization.quantizedDimension = given.quantizedDimension
    else:
        rows = np.arange(shape[0], dtype=np.int32)
        kind, operator.inputs = "EMBEDDING_LOOKUP", [add("INT32", rows.shape, rows), weight]
        quantization.detailsType = tensor.quantization.detailsType
        quantization.details = details = schema.BlockwiseQuantizationT()
        kept = (shape[0], *scales.shape[1:])
        details.scales = add(scales.type, kept, _rows(buffers, scales, part))
        details.zeroPoints, details.blockSize = -1, tensor.quantization.details.blockSize
    operator.opcodeIndex = flatbuffer.require_operator(model, kind, *NEEDS[kind, "INT4"])
    content = io.BytesIO()
    flatbuffer.write_model(model, content)
    interpreter = Interpreter(
        model_content=content.getvalue(),
        experimental_op_resolver_type=OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
    )
    interpreter.allocate_tensors()
    interpreter.invoke()
    values: Array = interpreter.get_tensor(0)
    return values


def _rows(buffers: Any, tensor: Any, part: slice) -> memoryview:
    """The bytes of some rows of a constant."""
    content = memoryview(buffers[tensor.buffer].data).cast("B")
    # Rounded down also where the last byte of all is half empty.
    start, stop = (len(content) * row // int(tensor.shape[0]) for row in (part.start, part.stop))
    return content[start:stop]
