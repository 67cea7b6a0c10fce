"""``weight.bin``: one file for all functions of a package, to which each large constant is written once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import numpy as np

from mobile_o_export.digests import array_digest

if TYPE_CHECKING:
    from mobile_o_export.backends.coreml.encode import Encoder

NAME = "weight.bin"
PLACE = f"@model_path/weights/{NAME}"
"""How programs name it."""


class WeightFile:
    """Takes constants of several programs; what is equal in type, shape and bytes is stored once.

    Args:
        folder: what becomes the package's ``weights``; made here.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self.folder = folder
        self._writer: Any = None
        self._offsets: dict[tuple[str, str], int] = {}
        self._known: dict[str, int] = {}

    @contextmanager
    def taking_constants(self, encoder: Encoder) -> Iterator[None]:
        """Has coremltools write to this file; what ``encoder`` holds back is made when it is written."""
        from coremltools.converters.mil.backend.mil import load

        take = self._take

        class Exporter(load.MILProtoExporter):  # type: ignore[misc]
            def create_file_value(self, var: Any) -> Any:
                primitive = load.types_to_proto_primitive(var.sym_type.get_primitive())
                offset = take(var, encoder)
                return load.create_file_value_tensor(PLACE, offset, var.val.shape, primitive)

        with patch.object(load, "MILProtoExporter", Exporter):
            yield

    def move(self, folder: Path) -> bool:
        """Ends the file, in ``folder`` from now on; False where nothing was written and there is none."""
        written, self._writer = self._writer is not None, None  # its last bytes are written when it goes
        if written:
            self.folder = self.folder.rename(folder)
        return written

    def _take(self, variable: Any, encoder: Encoder) -> int:
        """Where the value of a constant is in the file, to which it is written if it is new."""
        key = encoder.held_by(variable.op)
        if key is None:
            return self._write(variable.dtype, variable.val)
        if key not in self._known:
            self._known[key] = self._write(variable.dtype, encoder.held[key]())
        return self._known[key]

    def _write(self, kind: Any, value: Any) -> int:
        from coremltools.converters.mil.backend.mil import helper
        from coremltools.libmilstoragepython import _BlobStorageWriter

        value = np.ascontiguousarray(value)
        key = kind.__name__, array_digest(value)
        if key not in self._offsets:
            if self._writer is None:
                self._writer = _BlobStorageWriter(str(self.folder / NAME))
            self._offsets[key] = helper._get_offset_by_writing_data(
                SimpleNamespace(dtype=kind, val=value), self._writer
            )
        return self._offsets[key]
