"""A module's graphs → one package: weights compressed, converted, encoded, merged, read back."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mobile_o_export.backends.base import Artifact, GraphFile, LowerRequest
from mobile_o_export.backends.coreml import convert
from mobile_o_export.backends.coreml.encode import Encoder
from mobile_o_export.backends.coreml.rewrites import spell_out_tanh_gelu
from mobile_o_export.backends.coreml.weightfile import WeightFile
from mobile_o_export.compression.check import check_weights
from mobile_o_export.compression.compress import compress_module, round_inputs
from mobile_o_export.compression.placeholders import Placeholders
from mobile_o_export.members import MemberName
from mobile_o_export.precision import Precision
from mobile_o_export.progress import Say, silent
from mobile_o_export.quiet import captured

if TYPE_CHECKING:
    from torch import nn

    from mobile_o_export.components.base import GraphSpec

LEAST_SCALE = float(np.finfo(np.float16).tiny)
"""fp16's smallest normal number; an accelerator may take what is below it for zero."""

DEFAULT_FUNCTION = "main"
"""What Core ML calls the only function of a package."""


def write_package(
    package: Path,
    specs: Sequence[GraphSpec],
    load: Callable[[], nn.Module],
    graph: Callable[[nn.Module, GraphSpec], nn.Module],
    request: LowerRequest,
    progress: Say,
) -> Artifact:
    """Writes ``package``, of one function or, where there are several graphs, of one each.

    Args:
        package: the ``.mlpackage`` folder to be; what is beside it is left alone.
        specs: what its functions take and give.
        load: the module, prepared for lowering; not kept longer than it takes to convert it.
        graph: the module of one of ``specs`` around that one.
        request: says the precisions, and names component and target.
        progress: told what happens.

    Raises:
        LoweringError: coremltools failed.
        ExportError: a weight is in no graph, or was changed on its way there.
        GateError: a weight read back is not what was compressed.
    """
    component = request.component.name
    what = f"{component} for {request.target}: coremltools"
    module = load()
    spell_out_tanh_gelu(module)
    compressed = compress_module(
        module, request.recipe, what, progress, request.statistics, least_scale=LEAST_SCALE, keep=False
    )
    round_inputs(module, compressed)
    encoder = Encoder(Placeholders(module, compressed))
    graphs = ((spec, graph(module, spec)) for spec in specs)
    half = request.recipe.floating == Precision.FP16
    entries = write_graphs(package, graphs, encoder, component, half=half, what=what, progress=progress)
    progress("reading the weights back")
    rows = check_weights(compressed, encoder.stored(package, component), component)
    return Artifact(
        tuple(GraphFile(spec, MemberName(package.name), entries[spec.name]) for spec in specs), rows
    )


def write_graphs(
    package: Path,
    graphs: Iterable[tuple[GraphSpec, nn.Module]],
    encoder: Encoder,
    component: str,
    *,
    half: bool,
    what: str,
    progress: Say = silent,
) -> dict[str, str]:
    """Writes ``package`` of ``graphs``, whose weights may be placeholders; its functions, by graph.

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
        entries = {name: name for name in specs} if len(specs) > 1 else dict.fromkeys(specs, DEFAULT_FUNCTION)
        with captured(f"{what} (package)"):
            model = convert.merge(parts) if len(parts) > 1 else next(iter(parts.values()))
            described = {entries[name]: spec for name, spec in specs.items()}
            convert.write(model, weights, package, described, component)
    return entries
