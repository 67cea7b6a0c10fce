"""Lowers components with coremltools; runs packages with Core ML on macOS, with our interpreter anywhere."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from mobile_o_export.backends import versions
from mobile_o_export.backends.base import Artifact, Backend, Executor, GraphFile, LowerRequest, Probe
from mobile_o_export.components.base import CacheStyle, GraphOptions
from mobile_o_export.errors import ConfigError
from mobile_o_export.precision import Activations, Affine, Precision
from mobile_o_export.progress import Say
from mobile_o_export.strict import Strict, check
from mobile_o_export.tensors import DType

if TYPE_CHECKING:
    from mobile_o_export.checkpoint import Checkpoint

PACKAGES = ("coremltools",)


class CoreMLOptions(Strict):
    """A target's ``[options]``.

    Attributes:
        minimum_deployment_target: states and multifunction packages need iOS 18.
        head_chunk: the widest piece of the vocabulary head; the Neural Engine takes no dimension above
            16384.
    """

    minimum_deployment_target: Literal["iOS18"] = "iOS18"
    head_chunk: int | None = Field(default=None, ge=1)


class CoreMLBackend(Backend):
    """.mlpackage folders."""

    name = "coreml"
    memory_per_weight_byte = 3.5
    precisions = "fp32, fp16, wN_lut and wN_lut_gC (N 1, 2, 3, 4, 6 or 8), w4, w8, w4_bB, w8_bB and w8a8"

    def supports(self, precision: Precision) -> bool:
        """No fp16 weights under fp32 arithmetic, no offsets; of integer activations calibrated int8."""
        if precision == Precision.W16 or isinstance(precision.weights, Affine):
            return False
        return precision.activations in (None, Activations.INT8)

    def probe(self) -> Probe:
        """Whether coremltools is installed, and which runtime this host has."""
        runtime = "Core ML" if sys.platform == "darwin" else "MIL interpreter of mobile-o-export"
        return versions.probe(self.name, runtime, PACKAGES)

    def options(self, request: LowerRequest) -> CoreMLOptions:
        """The target's ``[options]``, checked."""
        return check(dict(request.options), CoreMLOptions, f"target {request.target} [options]", ConfigError)

    def graph_options(self, request: LowerRequest) -> GraphOptions:
        """Static shapes, the cache as states, and in fp16 the rewrites that stay in range."""
        if not request.sequence.lengths:
            raise ConfigError(
                f"target {request.target}: the Neural Engine needs static shapes; give [sequence] lengths."
            )
        return GraphOptions(
            lengths=request.sequence.lengths,
            max_length=request.sequence.longest,
            context=request.sequence.context,
            cache=CacheStyle.STATE,
            token_dtype=DType.INT32,
            half_safe=request.recipe.floating == Precision.FP16,
            head_chunk=self.options(request).head_chunk,
        )

    def refusal(self, request: LowerRequest, checkpoint: Checkpoint) -> str:
        """Nothing beyond the precision is refused."""
        del request, checkpoint
        return ""

    def lower(self, request: LowerRequest, checkpoint: Checkpoint, folder: Path, progress: Say) -> Artifact:
        """Writes ``<component>.mlpackage``, a multifunction package where there are several graphs."""
        from mobile_o_export.backends.coreml.write import write_package

        component, options = request.component, self.graph_options(request)
        return write_package(
            folder / f"{component.name}.mlpackage",
            component.graphs(checkpoint, options),
            lambda: component.prepare(component.load(checkpoint), options),
            lambda module, spec: component.graph(module, spec, options),
            request,
            progress,
        )

    def open(self, artifact: Artifact, folder: Path, component: str) -> Executor:
        """Core ML itself on macOS, the interpreter elsewhere."""
        return open_package(artifact.graphs, folder, component)


def open_package(graphs: Sequence[GraphFile], folder: Path, component: str) -> Executor:
    """Core ML itself on macOS, the interpreter elsewhere; ``graphs`` are of one package below ``folder``."""
    (file,) = {graph.file for graph in graphs}
    entries: Mapping[str, str] = {graph.spec.name: graph.entry for graph in graphs}
    if sys.platform == "darwin":
        from mobile_o_export.backends.coreml.native import CoreMLExecutor

        return CoreMLExecutor(folder / file, entries, component)
    from mobile_o_export.backends.coreml.interpreted import InterpreterExecutor

    return InterpreterExecutor(folder / file, entries, component)


BACKEND = CoreMLBackend()
