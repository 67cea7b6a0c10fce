"""Lowers components with coremltools; runs packages with Core ML on macOS, with our interpreter anywhere."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from mobile_o_export.backends import versions
from mobile_o_export.backends.base import Artifact, Backend, Executor, GraphFile, LowerRequest, Probe
from mobile_o_export.components.base import CacheStyle, GraphOptions
from mobile_o_export.errors import ConfigError, MissingToolError
from mobile_o_export.precision import Activations, Affine, Precision
from mobile_o_export.progress import Say
from mobile_o_export.quiet import captured
from mobile_o_export.strict import Strict, check
from mobile_o_export.tensors import DType

if TYPE_CHECKING:
    from mobile_o_export.backends.contents import Contents
    from mobile_o_export.checkpoint import Checkpoint
    from mobile_o_export.parity.metrics import Array

PACKAGES = ("coremltools",)
NEURAL_ENGINE_BYTES = 10**9
"""Of a package. Larger ones were seen on other processors of a phone, with no message; not tried here."""

SYSTEMS = {"iOS": "18", "macOS": "15"}
"""What reads the specification that states and several functions need, as Apple has it; not run here."""


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
    converter_bytes, maps_files, bytes_of_restored = 300_000_000, True, 6
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

    def caution(self, request: LowerRequest, size_bytes: int) -> str:
        """Where a package for the Neural Engine is larger than devices were seen to run on it."""
        if self.options(request).head_chunk is None or size_bytes <= NEURAL_ENGINE_BYTES:
            return ""
        return (
            f"a package of {size_bytes / 1e9:.2f} GB: above 1 GB, devices may leave the Neural Engine for "
            "the GPU or the CPU and say nothing; fewer bits make it smaller"
        )

    def lower(self, request: LowerRequest, checkpoint: Checkpoint, folder: Path, progress: Say) -> Artifact:
        """Writes ``<component>.mlpackage``, a multifunction package where there are several graphs."""
        from mobile_o_export.backends.coreml.write import write_package
        from mobile_o_export.backends.lowering import Graphs

        component = request.component
        graphs = Graphs.of(component, checkpoint, self.graph_options(request))
        return write_package(folder / f"{component.name}.mlpackage", graphs, request, progress)

    def least_runtimes(self, options: Mapping[str, Any]) -> Mapping[str, str]:
        """What the packages declare."""
        del options
        return SYSTEMS

    def constants(self, artifact: Artifact, folder: Path, component: str) -> Iterator[tuple[str, Array]]:
        """Constants as the MIL interpreter restores them."""
        return package_constants(artifact.graphs, folder, component)

    def contents(self, artifact: Artifact, folder: Path, component: str) -> Contents:
        """Constants as the MIL interpreter restores them."""
        return read_package(artifact.graphs, folder, component)

    def open(self, artifact: Artifact, folder: Path, component: str) -> Executor:
        """Core ML itself on macOS, the interpreter elsewhere."""
        return open_package(artifact.graphs, folder, component)


def open_package(graphs: Sequence[GraphFile], folder: Path, component: str) -> Executor:
    """Core ML itself on macOS, the interpreter elsewhere; ``graphs`` are of one package below ``folder``."""
    file, entries = _package(graphs)
    if sys.platform == "darwin":
        from mobile_o_export.backends.coreml.native import CoreMLExecutor

        return CoreMLExecutor(folder / file, entries, component)
    from mobile_o_export.backends.coreml.interpreted import InterpreterExecutor

    return InterpreterExecutor(folder / file, entries, component)


def read_package(graphs: Sequence[GraphFile], folder: Path, component: str) -> Contents:
    """What the one package of ``graphs`` below ``folder`` holds.

    Raises:
        MissingToolError: coremltools is not installed.
    """
    file, entries = _package(graphs)
    try:
        with captured(f"reading {file} of {component}"):
            from mobile_o_export.backends.coreml.contents import package_contents

            return package_contents(folder / file, entries, component)
    except ImportError as error:
        raise MissingToolError(
            f"{component}: .mlpackage folders need coremltools; pip install coremltools"
        ) from error


def package_constants(
    graphs: Sequence[GraphFile], folder: Path, component: str
) -> Iterator[tuple[str, Array]]:
    """Every constant of the one package of ``graphs`` below ``folder``."""
    from mobile_o_export.backends.coreml.contents import program_constants
    from mobile_o_export.backends.coreml.interpreter import load_mlpackage

    return program_constants(load_mlpackage(folder / _package(graphs)[0]), component)


def _package(graphs: Sequence[GraphFile]) -> tuple[str, Mapping[str, str]]:
    """The one package of ``graphs``, and the function of each."""
    (file,) = {graph.file for graph in graphs}
    return file, {graph.spec.name: graph.entry for graph in graphs}


BACKEND = CoreMLBackend()
