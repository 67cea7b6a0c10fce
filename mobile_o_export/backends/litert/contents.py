"""What a .tflite holds: its constants as LiteRT restores them, its operators, its signatures."""

from __future__ import annotations

from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mobile_o_export.backends.contents import Contents, Interface, Port
from mobile_o_export.backends.litert import flatbuffer
from mobile_o_export.backends.litert.restore import restored
from mobile_o_export.digests import array_digest

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mobile_o_export.parity.metrics import Array


def file_contents(path: Path, entries: Mapping[str, str]) -> Contents:
    """The contents of the file at ``path``, whose signatures ``entries`` names by graph."""
    model = flatbuffer.read_model(path)
    constants = {place: array_digest(values) for place, values in model_constants(model)}
    signatures = {signature.signatureKey.decode(): signature for signature in model.signatureDefs or []}
    interfaces = {
        graph: _interface(model, signatures[entry]) for graph, entry in entries.items() if entry in signatures
    }
    return Contents(constants, {path.name: _code(model)}, interfaces)


def place_of(model: Any, graph: int, number: int) -> str:
    """What the constant ``number`` of a subgraph is called; names need not be unique."""
    return f"{graph}/{number} {model.subgraphs[graph].tensors[number].name.decode(errors='replace')}"


def model_constants(model: Any) -> Iterator[tuple[str, Array]]:
    """Every constant once, however many signatures share it: where it first stands, and its numbers."""
    seen = set()
    for index, graph in enumerate(model.subgraphs):
        for number, tensor in enumerate(graph.tensors):
            buffer = model.buffers[tensor.buffer].data
            if buffer is None or len(buffer) == 0:
                continue
            scales = _block_scales(graph, tensor)
            identity = (int(tensor.buffer), tensor.type, tuple(tensor.shape), *_scaling(tensor, scales))
            if identity not in seen:
                seen.add(identity)
                yield place_of(model, index, number), _numbers(model, tensor, scales)


def _numbers(model: Any, tensor: Any, scales: Any) -> Array:
    """What a constant stands for; integers that are no weights, such as a bias, as they are stored."""
    from ai_edge_litert.schema_py_generated import TensorType

    if tensor.type in (TensorType.INT8, TensorType.INT4) and _is_scaled(tensor, scales):
        return restored(tensor, scales, model.buffers)
    kind = {TensorType.FLOAT32: "<f4", TensorType.FLOAT16: "<f2", TensorType.INT32: "<i4"}.get(
        tensor.type, "u1"
    )
    return np.frombuffer(model.buffers[tensor.buffer].data, kind)


def _is_scaled(tensor: Any, scales: Any) -> bool:
    quantization = tensor.quantization
    return scales is not None or (
        quantization is not None and quantization.scale is not None and len(quantization.scale) > 0
    )


def _block_scales(graph: Any, tensor: Any) -> Any:
    """The tensor with the scales of a weight's blocks, or None."""
    details = None if tensor.quantization is None else tensor.quantization.details
    return None if details is None else graph.tensors[details.scales]


def _scaling(tensor: Any, scales: Any) -> tuple[Any, ...]:
    if scales is not None:
        return (int(scales.buffer),)
    if not _is_scaled(tensor, scales):
        return ()
    return np.asarray(tensor.quantization.scale).tobytes(), int(tensor.quantization.quantizedDimension)


def _interface(model: Any, signature: Any) -> Interface:
    tensors = model.subgraphs[signature.subgraphIndex].tensors
    return Interface(
        *(
            tuple(_port(entry.name, tensors[entry.tensorIndex]) for entry in entries or [])
            for entries in (signature.inputs, signature.outputs)
        )
    )


def _port(name: bytes, tensor: Any) -> Port:
    from ai_edge_litert.tools import flatbuffer_utils

    dynamic = tensor.shapeSignature
    shape = tensor.shape if dynamic is None or len(dynamic) == 0 else dynamic
    kind = flatbuffer_utils.type_to_name(tensor.type).lower()
    return Port(name.decode(), kind, tuple(None if size < 0 else int(size) for size in shape))


def _code(model: Any) -> str:
    """A digest of everything but what buffers hold; it empties the buffers of ``model``."""
    from ai_edge_litert.tools import flatbuffer_utils

    users = {int(tensor.buffer) for graph in model.subgraphs for tensor in graph.tensors}
    content = sha256()
    for index, buffer in enumerate(model.buffers):
        size = 0 if buffer.data is None else len(buffer.data)
        content.update(f"{index} {size}\n".encode())
        if index in users:
            buffer.data = None
        # Where a large buffer lies in the file says nothing of what it holds.
        buffer.offset = buffer.size = 0
    content.update(bytes(flatbuffer_utils.convert_object_to_bytearray(model)))
    return content.hexdigest()
