"""A component's graphs → an .onnx each: converted, weights encoded, saved, read back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from mobile_o_export.backends.base import GraphFile
from mobile_o_export.backends.lowering import Writer
from mobile_o_export.backends.onnx import tensorrt
from mobile_o_export.backends.onnx.convert import convert
from mobile_o_export.backends.onnx.encode import Encoder
from mobile_o_export.backends.onnx.half import round_to_half
from mobile_o_export.compression.compress import round_inputs
from mobile_o_export.errors import LoweringError
from mobile_o_export.members import MemberName
from mobile_o_export.precision import Precision
from mobile_o_export.quiet import captured

if TYPE_CHECKING:
    from pathlib import Path

    from torch import nn

    from mobile_o_export.backends.onnx.backend import OnnxOptions
    from mobile_o_export.components.base import GraphSpec
    from mobile_o_export.compression.compress import Compressed
    from mobile_o_export.compression.placeholders import Placeholders
    from mobile_o_export.compression.recipe import Recipe
    from mobile_o_export.parity.metrics import Array
    from mobile_o_export.progress import Say


class FilesWriter(Writer):
    """Writes a file for each graph, its weights beside it."""

    def __init__(self, folder: Path, recipe: Recipe, settings: OnnxOptions, what: str) -> None:
        self._folder = folder
        self._settings = settings
        self._as_half = recipe.floating == Precision.W16
        self._what = what
        self._files: dict[str, Path] = {}

    def alter(self, module: nn.Module, compressed: Mapping[str, Compressed]) -> None:
        """Has inputs be integers where they are calibrated; rounds weights that are stored as fp16."""
        round_inputs(module, compressed)
        if self._as_half:
            round_to_half(module, compressed)

    def write(
        self, graphs: Iterator[tuple[GraphSpec, nn.Module]], weights: Placeholders, progress: Say
    ) -> tuple[GraphFile, ...]:
        """The files.

        Raises:
            LoweringError: a graph has an operator that the target's parser lacks.
        """
        for_onnxruntime = self._settings.operators == "onnxruntime"
        self._encoder = Encoder(weights, for_onnxruntime=for_onnxruntime, as_half=self._as_half)
        files = []
        for spec, module in graphs:
            progress(f"exporting {spec.name}")
            path = self._files[spec.name] = self._folder / f"{spec.name}.onnx"
            with captured(f"{self._what} ({spec.name})"):
                operators = convert(spec, module, path, self._settings, self._encoder)
            if self._settings.operators == "tensorrt" and (unknown := tensorrt.unsupported(operators)):
                raise LoweringError(
                    f"{self._what}: {spec.name} uses {', '.join(unknown)}, which "
                    "TensorRT's parser lacks; rewrite the module so that it lowers to other operators."
                )
            files.append(GraphFile(spec, MemberName(path.name), ""))
        self._encoder.require_all(self._what)
        return tuple(files)

    def stored(self) -> Iterator[tuple[str, str, Array]]:
        """By what operators are defined to compute."""
        for graph, path in self._files.items():
            yield from self._encoder.stored(path, graph)
