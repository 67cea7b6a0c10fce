"""Lowers components with litert-torch (ai-edge-torch's present name) and runs them with ai-edge-litert."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from mobile_o_export.backends import versions
from mobile_o_export.backends.base import Artifact, GraphFile, LowerRequest, Probe
from mobile_o_export.components.base import CacheStyle, GraphOptions
from mobile_o_export.errors import ConfigError, MissingToolError
from mobile_o_export.parity.metrics import Array
from mobile_o_export.precision import Precision
from mobile_o_export.progress import Say
from mobile_o_export.quiet import captured
from mobile_o_export.signals import held_back
from mobile_o_export.strict import Strict, check
from mobile_o_export.tensors import DType

if TYPE_CHECKING:
    from mobile_o_export.checkpoint import Checkpoint

PACKAGES = ("litert-torch", "ai-edge-quantizer", "ai-edge-litert")
RUNTIME_PACKAGE = "ai-edge-litert"
PORTABLE_BYTES = 2**31 - 1
"""A flatbuffer's offsets are signed 32-bit: a larger file loads on some hosts only."""


class LiteRTOptions(Strict):
    """A target's ``[options]``: none yet."""


class LiteRTBackend:
    """.tflite files."""

    name = "litert"
    precisions = (Precision.FP32, Precision.W16)

    def probe(self) -> Probe:
        """Whether the converter and the interpreter are installed."""
        return versions.probe(self.name, RUNTIME_PACKAGE, PACKAGES)

    def graph_options(self, request: LowerRequest) -> GraphOptions:
        """Static shapes, the cache as inputs and outputs."""
        check(dict(request.options), LiteRTOptions, f"target {request.target} [options]", ConfigError)
        if not request.sequence.lengths:
            raise ConfigError(
                f"target {request.target}: LiteRT needs static shapes; give [sequence] lengths."
            )
        return GraphOptions(
            lengths=request.sequence.lengths,
            max_length=request.sequence.longest,
            context=request.sequence.context,
            cache=CacheStyle.FIXED,
            token_dtype=DType.INT32,
        )

    def refusal(self, request: LowerRequest, checkpoint: Checkpoint) -> str:
        """A file that would be too large to be portable is refused."""
        tensors = checkpoint.component_tensors(request.component.name)
        size = sum(tensor.parameters for tensor in tensors) * request.precision.weight_bits // 8
        if size > PORTABLE_BYTES:
            hint = f"; use {Precision.W16}" if request.precision is Precision.FP32 else ""
            return f"{size / 2**30:.1f} GiB of weights exceed the 2 GiB that a .tflite can hold{hint}"
        return ""

    def lower(self, request: LowerRequest, checkpoint: Checkpoint, folder: Path, progress: Say) -> Artifact:
        """Writes ``<component>.tflite``."""
        from mobile_o_export.backends.litert.convert import convert, store_weights_as_fp16

        component, options = request.component, self.graph_options(request)
        specs = component.graphs(checkpoint, options)
        module = component.prepare(component.load(checkpoint), options)
        path = folder / f"{component.name}.tflite"
        what = f"{component.name} for {request.target}: litert-torch"
        progress(f"converting {len(specs)} signature(s)")
        # Its MLIR bindings crash the process when Ctrl-C raises an exception in their middle.
        with held_back(), captured(what):
            convert([(spec, component.graph(module, spec, options)) for spec in specs], path)
        del module
        if request.precision is Precision.W16:
            progress("storing weights as fp16")
            with captured(what):
                store_weights_as_fp16(path)
        return Artifact(tuple(GraphFile(spec, path.name, spec.name) for spec in specs))

    def finish(self, folder: Path, graphs: Mapping[str, tuple[GraphFile, ...]]) -> None:
        """Nothing: each file stands alone."""

    def open(self, artifact: Artifact, folder: Path, component: str) -> LiteRTExecutor:
        """The interpreter over the file."""
        (file,) = {graph.file for graph in artifact.graphs}
        return LiteRTExecutor(folder / file, component)


class LiteRTExecutor:
    """Signatures of one .tflite, run by LiteRT's interpreter on the CPU."""

    def __init__(self, path: Path, component: str) -> None:
        try:
            with captured(f"{component}: importing {RUNTIME_PACKAGE}"):
                from ai_edge_litert.interpreter import Interpreter
        except ImportError as error:
            raise MissingToolError(
                f"{component}: .tflite files need {RUNTIME_PACKAGE}; pip install {RUNTIME_PACKAGE}"
            ) from error
        version = versions.installed([RUNTIME_PACKAGE])[RUNTIME_PACKAGE]
        self.runtime = f"{RUNTIME_PACKAGE} {version} (XNNPACK)"
        with captured(f"{component}: loading {path.name}"):
            self._interpreter: Any = Interpreter(str(path), num_threads=os.cpu_count())
            self._runners: dict[str, Any] = {}

    def run(self, graph: str, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Outputs of one signature."""
        with captured(f"running signature {graph}"):
            if graph not in self._runners:
                self._runners[graph] = self._interpreter.get_signature_runner(graph)
            outputs: dict[str, Array] = self._runners[graph](**inputs)
        return outputs

    def reset(self) -> None:
        """Nothing: the cache travels through inputs and outputs."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._runners.clear()
        self._interpreter = None


BACKEND = LiteRTBackend()
