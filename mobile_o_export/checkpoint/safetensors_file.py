"""One safetensors file, memory-mapped: its header checked on opening, its bytes read on demand.

The header is parsed here rather than by the ``safetensors`` package, so that opening needs no torch and
every kind of damage gets a message of its own. Format: https://huggingface.co/docs/safetensors, section
"Format": eight bytes of little-endian header length, a JSON header, then the tensors' bytes.
"""

from __future__ import annotations

import copy
import math
import mmap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mobile_o_export.errors import CheckpointError
from mobile_o_export.members import require_no_special_file
from mobile_o_export.strict import parse_json

if TYPE_CHECKING:
    import torch

DTYPES: Mapping[str, tuple[str, int]] = {
    "F32": ("float32", 4),
    "F16": ("float16", 2),
    "BF16": ("bfloat16", 2),
    "I64": ("int64", 8),
}
"""safetensors' dtype names that a Mobile-O checkpoint may hold → torch's name, bytes an element."""

_MAX_HEADER_BYTES = 100_000_000
"""The safetensors package refuses longer headers; a longer one is a file of another kind."""

_HASH_CHUNK_BYTES = 1 << 24


@dataclass(frozen=True)
class TensorInfo:
    """Where one tensor lies and what it is.

    Attributes:
        name: its name in the checkpoint.
        shape: its sizes.
        dtype: ``"float32"``, ``"float16"``, ``"bfloat16"`` or ``"int64"``.
        file: the safetensors file that holds it.
        offset_bytes: where its bytes start in the file.
        size_bytes: how many bytes it takes.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    file: Path
    offset_bytes: int
    size_bytes: int

    @property
    def parameters(self) -> int:
        """How many numbers it holds."""
        return math.prod(self.shape)


class SafetensorsFile:
    """The tensors of one safetensors file.

    Raises:
        CheckpointError: the file is missing, truncated, corrupt, or of another kind.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.tensors: Mapping[str, TensorInfo] = _read_header(path)

    @cached_property
    def _buffer(self) -> mmap.mmap:
        # A private mapping: torch wants a writable buffer, and no write may ever reach the user's file.
        try:
            with self.path.open("rb") as file:
                return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        except (OSError, ValueError) as error:
            raise CheckpointError(
                f"{self.path}: cannot be mapped into memory ({error}). Check that the file is still there "
                "and that its disk can be read."
            ) from error

    def release(self) -> None:
        """Has the system forget the pages that were read, where it can; they are read again when needed."""
        if "_buffer" in self.__dict__ and hasattr(mmap, "MADV_DONTNEED"):
            self._buffer.madvise(mmap.MADV_DONTNEED)

    def under(self, names: Mapping[str, str]) -> SafetensorsFile:
        """This file's tensors by other names: new name → stored one; those not among them are left out."""
        view = copy.copy(self)
        view.tensors = {new: replace(self.tensors[stored], name=new) for new, stored in names.items()}
        return view

    def tensor(self, name: str) -> torch.Tensor:
        """Tensor ``name`` as stored: a view of the memory-mapped file wherever its bytes are aligned."""
        import torch

        info = self.tensors[name]
        dtype: torch.dtype = getattr(torch, info.dtype)
        if not info.parameters:
            return torch.empty(info.shape, dtype=dtype)
        if info.offset_bytes + info.size_bytes > len(self._buffer):
            raise CheckpointError(
                f"{self.path}: the file shrank while it was open. "
                "Wait until it is fully copied, then try again."
            )
        if info.offset_bytes % dtype.itemsize:
            aligned = bytearray(self._buffer[info.offset_bytes : info.offset_bytes + info.size_bytes])
            return torch.frombuffer(aligned, dtype=dtype).view(info.shape)
        flat = torch.frombuffer(self._buffer, dtype=dtype, count=info.parameters, offset=info.offset_bytes)
        return flat.view(info.shape)

    def chunks(self, name: str) -> Iterator[bytes]:
        """The bytes of tensor ``name`` in order, a few MiB at a time.

        They are read, not mapped: a pass over the whole file would leave all of it resident.
        """
        info = self.tensors[name]
        left = info.size_bytes
        try:
            with self.path.open("rb") as file:
                file.seek(info.offset_bytes)
                while left:
                    chunk = file.read(min(_HASH_CHUNK_BYTES, left))
                    if not chunk:
                        raise CheckpointError(
                            f"{self.path}: the file shrank while it was open. "
                            "Wait until it is fully copied, then try again."
                        )
                    left -= len(chunk)
                    yield chunk
        except OSError as error:
            raise CheckpointError(
                f"{self.path}: cannot be read ({error.strerror}). Check its permissions and its disk."
            ) from error


