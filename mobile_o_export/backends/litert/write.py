"""A component's graphs → one .tflite: converted, its weights encoded, read back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from mobile_o_export.backends.base import GraphFile, LowerRequest
from mobile_o_export.backends.litert.convert import convert, fence
from mobile_o_export.backends.litert.encode import Encoder
from mobile_o_export.backends.lowering import Writer
from mobile_o_export.members import MemberName
from mobile_o_export.quiet import captured
from mobile_o_export.signals import held_back

if TYPE_CHECKING:
    from pathlib import Path

    from torch import nn

    from mobile_o_export.components.base import GraphSpec
    from mobile_o_export.compression.compress import Compressed
    from mobile_o_export.compression.placeholders import Placeholders
    from mobile_o_export.parity.metrics import Array
    from mobile_o_export.progress import Say


def write_graphs(
    path: Path, graphs: Sequence[tuple[GraphSpec, nn.Module]], encoder: Encoder, what: str
) -> tuple[GraphFile, ...]:
    """Writes ``graphs``, whose weights may be placeholders, to the file ``path``.

    Raises:
        LoweringError: litert-torch failed, or nothing restores a weight where a graph has it.
        ExportError: a weight is in no graph, was changed on its way there, or is beyond fp16's range.
    """
    # Its MLIR bindings crash the process when Ctrl-C raises an exception in their middle.
    with held_back(), captured(what):
        converted = convert(graphs, encoder.weights)
    with captured(what):
        encoder.encode(converted, path)
    return tuple(GraphFile(spec, MemberName(path.name), spec.name) for spec, _ in graphs)


class FileWriter(Writer):
    """Writes one file, a signature a graph."""

    restored_in = np.float32
    """Whatever an accelerator computes in afterwards."""

    def __init__(self, path: Path, request: LowerRequest, what: str) -> None:
        self._path = path
        self._half = request.recipe.floating.weight_bits == 16
        self._what = what

    def alter(self, module: nn.Module, compressed: Mapping[str, Compressed]) -> None:
        """Fences linear layers in."""
        del compressed
        fence(module)

    def write(
        self, graphs: Iterator[tuple[GraphSpec, nn.Module]], weights: Placeholders, progress: Say
    ) -> tuple[GraphFile, ...]:
        """The file."""
        pairs = list(graphs)
        progress(f"converting {len(pairs)} signature(s)")
        self._encoder = Encoder(weights, half=self._half)
        return write_graphs(self._path, pairs, self._encoder, self._what)

    def stored(self) -> Iterator[tuple[str, str, Array]]:
        """As LiteRT restores them."""
        return self._encoder.stored(self._path)
