"""Lowers components with torch's ONNX exporter and runs them with ONNX Runtime."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import Field, model_validator

from mobile_o_export.backends import versions
from mobile_o_export.backends.base import Artifact, Backend, Executor, GraphFile, LowerRequest, Probe
from mobile_o_export.backends.onnx import nbits
from mobile_o_export.backends.onnx.tensorrt import TENSORRT_OPSET
from mobile_o_export.components.base import CacheStyle, GraphOptions
from mobile_o_export.errors import ConfigError, GateError, MissingToolError
from mobile_o_export.parity.metrics import Array
from mobile_o_export.precision import Activations, Integer, Precision
from mobile_o_export.progress import Say
from mobile_o_export.quiet import captured
from mobile_o_export.strict import Strict, check
from mobile_o_export.tensors import DType

if TYPE_CHECKING:
    from mobile_o_export.backends.contents import Contents
    from mobile_o_export.checkpoint import Checkpoint
    from mobile_o_export.compression.recipe import Recipe

RUNTIME_PACKAGE = "onnxruntime"
PACKAGES = ("onnx", "onnxscript", "onnx-ir", RUNTIME_PACKAGE)
LEAST_RUNTIMES = {"tensorrt": "1.19.2", "any": "1.19.2", "onnxruntime": "1.23.2"}
"""By ``operators``. 1.22 does not load 8 bits in GatherBlockQuantized and fails in the VAE's MatMulNBits."""


class OnnxOptions(Strict):
    """A target's ``[options]``.

    Attributes:
        opset: ONNX operator set, pinned; TensorRT 10.3 parses 9 to 20.
        ir_version: of the file format, pinned.
        operators: ``tensorrt`` refuses operators that TensorRT's parser lacks; ``onnxruntime`` takes ONNX
            Runtime's own for compressed weights; ``any`` takes the standard's.
    """

    opset: int = Field(default=20, ge=18, le=23)
    ir_version: int = Field(default=10, ge=8, le=13)
    operators: Literal["tensorrt", "onnxruntime", "any"] = "any"

    @model_validator(mode="after")
    def _parsable(self) -> Self:
        if self.operators == "tensorrt" and self.opset > TENSORRT_OPSET:
            raise ValueError(f"opset {self.opset}: TensorRT 10.3 parses up to {TENSORRT_OPSET}")
        return self


def _operators(options: Mapping[str, Any]) -> str:
    return check(dict(options), OnnxOptions, "[options]", ConfigError).operators


class OnnxBackend(Backend):
    """.onnx files with external data."""

    name = "onnx"
    converter_bytes, maps_files, bytes_of_restored = 200_000_000, False, 8
    precisions = (
        "fp32, fp16, w16, w8, w8a8, from opset 21 w4, w8_bB and w4_bB, and for ONNX Runtime any of these "
        "weight-only integers with _dyn"
    )

    def supports(self, precision: Precision) -> bool:
        """Floating point, and integers with activations of at most 8 bits; see ``refusal``."""
        if isinstance(precision.weights, Integer):
            return precision.activations is not Activations.INT16
        return precision.floating

    def probe(self) -> Probe:
        """Whether the exporter and ONNX Runtime are installed."""
        return versions.probe(self.name, "onnxruntime", PACKAGES)

    def options(self, request: LowerRequest) -> OnnxOptions:
        """The target's ``[options]``, checked."""
        return check(dict(request.options), OnnxOptions, f"target {request.target} [options]", ConfigError)

    def graph_options(self, request: LowerRequest) -> GraphOptions:
        """Dynamic axes; the cache in Hugging Face's convention."""
        self.options(request)
        if request.sequence.lengths:
            raise ConfigError(
                f"target {request.target}: ONNX graphs have dynamic axes; give [sequence] "
                "max_length, not lengths."
            )
        return GraphOptions(
            lengths=(),
            max_length=request.sequence.longest,
            context=request.sequence.context,
            cache=CacheStyle.GROWING,
            token_dtype=DType.INT64,
            compute_dtype=DType.FLOAT16 if request.recipe.floating == Precision.FP16 else DType.FLOAT32,
        )

    def refusal(self, request: LowerRequest, checkpoint: Checkpoint) -> str:
        """Precisions are refused that the target's opset or operators do not have."""
        del checkpoint
        settings, recipe = self.options(request), request.recipe
        reasons = (_lacks(precision, recipe, settings) for precision in recipe.precisions)
        return next(filter(None, reasons), "")

    def lower(self, request: LowerRequest, checkpoint: Checkpoint, folder: Path, progress: Say) -> Artifact:
        """Writes ``<graph>.onnx`` and its weights in ``<graph>.onnx.data`` for each graph."""
        from mobile_o_export.backends.lowering import Graphs, lower
        from mobile_o_export.backends.onnx.write import FilesWriter

        what = f"{request.component.name} for {request.target}: torch.onnx"
        graphs = Graphs.of(request.component, checkpoint, self.graph_options(request))
        writer = FilesWriter(folder, request.recipe, self.options(request), what)
        return lower(request, graphs, writer, what, progress)

    def finish(
        self, folder: Path, graphs: Mapping[str, tuple[GraphFile, ...]], options: Mapping[str, Any]
    ) -> None:
        """For TensorRT writes its optimisation profiles and the script that builds engines on the device."""
        from mobile_o_export.backends.onnx import tensorrt

        if self.finishing(options):
            tensorrt.write_build(folder, graphs)

    def finishing(self, options: Mapping[str, Any]) -> tuple[str, ...]:
        """The two files for TensorRT."""
        from mobile_o_export.backends.onnx import tensorrt

        needed = _operators(options) == "tensorrt"
        return (tensorrt.PROFILES, tensorrt.BUILD_SCRIPT) if needed else ()

    def least_runtimes(self, options: Mapping[str, Any]) -> Mapping[str, str]:
        """ONNX Runtime's; no TensorRT has been run."""
        return {RUNTIME_PACKAGE: LEAST_RUNTIMES[_operators(options)]}

    def constants(self, artifact: Artifact, folder: Path, component: str) -> Iterator[tuple[str, Array]]:
        """Initializers as their operators restore them."""
        del component
        from mobile_o_export.backends.onnx.contents import graph_constants

        return graph_constants(_files(artifact, folder))

    def contents(self, artifact: Artifact, folder: Path, component: str) -> Contents:
        """Initializers as their operators restore them."""
        from mobile_o_export.backends.onnx.contents import graph_contents

        with captured(f"reading the .onnx files of {component}"):
            found = graph_contents(_files(artifact, folder))
        # A file is one graph, and has no name for it.
        named = {graph.spec.name for graph in artifact.graphs if graph.entry}
        own = {name: interface for name, interface in found.interfaces.items() if name not in named}
        return replace(found, interfaces=own)

    def layout_problem(self, component: str, graphs: Sequence[GraphFile]) -> str:
        """Nothing: each graph is a file of its own."""
        del component, graphs
        return ""

    def open(self, artifact: Artifact, folder: Path, component: str) -> OnnxExecutor:
        """ONNX Runtime over the files."""
        return OnnxExecutor(_files(artifact, folder), component)


