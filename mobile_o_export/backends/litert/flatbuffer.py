"""Reads .tflite files without copying their buffers, and writes them buffer by buffer."""

from __future__ import annotations

import mmap
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from mobile_o_export.errors import ExportError

if TYPE_CHECKING:
    from pathlib import Path

    from mobile_o_export.parity.metrics import Array

PORTABLE_BYTES = 2**31 - 1
"""A flatbuffer's offsets are signed 32-bit: a larger file loads on some hosts only."""

SMALL_BYTES = 1024
"""Smaller buffers are written among the tables, where LiteRT looks for metadata."""

ALIGNMENT = 16
"""Of a buffer's content in the file, in bytes, as the schema has it."""

_DATA_SLOT, _LENGTH_BYTES = 4, 4
"""Where the table of a ``Buffer`` has its ``data``; the bytes of a vector's length, which precedes it."""

RUNTIME = b"min_runtime_version"
"""Metadata: the oldest TensorFlow Lite that has each operator's version, in ``RUNTIME_BYTES``."""

RUNTIME_BYTES = 16


@dataclass(frozen=True)
class Held:
    """The content of a buffer that is made when it is written: ``size`` bytes."""

    size: int
    make: Callable[[], Array]


def read_model(path: Path) -> Any:
    """The ``ModelT`` in ``path``; its large buffers are views of the file, mapped into memory."""
    with path.open("rb") as file:
        return parse_model(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))


def parse_model(content: bytes | mmap.mmap) -> Any:
    """The ``ModelT`` in ``content``; its large buffers are views."""
    from ai_edge_litert.tools import flatbuffer_utils

    return flatbuffer_utils.read_model_from_bytearray(memoryview(content))


