"""A module's graphs → one package: weights compressed, converted, encoded, merged, read back."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mobile_o_export.backends.base import Artifact, GraphFile, LowerRequest
from mobile_o_export.backends.coreml import convert
from mobile_o_export.backends.coreml.encode import Encoder
from mobile_o_export.backends.coreml.rewrites import spell_out_tanh_gelu
from mobile_o_export.backends.coreml.weightfile import WeightFile
from mobile_o_export.backends.lowering import Graphs, Writer, lower
from mobile_o_export.compression.compress import round_inputs
from mobile_o_export.members import MemberName
from mobile_o_export.precision import Precision
from mobile_o_export.progress import Say, silent
from mobile_o_export.quiet import captured

if TYPE_CHECKING:
    from torch import nn

    from mobile_o_export.components.base import GraphSpec
    from mobile_o_export.compression.compress import Compressed
    from mobile_o_export.compression.placeholders import Placeholders
    from mobile_o_export.parity.metrics import Array

LEAST_SCALE = float(np.finfo(np.float16).tiny)
"""fp16's smallest normal number; an accelerator may take what is below it for zero."""

DEFAULT_FUNCTION = "main"
"""What Core ML calls the only function of a package."""


def write_package(package: Path, graphs: Graphs, request: LowerRequest, progress: Say) -> Artifact:
    """Writes ``package``, of one function or, where there are several graphs, of one each.

    Args:
        package: the ``.mlpackage`` folder to be; what is beside it is left alone.
        graphs: its functions.
        request: says the precisions, and names component and target.
        progress: told what happens.

    Raises:
        As ``lower``.
    """
    what = f"{request.component.name} for {request.target}: coremltools"
    return lower(request, graphs, PackageWriter(package, request, what), what, progress)


class PackageWriter(Writer):
    """Writes one package."""

    least_scale = LEAST_SCALE

    def __init__(self, package: Path, request: LowerRequest, what: str) -> None:
        self._package = package
        self._component = request.component.name
        self._half = request.recipe.floating == Precision.FP16
        self._what = what

    def alter(self, module: nn.Module, compressed: Mapping[str, Compressed]) -> None:
        """Has GELUs be what coremltools knows, and inputs integers where they are calibrated."""
        spell_out_tanh_gelu(module)
        round_inputs(module, compressed)

    def write(
        self, graphs: Iterator[tuple[GraphSpec, nn.Module]], weights: Placeholders, progress: Say
    ) -> tuple[GraphFile, ...]:
        """The package."""
        self._encoder = Encoder(weights)
        return write_graphs(
            self._package,
            graphs,
            self._encoder,
            self._component,
            half=self._half,
            what=self._what,
            progress=progress,
        )

    def stored(self) -> Iterator[tuple[str, str, Array]]:
        """As the MIL interpreter restores them."""
        return self._encoder.stored(self._package, self._component)


def write_graphs(
    package: Path,
    graphs: Iterable[tuple[GraphSpec, nn.Module]],
    encoder: Encoder,
    component: str,
    *,
    half: bool,
    what: str,
    progress: Say = silent,
) -> tuple[GraphFile, ...]:
    """Writes ``package`` of ``graphs``, whose weights may be placeholders; where each lies.

    Args:
        package: the ``.mlpackage`` folder to be.
        graphs: what each takes and gives, and the graph.
        encoder: knows the weights.
        component: of the model, for messages and for Xcode.
        half: whether the programs compute in fp16.
        what: is done, for messages.
        progress: told what happens.

    Raises:
        LoweringError: coremltools failed.
        ExportError: a weight is in no graph, or was changed on its way there.
    """
    with tempfile.TemporaryDirectory(dir=package.parent) as work:
        weights = WeightFile(Path(work) / "weights")
        specs, parts = {}, {}
        for spec, module in graphs:
            progress(f"converting {spec.name}")
            specs[spec.name] = spec
            with captured(f"{what} ({spec.name})"):
                parts[spec.name] = convert.convert(
                    spec, module, Path(work), half=half, encoder=encoder, weights=weights
                )
        encoder.require_all(component)
        entry = {name: name if len(specs) > 1 else DEFAULT_FUNCTION for name in specs}
        with captured(f"{what} (package)"):
            model = convert.merge(parts) if len(parts) > 1 else next(iter(parts.values()))
            described = {entry[name]: spec for name, spec in specs.items()}
            convert.write(model, weights, package, described, component)
    file = MemberName(package.name)
    return tuple(GraphFile(spec, file, entry[name]) for name, spec in specs.items())
