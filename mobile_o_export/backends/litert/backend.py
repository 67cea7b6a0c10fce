"""Lowers components with litert-torch (ai-edge-torch's present name) and runs them with ai-edge-litert."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mobile_o_export.backends import versions
from mobile_o_export.backends.base import Artifact, Backend, Executor, LowerRequest, Probe
from mobile_o_export.backends.litert import flatbuffer
from mobile_o_export.components.base import CacheStyle, GraphOptions
from mobile_o_export.errors import ConfigError, GateError, MissingToolError
from mobile_o_export.parity.metrics import Array
from mobile_o_export.precision import Activations, Floats, Integer, Precision
from mobile_o_export.progress import Say
from mobile_o_export.quiet import captured
from mobile_o_export.strict import Strict, check
from mobile_o_export.tensors import DType

if TYPE_CHECKING:
    from mobile_o_export.backends.contents import Contents
    from mobile_o_export.checkpoint import Checkpoint

PACKAGES = ("litert-torch", "ai-edge-litert")
RUNTIME_PACKAGE = "ai-edge-litert"
LEAST_RUNTIMES = {RUNTIME_PACKAGE: "1.2.0"}
"""It passes every gate of the demo's bundle, and ``make readers`` runs it.

1.1 does not: what it makes int8 of activations (``w8_dyn``) leaves 22 dB of the DiT, not 33.
"""

FAST_BLOCK = 32
"""XNNPACK takes blocks of multiples of this; others fall to a kernel measured at 400 times its time."""


class LiteRTOptions(Strict):
    """A target's ``[options]``.

    Attributes:
        operators: "gpu" for a file of which LiteRT's GPU accelerator takes every operator; "npu" for one that
            is spared gathers, selections and tensors of more than four axes likewise, without a check.
    """

    operators: Literal["any", "gpu", "npu"] = "any"


class LiteRTBackend(Backend):
    """.tflite files."""

    name = "litert"
    converter_bytes, maps_files, bytes_of_restored = 350_000_000, True, 6
    precisions = (
        f"fp32, fp16, w16, w4, w8, w4_dyn, w8_dyn, w4_bB_dyn (B a multiple of {FAST_BLOCK}), w8a8 and w8a16"
    )

    def supports(self, precision: Precision) -> bool:
        """fp32 arithmetic, or integer activations; scales of blocks with dynamic ones alone."""
        match precision.weights:
            case Integer(bits, block) if block is not None:
                dynamic = precision.activations is Activations.DYNAMIC
                return bits == 4 and dynamic and block % FAST_BLOCK == 0
            case Integer():
                return True
        return isinstance(precision.weights, Floats)

    def probe(self) -> Probe:
        """Whether the converter and the interpreter are installed."""
        return versions.probe(self.name, RUNTIME_PACKAGE, PACKAGES)

    def options(self, request: LowerRequest) -> LiteRTOptions:
        """The target's ``[options]``, checked."""
        return check(dict(request.options), LiteRTOptions, f"target {request.target} [options]", ConfigError)

    def graph_options(self, request: LowerRequest) -> GraphOptions:
        """Static shapes, the cache as inputs and outputs; for accelerators in fp16 what stays in range."""
        wanted = self.options(request)
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
            elementary=wanted.operators != "any",
            half_safe=request.recipe.floating == Precision.FP16,
        )

    def refusal(self, request: LowerRequest, checkpoint: Checkpoint) -> str:
        """A file that would be too large to be portable is refused, whatever its rules."""
        tensors = checkpoint.component_tensors(request.component.name)
        bits = min(precision.weight_bits for precision in request.recipe.precisions)
        size = sum(tensor.parameters for tensor in tensors) * bits // 8
        if size > flatbuffer.PORTABLE_BYTES:
            hint = f"; use {Precision.W16}" if request.recipe.floating == Precision.FP32 else ""
            return f"{size / 2**30:.1f} GiB of weights exceed the 2 GiB that a .tflite can hold{hint}"
        return ""

    def lower(self, request: LowerRequest, checkpoint: Checkpoint, folder: Path, progress: Say) -> Artifact:
        """Writes ``<component>.tflite``."""
        from mobile_o_export.backends.litert import gpu
        from mobile_o_export.backends.litert.write import FileWriter
        from mobile_o_export.backends.lowering import Graphs, lower

        component = request.component
        what = f"{component.name} for {request.target}: litert-torch"
        path = folder / f"{component.name}.tflite"
        graphs = Graphs.of(component, checkpoint, self.graph_options(request))
        artifact = lower(request, graphs, FileWriter(path, request, what), what, progress)
        if self.options(request).operators == "gpu":
            gpu.require_taken(path, component.name)
        return artifact

    def least_runtimes(self, options: Mapping[str, Any]) -> Mapping[str, str]:
        """LiteRT's."""
        del options
        return LEAST_RUNTIMES

    def constants(self, artifact: Artifact, folder: Path, component: str) -> Iterator[tuple[str, Array]]:
        """Buffers as LiteRT restores them."""
        del component
        from mobile_o_export.backends.litert.contents import model_constants

        (file,) = {graph.file for graph in artifact.graphs}
        return model_constants(flatbuffer.read_model(folder / file))

    def contents(self, artifact: Artifact, folder: Path, component: str) -> Contents:
        """Buffers as LiteRT restores them."""
        from mobile_o_export.backends.litert.contents import file_contents

        (file,) = {graph.file for graph in artifact.graphs}
        with captured(f"reading {file} of {component}"):
            return file_contents(folder / file, _entries(artifact))

    def open(self, artifact: Artifact, folder: Path, component: str) -> LiteRTExecutor:
        """The interpreter over the file."""
        (file,) = {graph.file for graph in artifact.graphs}
        return LiteRTExecutor(folder / file, _entries(artifact), component)


def _entries(artifact: Artifact) -> dict[str, str]:
    """The signature of each graph."""
    return {graph.spec.name: graph.entry for graph in artifact.graphs}


class LiteRTExecutor(Executor):
    """Signatures of one .tflite, run by LiteRT's interpreter on the CPU."""

    def __init__(self, path: Path, entries: Mapping[str, str], component: str) -> None:
        try:
            with captured(f"{component}: importing {RUNTIME_PACKAGE}"):
                from ai_edge_litert.interpreter import Interpreter
        except ImportError as error:
            raise MissingToolError(
                f"{component}: .tflite files need {RUNTIME_PACKAGE}; pip install {RUNTIME_PACKAGE}"
            ) from error
        version = versions.installed([RUNTIME_PACKAGE])[RUNTIME_PACKAGE]
        self.runtime = f"{RUNTIME_PACKAGE} {version} (XNNPACK)"
        self.threads = os.cpu_count()
        with captured(f"{component}: loading {path.name}", GateError):
            # As bytes: it takes no text of a path that is not UTF-8.
            self._interpreter: Any = Interpreter(os.fsencode(path), num_threads=self.threads)
        self._entries = entries
        self._runners: dict[str, Any] = {}

    def run(self, graph: str, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Outputs of one signature."""
        entry = self._entries[graph]
        with captured(f"running signature {entry}", GateError):
            if graph not in self._runners:
                self._runners[graph] = self._interpreter.get_signature_runner(entry)
            outputs: dict[str, Array] = self._runners[graph](**inputs)
        return outputs

    def reset(self) -> None:
        """Nothing: the cache travels through inputs and outputs."""

    def close(self) -> None:
        """Closes the interpreter."""
        self._runners.clear()
        self._interpreter = None


BACKEND = LiteRTBackend()
