"""Reader of ``weight.bin``: MIL blob storage, version 2, memory-mapped.

Layout (``mlmodel/src/MILBlob/Blob/StorageFormat.hpp``, little-endian): a 64-byte file header
``{uint32 count, uint32 version}``; per blob 64 bytes of metadata at the offset that the program names,
``{uint32 sentinel, uint32 dtype, uint64 size_bytes, uint64 data_offset, uint64 padding_bits}``; the
data, 64-byte aligned, at ``data_offset`` from the start of the file. Padding is of elements narrower than a
byte; for others coremltools up to 7.2 left the field, and the rest of the header, uninitialised.
"""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mobile_o_export.backends.coreml.interpreter import bits
from mobile_o_export.backends.coreml.interpreter.errors import DamagedPackageError
from mobile_o_export.backends.coreml.interpreter.tensor_type import ELEMENT_TYPES, TensorType

_FILE_HEADER = struct.Struct("<II")
_BLOB_HEADER = struct.Struct("<IIQQQ")
_HEADER_BYTES = 64
_VERSION = 2
_SENTINEL = 0xDEADBEEF


class WeightFile:
    """One weight file, mapped copy-on-write so that arrays over it are writable yet never written back."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._bytes: NDArray[np.uint8] = np.memmap(path, dtype=np.uint8, mode="c")
        except (OSError, ValueError) as error:
            raise DamagedPackageError(
                f"cannot map the weight file {path}: {error}; export it again"
            ) from error
        if self._bytes.size < _HEADER_BYTES:
            raise DamagedPackageError(
                f"{path} holds {self._bytes.size} bytes, less than its header; export it again"
            )
        _, version = _FILE_HEADER.unpack(self._bytes[: _FILE_HEADER.size].tobytes())
        if version != _VERSION:
            raise DamagedPackageError(
                f"{path} is blob storage version {version}; only version {_VERSION} is read"
            )

    @property
    def size_bytes(self) -> int:
        """Size of the file."""
        return int(self._bytes.size)

    def check(self, offset: int, declared: TensorType) -> None:
        """Raise :class:`DamagedPackageError` unless a blob of the ``declared`` type lies at ``offset``."""
        self._locate(offset, declared)

    def read(self, offset: int, declared: TensorType) -> NDArray[np.generic]:
        """The blob at ``offset`` in the ``declared`` shape: a view of the map, or a copy if it was packed."""
        start, size_bytes, count = self._locate(offset, declared)
        element = ELEMENT_TYPES[declared.dtype]
        raw = self._bytes[start : start + size_bytes]
        shape = [size for size in declared.shape if size is not None]
        if element.packed:
            signed = element.name.startswith("int")
            return bits.unpack(raw, element.bits, count, signed=signed).reshape(shape)
        return raw.view(np.dtype(element.numpy)).reshape(shape)

    def _locate(self, offset: int, declared: TensorType) -> tuple[int, int, int]:
        """Start and size in bytes of the data, and the number of its elements."""
        where = f"{self.path}: blob at offset {offset}"
        if offset + _HEADER_BYTES > self.size_bytes:
            raise DamagedPackageError(f"{where} lies past the end of the file ({self.size_bytes} bytes)")
        header = self._bytes[offset : offset + _BLOB_HEADER.size].tobytes()
        sentinel, code, size_bytes, start, padding_bits = _BLOB_HEADER.unpack(header)
        if sentinel != _SENTINEL:
            raise DamagedPackageError(f"{where} does not start with the sentinel 0x{_SENTINEL:X}")
        element = ELEMENT_TYPES.get(declared.dtype)
        if element is None or element.blob_code != code:
            raise DamagedPackageError(f"{where} has type code {code}, the program declares {declared}")
        count = declared.element_count
        if not element.packed:
            padding_bits = 0
        if count is None or (size_bytes * 8 - padding_bits) != count * element.bits:
            raise DamagedPackageError(f"{where} holds {size_bytes} bytes, the program declares {declared}")
        if start + size_bytes > self.size_bytes:
            raise DamagedPackageError(f"{where} is cut short: {start + size_bytes} > {self.size_bytes} bytes")
        return start, size_bytes, count
