"""Lowers components with torch's ONNX exporter and runs them with ONNX Runtime."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import Field, model_validator

from mobile_o_export.backends import versions
from mobile_o_export.backends.base import Artifact, GraphFile, LowerRequest, Probe
from mobile_o_export.components.base import CacheStyle, GraphOptions
from mobile_o_export.errors import ConfigError, LoweringError, MissingToolError
from mobile_o_export.parity.metrics import Array
from mobile_o_export.precision import Precision
from mobile_o_export.progress import Say
from mobile_o_export.quiet import captured
from mobile_o_export.strict import Strict, check
from mobile_o_export.tensors import DType

if TYPE_CHECKING:
    from mobile_o_export.checkpoint import Checkpoint

PACKAGES = ("onnx", "onnxscript", "onnx-ir", "onnxruntime")


class OnnxOptions(Strict):
    """A target's ``[options]``.

    Attributes:
        opset: ONNX operator set, pinned; TensorRT 10.3 parses 9 to 20.
        ir_version: of the file format, pinned.
        operators: ``tensorrt`` refuses operators that TensorRT's parser lacks; ``any`` does not.
    """

    opset: int = Field(default=20, ge=18, le=23)
    ir_version: int = Field(default=10, ge=8, le=13)
    operators: Literal["tensorrt", "any"] = "any"

    @model_validator(mode="after")
    def _parsable(self) -> Self:
        if self.operators == "tensorrt" and self.opset > 20:
            raise ValueError(f"opset {self.opset}: TensorRT 10.3 parses up to 20")
        return self


class OnnxBackend:
    """.onnx files with external data."""

    name = "onnx"
    precisions = (Precision.FP32, Precision.FP16)

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
            compute_dtype=DType.FLOAT16 if request.precision is Precision.FP16 else DType.FLOAT32,
        )

    def refusal(self, request: LowerRequest, checkpoint: Checkpoint) -> str:
        """Nothing beyond the precision is refused."""
        del request, checkpoint
        return ""

    def lower(self, request: LowerRequest, checkpoint: Checkpoint, folder: Path, progress: Say) -> Artifact:
        """Writes ``<graph>.onnx`` and its weights in ``<graph>.onnx.data`` for each graph."""
        from mobile_o_export.backends.onnx import tensorrt
        from mobile_o_export.backends.onnx.convert import convert

        component, options, settings = request.component, self.graph_options(request), self.options(request)
        module = component.prepare(component.load(checkpoint), options)
        files = []
        for spec in component.graphs(checkpoint, options):
            progress(f"exporting {spec.name}")
            path = folder / f"{spec.name}.onnx"
            with captured(f"{component.name} for {request.target}: torch.onnx ({spec.name})"):
                operators = convert(spec, component.graph(module, spec, options), path, settings)
            if settings.operators == "tensorrt" and (unknown := tensorrt.unsupported(operators)):
                raise LoweringError(
                    f"{component.name} for {request.target}: {spec.name} uses {', '.join(unknown)}, which "
                    "TensorRT's parser lacks; rewrite the module so that it lowers to other operators."
                )
            files.append(GraphFile(spec, path.name, ""))
        return Artifact(tuple(files))

    def finish(self, folder: Path, graphs: Mapping[str, tuple[GraphFile, ...]]) -> None:
        """Writes TensorRT's optimisation profiles and the script that builds engines on the device."""
        from mobile_o_export.backends.onnx import tensorrt

        tensorrt.write_build(folder, graphs)

    def open(self, artifact: Artifact, folder: Path, component: str) -> OnnxExecutor:
        """ONNX Runtime over the files."""
        return OnnxExecutor({graph.spec.name: folder / graph.file for graph in artifact.graphs}, component)


class OnnxExecutor:
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
        with captured(f"running {graph}.onnx"):
            if graph not in self._sessions:
                settings = self._onnxruntime.SessionOptions()
                settings.log_severity_level = 3
                self._sessions[graph] = self._onnxruntime.InferenceSession(
                    str(self._files[graph]), settings, providers=["CPUExecutionProvider"]
                )
            session = self._sessions[graph]
            names = [output.name for output in session.get_outputs()]
            return dict(zip(names, session.run(names, dict(inputs)), strict=True))

    def reset(self) -> None:
        """Nothing: the cache travels through inputs and outputs."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._sessions.clear()


BACKEND = OnnxBackend()
