"""Lowers components with coremltools; runs packages with Core ML on macOS, with our interpreter anywhere."""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from mobile_o_export.backends import versions
from mobile_o_export.backends.base import Artifact, Executor, GraphFile, LowerRequest, Probe
from mobile_o_export.components.base import CacheStyle, GraphOptions
from mobile_o_export.errors import ConfigError
from mobile_o_export.precision import Activations, Precision
from mobile_o_export.progress import Say
from mobile_o_export.quiet import captured
from mobile_o_export.strict import Strict, check
from mobile_o_export.tensors import DType

if TYPE_CHECKING:
    from mobile_o_export.checkpoint import Checkpoint

PACKAGES = ("coremltools",)
DEFAULT_FUNCTION = "main"
"""What Core ML calls the only function of a package."""


class CoreMLOptions(Strict):
    """A target's ``[options]``.

    Attributes:
        minimum_deployment_target: states and multifunction packages need iOS 18.
        head_chunk: the widest piece of the vocabulary head; the Neural Engine takes no dimension above
            16384.
    """

    minimum_deployment_target: Literal["iOS18"] = "iOS18"
    head_chunk: int | None = Field(default=None, ge=1)


class CoreMLBackend:
    """.mlpackage folders."""

    name = "coreml"
    precisions = "fp32, fp16, wN_lut and wN_lut_gC (N 1, 2, 3, 4, 6 or 8), w4, w8, w4_bB, w8_bB and w8a8"

    def supports(self, precision: Precision) -> bool:
        """Everything but fp16 weights under fp32 arithmetic; of integer activations calibrated int8."""
        return precision != Precision.W16 and precision.activations in (None, Activations.INT8)

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
        from mobile_o_export.backends.coreml import convert
        from mobile_o_export.backends.coreml.encode import Encoder
        from mobile_o_export.backends.coreml.rewrites import spell_out_tanh_gelu
        from mobile_o_export.compression.check import check_weights
        from mobile_o_export.compression.compress import compress_module
        from mobile_o_export.compression.recognise import Recogniser

        component, options = request.component, self.graph_options(request)
        what = f"{component.name} for {request.target}: coremltools"
        specs = component.graphs(checkpoint, options)
        module = component.prepare(component.load(checkpoint), options)
        spell_out_tanh_gelu(module)
        weights = Recogniser(compress_module(module, request.recipe, what, progress, request.statistics))
        encoder = Encoder(weights)
        package = folder / f"{component.name}.mlpackage"
        half = request.recipe.floating == Precision.FP16
        with tempfile.TemporaryDirectory(dir=folder) as work:
            parts = {}
            for spec in specs:
                progress(f"converting {spec.name}")
                parts[spec.name] = Path(work) / f"{spec.name}.mlpackage"
                with captured(f"{what} ({spec.name})"):
                    graph = component.graph(module, spec, options)
                    convert.convert(spec, graph, parts[spec.name], half=half, encoder=encoder)
            del module, graph
            weights.require_all(component.name)
            if len(specs) == 1:
                shutil.move(parts[specs[0].name], package)
            else:
                progress("sharing the functions' weights")
                with captured(f"{what} (multifunction)"):
                    convert.merge(parts, package)
        entries = {spec.name: spec.name if len(specs) > 1 else DEFAULT_FUNCTION for spec in specs}
        with captured(f"{what} (description)"):
            convert.describe(package, {entries[spec.name]: spec for spec in specs}, component.name)
        progress("reading the weights back")
        stored = encoder.stored(package, component.name)
        rows = check_weights(weights.compressed, stored, component.name)
        return Artifact(tuple(GraphFile(spec, package.name, entries[spec.name]) for spec in specs), rows)

    def finish(
        self, folder: Path, graphs: Mapping[str, tuple[GraphFile, ...]], options: Mapping[str, Any]
    ) -> None:
        """Nothing: each file stands alone."""

    def open(self, artifact: Artifact, folder: Path, component: str) -> Executor:
        """Core ML itself on macOS, the interpreter elsewhere."""
        (file,) = {graph.file for graph in artifact.graphs}
        entries: Mapping[str, str] = {graph.spec.name: graph.entry for graph in artifact.graphs}
        if sys.platform == "darwin":
            from mobile_o_export.backends.coreml.native import CoreMLExecutor

            return CoreMLExecutor(folder / file, entries, component)
        from mobile_o_export.backends.coreml.interpreted import InterpreterExecutor

        return InterpreterExecutor(folder / file, entries, component)


BACKEND = CoreMLBackend()
