"""Compressed constants of a .tflite as LiteRT itself restores them."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import numpy as np

from mobile_o_export.backends.litert import flatbuffer
from mobile_o_export.backends.litert.operators import NEEDS

if TYPE_CHECKING:
    from mobile_o_export.parity.metrics import Array


def restored(tensor: Any, scales: Any, buffers: Any) -> Array:
    """What LiteRT makes of a constant, by a model of its own: float32 of the constant's shape.

    ``DEQUANTIZE`` restores scales of channels, and a lookup of every row those of blocks.
    """
    from ai_edge_litert import schema_py_generated as schema
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

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
    operator.outputs = [add("FLOAT32", tensor.shape)]
    weight = add(tensor.type, tensor.shape, buffers[tensor.buffer].data, quantization)
    if scales is None:
        kind, operator.inputs = "DEQUANTIZE", [weight]
        for name in ("scale", "zeroPoint", "quantizedDimension"):
            setattr(quantization, name, getattr(tensor.quantization, name))
    else:
        rows = np.arange(tensor.shape[0], dtype=np.int32)
        kind, operator.inputs = "EMBEDDING_LOOKUP", [add("INT32", rows.shape, rows), weight]
        quantization.detailsType = tensor.quantization.detailsType
        quantization.details = details = schema.BlockwiseQuantizationT()
        details.scales = add(scales.type, scales.shape, buffers[scales.buffer].data)
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
