"""A .tflite file as it is written: every buffer where every reader looks for it."""

from __future__ import annotations

import io
import mmap
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mobile_o_export.backends.litert import flatbuffer
from mobile_o_export.errors import ExportError

schema = pytest.importorskip("ai_edge_litert.schema_py_generated")

CONTENTS = [b"", b"small", bytes(range(256)) * 5, bytes(3001), b"x" * 1024]


def model(contents: list[Any]) -> Any:
    """A model of buffers and nothing else."""
    made = schema.ModelT()
    made.version, made.operatorCodes, made.subgraphs, made.buffers = 3, [], [], []
    for content in contents:
        buffer = schema.BufferT()
        buffer.data = np.frombuffer(content, np.uint8) if len(content) else None
        made.buffers.append(buffer)
    return made


def written(made: Any) -> bytes:
    file = io.BytesIO()
    flatbuffer.write_model(made, file)
    return file.getvalue()


def test_every_buffer_is_a_vector_of_the_flatbuffer() -> None:
    content = written(model(CONTENTS))
    root = schema.Model.GetRootAs(content)
    for index, wanted in enumerate(CONTENTS):
        buffer = root.Buffers(index)
        assert (buffer.Offset(), buffer.Size()) == (0, 0)
        assert buffer.DataLength() == len(wanted)
        if wanted:
            assert buffer.DataAsNumpy().tobytes() == wanted
        if len(wanted) >= flatbuffer.SMALL_BYTES:
            table = buffer._tab
            assert table.Vector(table.Offset(4)) % flatbuffer.ALIGNMENT == 0


def test_buffers_behind_the_flatbuffer_are_brought_in(tmp_path: Path) -> None:
    """What litert-torch writes from some size on."""
    from ai_edge_litert.tools import flatbuffer_utils

    made, large = model(CONTENTS), CONTENTS[2]
    made.buffers[2].data, made.buffers[2].offset, made.buffers[2].size = None, 1, 1
    head = flatbuffer_utils.convert_object_to_bytearray(made)
    place = -(-len(head) // 16) * 16
    flatbuffer_utils.update_packed_buffer(
        schema.Model.GetRootAs(head).Buffers(2), offset=place, size=len(large)
    )
    path = tmp_path / "behind.tflite"
    path.write_bytes(bytes(head).ljust(place, b"\0") + large)
    content = written(flatbuffer.read_model(path))
    assert schema.Model.GetRootAs(content).Buffers(2).DataAsNumpy().tobytes() == large
    path.write_bytes(content)
    assert [bytes(buffer.data if buffer.data is not None else b"") for buffer in read(path)] == CONTENTS


def read(path: Path) -> list[Any]:
    return list(flatbuffer.read_model(path).buffers)


def test_what_no_flatbuffer_holds_is_refused_before_a_byte_is_written() -> None:
    file = io.BytesIO()
    untouched = mmap.mmap(-1, 2**31)
    with pytest.raises(ExportError, match=r"2\.00 GiB exceed the 2 GiB that a \.tflite can hold"):
        flatbuffer.write_model(model([b"", untouched]), file)
    assert file.getvalue() == b""
