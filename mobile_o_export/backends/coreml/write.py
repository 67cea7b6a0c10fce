"""A module's graphs → one package: weights compressed, converted, encoded, merged, read back."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mobile_o_export.backends.base import Artifact, GraphFile, LowerRequest
from mobile_o_export.backends.coreml import convert
from mobile_o_export.backends.coreml.encode import Encoder
from mobile_o_export.backends.coreml.rewrites import spell_out_tanh_gelu
from mobile_o_export.compression.check import check_weights
from mobile_o_export.compression.compress import compress_module, round_inputs
from mobile_o_export.compression.recognise import Recogniser
from mobile_o_export.members import MemberName
from mobile_o_export.precision import Precision
from mobile_o_export.progress import Say
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
        ExportError: a compressed weight is in no graph.
        GateError: a weight read back is not what was compressed.
    """
    component = request.component.name
    what = f"{component} for {request.target}: coremltools"
    module = load()
    spell_out_tanh_gelu(module)
    compressed = compress_module(
        module, request.recipe, what, progress, request.statistics, least_scale=LEAST_SCALE
    )
    weights = Recogniser(compressed)
    round_inputs(module, compressed)
    encoder = Encoder(weights)
    half = request.recipe.floating == Precision.FP16
    with tempfile.TemporaryDirectory(dir=package.parent) as work:
        parts = {}
        for spec in specs:
            progress(f"converting {spec.name}")
            parts[spec.name] = Path(work) / f"{spec.name}.mlpackage"
            with captured(f"{what} ({spec.name})"):
                own = graph(module, spec)
                convert.convert(spec, own, parts[spec.name], half=half, encoder=encoder)
        del module, own
        weights.require_all(component)
        if len(specs) == 1:
            shutil.move(parts[specs[0].name], package)
        else:
            progress("sharing the functions' weights")
            with captured(f"{what} (multifunction)"):
                convert.merge(parts, package)
    entries = {spec.name: spec.name if len(specs) > 1 else DEFAULT_FUNCTION for spec in specs}
    with captured(f"{what} (description)"):
        convert.describe(package, {entries[spec.name]: spec for spec in specs}, component)
    progress("reading the weights back")
    rows = check_weights(compressed, encoder.stored(package, component), component)
    return Artifact(
        tuple(GraphFile(spec, MemberName(package.name), entries[spec.name]) for spec in specs), rows
    )
