"""Composes the app's model folder: packages lowered and run as Core ML's, ``llm/`` in MLX's format."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mobile_o_export.backends import versions
from mobile_o_export.backends.base import (
    Artifact,
    Backend,
    Executor,
    GraphFile,
    LowerRequest,
    Probe,
    several_files,
)
from mobile_o_export.backends.coreml.backend import BACKEND as COREML
from mobile_o_export.backends.coreml.backend import open_package, package_constants, read_package
from mobile_o_export.backends.mobile_o_app import language, packages
from mobile_o_export.components.base import CacheStyle, GraphOptions
from mobile_o_export.errors import ConfigError
from mobile_o_export.precision import Affine, Precision
from mobile_o_export.progress import Say
from mobile_o_export.strict import Strict, check
from mobile_o_export.tensors import DType, Role, TensorSpec

if TYPE_CHECKING:
    from mobile_o_export.backends.contents import Contents
    from mobile_o_export.checkpoint import Checkpoint
    from mobile_o_export.parity.metrics import Array

PACKAGES = ("coremltools", "safetensors", "transformers")


class NoOptions(Strict):
    """A target's ``[options]``: the app leaves none."""


class MobileOAppBackend(Backend):
    """The folder that the published iOS app downloads."""

    name = "mobile-o-app"
    converter_bytes, maps_files = COREML.converter_bytes, COREML.maps_files
    bytes_of_restored = COREML.bytes_of_restored
    precisions = f"{COREML.precisions}, and for the llm w4_affine_bB and w8_affine_bB"

    def supports(self, precision: Precision) -> bool:
        """What Core ML packages hold, and MLX's affine integers; see ``refusal``."""
        return isinstance(precision.weights, Affine) or COREML.supports(precision)

    def probe(self) -> Probe:
        """Whether coremltools and what reads ``llm/`` are installed."""
        return versions.probe(self.name, f"{COREML.probe().runtime}, transformers", PACKAGES)

    def graph_options(self, request: LowerRequest) -> GraphOptions:
        """Lengths that vary, as the app has them, and in fp16 the rewrites that stay in range."""
        check(dict(request.options), NoOptions, f"target {request.target} [options]", ConfigError)
        if request.sequence.lengths or request.sequence.longest < packages.LEAST_LENGTH:
            raise ConfigError(
                f"target {request.target}: the app's prompts have {packages.LEAST_LENGTH} positions or more. "
                "Give [sequence] max_length = 512, the most that it takes, and no lengths."
            )
        return GraphOptions(
            lengths=(),
            max_length=request.sequence.longest,
            context=request.sequence.context,
            cache=CacheStyle.GROWING,
            token_dtype=DType.INT32,
            half_safe=request.recipe.floating == Precision.FP16,
        )

    def refusal(self, request: LowerRequest, checkpoint: Checkpoint) -> str:
        """Offsets are for ``llm/`` alone, which holds only fp16 beside, and what the vision encoder needs."""
        if request.component.name == language.LANGUAGE:
            return language.language_refusal(request.recipe, request.component, checkpoint)
        if affine := [kind for kind in request.recipe.precisions if isinstance(kind.weights, Affine)]:
            return f"{affine[0]} is MLX's, for the llm; Core ML packages are written without offsets"
        if request.component.name == packages.VISION and language.LANGUAGE in request.absent:
            return "the app keeps the vision encoder's projector in llm/: export the llm as well"
        return ""

    def lower(self, request: LowerRequest, checkpoint: Checkpoint, folder: Path, progress: Say) -> Artifact:
        """Writes the component's package, or ``llm/``."""
        component, options = request.component, self.graph_options(request)
        if component.name == language.LANGUAGE:
            specs = language.language_specs(component, checkpoint, options)
            return language.write_language(request, specs, checkpoint, folder, progress)
        from mobile_o_export.backends.coreml.write import write_package

        spec, *further = packages.package_specs(component, checkpoint, options)
        written = write_package(
            folder / packages.PACKAGES[component.name].file,
            packages.package_graphs(component, spec, checkpoint, options),
            request,
            progress,
        )
        beside = (GraphFile(own, language.FILE, "") for own in further)
        return Artifact((*written.graphs, *beside), written.weights)

    def folder(self, component: str) -> str:
        """All of them lie together."""
        del component
        return ""

    def least_runtimes(self, options: Mapping[str, Any]) -> Mapping[str, str]:
        """What Core ML's packages declare."""
        return COREML.least_runtimes(options)

    def constants(self, artifact: Artifact, folder: Path, component: str) -> Iterator[tuple[str, Array]]:
        """Packages' as Core ML's; of ``llm/`` what MLX restores."""
        from mobile_o_export.backends.mobile_o_app.mlx import read_weights

        if component == language.LANGUAGE:
            return read_weights(folder / language.LANGUAGE)
        return package_constants(_packaged(artifact), folder, component)

    def contents(self, artifact: Artifact, folder: Path, component: str) -> Contents:
        """Packages as Core ML's; of ``llm/`` what MLX restores. The vision encoder's are its package's."""
        from mobile_o_export.backends.mobile_o_app.contents import language_contents

        if component == language.LANGUAGE:
            return language_contents(folder / language.LANGUAGE)
        return read_package(_packaged(artifact), folder, component)

    def layout_problem(self, component: str, graphs: Sequence[GraphFile]) -> str:
        """``llm/`` holds the llm, and of the vision encoder what takes its features on; else one package."""
        package = [graph for graph in graphs if graph.file != language.FILE]
        if component != language.LANGUAGE:
            return several_files(package)
        if package:
            return f"its graphs have to be in {language.FILE}"
        states = _hidden_states(graphs)
        fixed = len(states) == 1 and len(states[0].shape) > 1 and isinstance(states[0].shape[1], int)
        return "" if fixed else "its graphs have to give a fixed number of hidden states, once"

    def open(self, artifact: Artifact, folder: Path, component: str) -> Executor:
        """Packages as Core ML's; ``llm/`` by PyTorch on the weights that MLX would restore."""
        from mobile_o_export.backends.mobile_o_app.executors import LanguageExecutor, VisionExecutor

        place = folder / language.LANGUAGE
        if component == language.LANGUAGE:
            return LanguageExecutor(place, _conditioning_layers(artifact.graphs))
        executor = open_package(_packaged(artifact), folder, component)
        return VisionExecutor(executor, place) if component == packages.VISION else executor


def _packaged(artifact: Artifact) -> list[GraphFile]:
    """The graphs that are in a package: of the vision encoder not the projector."""
    return [graph for graph in artifact.graphs if graph.file != language.FILE]


def _hidden_states(graphs: Sequence[GraphFile]) -> list[TensorSpec]:
    """The outputs that are hidden states."""
    outputs = (tensor for graph in graphs for tensor in graph.spec.outputs)
    return [tensor for tensor in outputs if tensor.role is Role.HIDDEN_STATES]


def _conditioning_layers(graphs: Sequence[GraphFile]) -> int:
    """How many hidden states the llm's graph gives."""
    (states,) = _hidden_states(graphs)
    layers = states.shape[1]
    assert isinstance(layers, int)
    return layers


BACKEND = MobileOAppBackend()