def _read_header(path: Path) -> dict[str, TensorInfo]:
    """Every tensor that the header of ``path`` lists, checked against the file's size."""
    require_no_special_file(path, CheckpointError)
    try:
        size_bytes = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(8)
            length = int.from_bytes(start, "little")
            if len(start) < 8 or length > min(size_bytes - 8, _MAX_HEADER_BYTES):
                # Only now: eight bytes that look like a pickle's may also be a valid header length.
                _refuse_other_kinds(path, start)
                raise CheckpointError(
                    f"{path}: truncated or not a safetensors file: its header should take {length} bytes and "
                    f"the file has {size_bytes}. Copy or download it again."
                )
            text = file.read(length)
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: no such file. Copy or download it into the checkpoint.") from error
    except OSError as error:
        raise CheckpointError(
            f"{path}: cannot be read ({error.strerror}). Check its permissions and its disk."
        ) from error
    try:
        header = parse_json(text)
        if not isinstance(header, dict):
            raise ValueError("the header is not a JSON object")
        header.pop("__metadata__", None)
        return _locate(path, header, 8 + length, size_bytes)
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{path}: corrupt safetensors header ({error}). Copy or download the file again."
        ) from error


def _locate(path: Path, header: dict[str, Any], data_start: int, size_bytes: int) -> dict[str, TensorInfo]:
    tensors: dict[str, TensorInfo] = {}
    data_bytes = size_bytes - data_start
    cursor = 0
    for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        begin, end = entry["data_offsets"]
        shape = tuple(entry["shape"])
        if entry["dtype"] not in DTYPES:
            raise CheckpointError(
                f"{path}: {name} is stored as {entry['dtype']}, and only {', '.join(DTYPES)} can be read. "
                "Use the fp32, fp16 or bf16 checkpoint; quantisation is this exporter's work."
            )
        if not all(type(number) is int and number >= 0 for number in (begin, end, *shape)):
            raise ValueError(f"{name} has the offsets {begin}, {end} and the shape {shape}")
        dtype, item_bytes = DTYPES[entry["dtype"]]
        if end - begin != math.prod(shape) * item_bytes:
            raise ValueError(
                f"{name} of shape {shape} and dtype {dtype} does not fill its {end - begin} bytes"
            )
        # The format allows neither holes nor overlaps; either would hide bytes from the reader.
        if begin != cursor:
            raise ValueError(f"{name} starts at byte {begin}, where {cursor} was expected")
        cursor = end
        tensors[name] = TensorInfo(name, shape, dtype, path, data_start + begin, end - begin)
    if cursor > data_bytes:
        raise CheckpointError(
            f"{path}: truncated: the tensors take {cursor} bytes and only {data_bytes} are there. "
            "Copy or download the file again."
        )
    if cursor < data_bytes:
        raise ValueError(f"{data_bytes - cursor} bytes follow the last tensor")
    return tensors


def _refuse_other_kinds(path: Path, start: bytes) -> None:
    """Name the usual files that are called .safetensors and are not."""
    if start.startswith(b"PK\x03\x04") or (start[:1] == b"\x80" and start[1:2] in b"\x02\x03\x04\x05"):
        raise pickle_error(path)
    if start.startswith(b"version "):
        raise CheckpointError(
            f"{path}: a Git LFS pointer, not the weights themselves. Run 'git lfs pull' in the checkpoint."
        )


def pickle_error(path: Path) -> CheckpointError:
    """The refusal of a pickled checkpoint, and how to convert it."""
    return CheckpointError(
        f"{path}: a pickled PyTorch file, which can run code when it is loaded; only safetensors is read. "
        "Convert it where you trust it: load it with transformers or "
        "torch.load(..., weights_only=True), then save with save_pretrained(..., safe_serialization=True) "
        "or safetensors.torch.save_file."
    )