def _files(artifact: Artifact, folder: Path) -> dict[str, Path]:
    """The file of each graph.

    Raises:
        ExportError: one takes its weights from elsewhere.
        MissingToolError: neither ONNX nor ONNX Runtime can take their paths.
    """
    from mobile_o_export.backends.onnx.external import require_own_data

    files = {graph.spec.name: folder / graph.file for graph in artifact.graphs}
    for path in set(files.values()):
        if os.fsencode(path).decode(errors="replace") != str(path):
            raise MissingToolError(
                f"ONNX Runtime takes no path that is not UTF-8, and {path} is none; move the bundle "
                "to another folder"
            )
        require_own_data(path)
    return files


def _lacks(precision: Precision, recipe: Recipe, settings: OnnxOptions) -> str:
    """What a target lacks for ``precision``, and what to use instead; nothing if it can be stored."""
    # NvInfer.h, IConvolutionLayer: a kernel that is a tensor must be "an output of a dequantize layer".
    if precision == Precision.W16 and settings.operators == "tensorrt":
        return "TensorRT takes no convolution whose weights are cast, as w16 stores them; use fp16"
    if not isinstance(precision.weights, Integer):
        return ""
    if precision.weights != Integer(8) and settings.opset < nbits.BLOCKS_OPSET:
        return f"{precision} needs opset {nbits.BLOCKS_OPSET}, and this target has {settings.opset}; use w8"
    weight_only = Precision(precision.weights)
    dynamic = precision.activations is Activations.DYNAMIC
    if dynamic and settings.operators != "onnxruntime":
        needs = 'needs operators that only [options] operators = "onnxruntime" allows'
        return f"{precision} {needs}; use {weight_only}"
    if dynamic and recipe.floating == Precision.FP16:
        return f"{precision} scales activations in fp32; compute in w16 or fp32, or use {weight_only}"
    block = precision.weights.block
    if settings.operators == "onnxruntime" and block not in (None, *nbits.BLOCKS):
        *others, last = map(str, nbits.BLOCKS)
        return f"{precision}: ONNX Runtime takes blocks of {', '.join(others)} or {last}; use one"
    return ""


class OnnxExecutor(Executor):
    """ONNX graphs run by ONNX Runtime on the CPU; each is loaded when it is first called."""

    def __init__(self, files: Mapping[str, Path], component: str) -> None:
        # It would look up its maker's host, and keep a database in the user's cache.
        os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
        try:
            import onnxruntime
        except ImportError as error:
            raise MissingToolError(
                f"{component}: .onnx files need ONNX Runtime; pip install onnxruntime"
            ) from error
        self._onnxruntime: Any = onnxruntime
        self.runtime = f"onnxruntime {onnxruntime.__version__} (CPU)"
        self._files = files
        self._sessions: dict[str, Any] = {}

    def run(self, graph: str, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Outputs of one graph."""
        with captured(f"running {graph}.onnx", GateError):
            if graph not in self._sessions:
                settings = self._onnxruntime.SessionOptions()
                settings.log_severity_level = 3
                # By default it makes activations int8 wherever integers are restored for a product.
                settings.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
                self._sessions[graph] = self._onnxruntime.InferenceSession(
                    str(self._files[graph]), settings, providers=["CPUExecutionProvider"]
                )
            session = self._sessions[graph]
            names = [output.name for output in session.get_outputs()]
            return dict(zip(names, session.run(names, dict(inputs)), strict=True))

    def reset(self) -> None:
        """Nothing: the cache travels through inputs and outputs."""

    def close(self) -> None:
        """Closes the sessions."""
        self._sessions.clear()


BACKEND = OnnxBackend()
