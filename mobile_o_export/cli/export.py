"""``export``: a checkpoint to a verified bundle."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mobile_o_export.cli import screen
from mobile_o_export.cli.console import ProgressPrinter, megabytes, table
from mobile_o_export.cli.inspect import CheckpointPath, Lora
from mobile_o_export.cli.paths import expanded, expanded_all
from mobile_o_export.cli.plan import Components, Precisions, RecipeFile, RecordedGolden, Targets
from mobile_o_export.cli.rows import summary


def export(
    checkpoint: CheckpointPath,
    target: Targets,
    out: Annotated[
        Path,
        typer.Option(
            "--out", help="The folder of the bundle; must not exist.", metavar="BUNDLE", callback=expanded
        ),
    ],
    component: Components = None,
    precision: Precisions = None,
    recipe: RecipeFile = None,
    golden: RecordedGolden = None,
    calibration: Annotated[
        list[str] | None,
        typer.Option(
            "--calibration",
            help="A golden of further prompts to calibrate activations on, beside the bundle's own; may be "
            "repeated.",
            metavar="DIR",
            callback=expanded_all,
        ),
    ] = None,
    lora: Lora = None,
    bundle_version: Annotated[str, typer.Option(help="The bundle's version, for the manifest.")] = "0.0.0",
) -> None:
    """Lower, run, compare and pack.

    The bundle appears at BUNDLE only when every output passed its gate.
    """
    with ProgressPrinter() as progress:
        progress("checkpoint", "", "reading its headers")
        from mobile_o_export.checkpoint import Checkpoint
        from mobile_o_export.export import ParityError, export_bundle
        from mobile_o_export.targets import load_targets

        targets = load_targets(target, precision or (), recipe)
        opened = Checkpoint.open(checkpoint, lora)
        failure = None
        try:
            result = export_bundle(
                opened,
                targets,
                component or (),
                golden,
                out,
                bundle_version,
                progress,
                calibration=[Path(place) for place in calibration or ()],
            )
        except ParityError as error:
            failure = error
    if failure is not None:
        screen.result(summary(failure.result.rows))
        raise failure
    rows = [
        [
            cost.target,
            cost.component,
            megabytes(cost.size_bytes),
            f"{cost.lower_seconds:.1f} s",
            megabytes(cost.lower_peak_bytes),
            f"{cost.verify_seconds:.1f} s",
        ]
        for cost in result.costs
    ]
    screen.result(
        table(
            ["target", "component", "size", "lowered in", "peak memory", "verified in"],
            rows,
            right=(2, 3, 4, 5),
        )
    )
    screen.result()
    screen.result(summary(result.rows))
    screen.result(f"\npassed: {len(result.rows)} outputs compared\nbundle: {result.bundle}")