def write_model(model: Any, file: BinaryIO) -> None:
    """Writes a ``ModelT`` whose buffers are arrays, views or ``Held``, which it gives up. None is copied.

    Large buffers are vectors of the flatbuffer like any other, behind its tables. litert-torch writes them
    behind the flatbuffer instead, where LiteRT finds them and OpenVINO 2026.4 does not.

    Raises:
        ExportError: a flatbuffer cannot be so large.
    """
    from ai_edge_litert.schema_py_generated import Model
    from ai_edge_litert.tools import flatbuffer_utils

    large: dict[int, Any] = {}
    for index, buffer in enumerate(model.buffers):
        buffer.offset = buffer.size = 0
        if buffer.data is not None and _size(buffer.data) >= SMALL_BYTES:
            large[index] = buffer.data
            buffer.data = np.zeros(0, np.uint8)
        elif isinstance(buffer.data, Held):
            buffer.data = np.asarray(_bytes(buffer.data))
    head = flatbuffer_utils.convert_object_to_bytearray(model)
    packed, end = Model.GetRootAs(head), len(head)
    places: dict[int, int] = {}
    for index, content in large.items():
        places[index] = -(-(end + _LENGTH_BYTES) // ALIGNMENT) * ALIGNMENT
        end = places[index] + _size(content)
    if end > PORTABLE_BYTES:
        raise ExportError(
            f"{end / 2**30:.2f} GiB exceed the 2 GiB that a .tflite can hold. "
            "Give more of its weights fewer bits."
        )
    for index, place in places.items():
        table = packed.Buffers(index)._tab
        field = table.Pos + table.Offset(_DATA_SLOT)
        # A vector is named by how far behind the field it begins.
        head[field : field + 4] = (place - _LENGTH_BYTES - field).to_bytes(4, "little")
    end = file.write(head)
    for index, content in large.items():
        end += file.write(bytes(places[index] - _LENGTH_BYTES - end))
        end += file.write(_size(content).to_bytes(_LENGTH_BYTES, "little"))
        end += file.write(_bytes(content))


def _size(data: Any) -> int:
    return data.size if isinstance(data, Held) else memoryview(data).nbytes


def _bytes(data: Any) -> memoryview:
    """What a buffer's ``data`` is in the file."""
    return memoryview(_flat(data.make()) if isinstance(data, Held) else data)


def _flat(content: Array) -> Any:
    """An array's bytes in row-major order, uint8."""
    return np.ascontiguousarray(content).reshape(-1).view(np.uint8)


def add_buffer(model: Any, content: Array | Held) -> int:
    """The index of a new buffer that holds ``content``."""
    from ai_edge_litert.schema_py_generated import BufferT

    buffer = BufferT()
    buffer.data = content if isinstance(content, Held) else _flat(content)
    model.buffers.append(buffer)
    return len(model.buffers) - 1


def drop_unused(model: Any) -> None:
    """Removes tensors, operator codes and buffers that nothing refers to; the first buffer stays, empty."""
    for index, graph in enumerate(model.subgraphs):
        outside = [
            entry
            for signature in model.signatureDefs or []
            if signature.subgraphIndex == index
            for entry in (*(signature.inputs or []), *(signature.outputs or []))
        ]
        lists = [graph.inputs, graph.outputs]
        lists += [part for operator in graph.operators for part in (operator.inputs, operator.outputs)]
        lists += [operator.intermediates for operator in graph.operators]
        details = [tensor.quantization.details for tensor in graph.tensors if tensor.quantization]
        blocks = [found for found in details if found is not None]
        kept = {int(number) for numbers in lists for number in (() if numbers is None else numbers)}
        kept |= {entry.tensorIndex for entry in outside} | {found.scales for found in blocks}
        moved = {-1: -1} | {old: new for new, old in enumerate(sorted(kept - {-1}))}
        graph.tensors = [graph.tensors[old] for old in sorted(kept - {-1})]
        for numbers in lists:
            if numbers is not None:
                numbers[:] = [moved[int(number)] for number in numbers]
        for entry in outside:
            entry.tensorIndex = moved[entry.tensorIndex]
        for found in blocks:
            found.scales = moved[found.scales]
    operators = [operator for graph in model.subgraphs for operator in graph.operators]
    model.operatorCodes = _used(operators, "opcodeIndex", model.operatorCodes, set())
    holders = [tensor for graph in model.subgraphs for tensor in graph.tensors] + (model.metadata or [])
    model.buffers = _used(holders, "buffer", model.buffers, {0})


def _used(users: list[Any], attribute: str, entries: list[Any], always: set[int]) -> list[Any]:
    """The ``entries`` that the index ``attribute`` of some user names; the users' indices are adapted."""
    kept = sorted(always | {int(getattr(user, attribute)) for user in users})
    moved = {old: new for new, old in enumerate(kept)}
    for user in users:
        setattr(user, attribute, moved[int(getattr(user, attribute))])
    return [entries[old] for old in kept]


def bypass(model: Any, graph: Any, operators: list[Any]) -> None:
    """Removes ``operators`` from ``graph``; their first inputs take the places of their outputs."""
    instead = {int(operator.outputs[0]): int(operator.inputs[0]) for operator in operators}
    gone = {id(operator) for operator in operators}
    graph.operators = [operator for operator in graph.operators if id(operator) not in gone]

    def source(number: int) -> int:
        while number in instead:
            number = instead[number]
        return number

    for numbers in (graph.outputs, *(operator.inputs for operator in graph.operators)):
        if numbers is not None:
            numbers[:] = [source(int(number)) for number in numbers]
    for signature in model.signatureDefs or []:
        if model.subgraphs[signature.subgraphIndex] is graph:
            for entry in signature.outputs or []:
                entry.tensorIndex = source(entry.tensorIndex)


def require_operator(model: Any, name: str, version: int, runtime: str) -> int:
    """The index of the operator code ``name``, at least of ``version``, which came with ``runtime``."""
    from ai_edge_litert.schema_py_generated import BuiltinOperator, OperatorCodeT

    for index, code in enumerate(model.operatorCodes):
        if operator_name(model, index) == name:
            code.version = max(code.version, version)
            break
    else:
        index, code = len(model.operatorCodes), OperatorCodeT()
        code.builtinCode = code.deprecatedBuiltinCode = getattr(BuiltinOperator, name)
        code.version = version
        model.operatorCodes.append(code)
    for entry in model.metadata or []:
        if entry.name == RUNTIME:
            buffer = model.buffers[entry.buffer]
            former = bytes(buffer.data).rstrip(b"\0").decode()
            newest = max(former, runtime, key=lambda text: [int(part) for part in text.split(".") if part])
            buffer.data = np.frombuffer(newest.encode().ljust(RUNTIME_BYTES, b"\0"), np.uint8)
    return index


def operator_name(model: Any, index: int) -> str:
    """What the schema calls the operator code ``index``."""
    from ai_edge_litert.tools import flatbuffer_utils

    return str(flatbuffer_utils.opcode_to_name(model, index))
