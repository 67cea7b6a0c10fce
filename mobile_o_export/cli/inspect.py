"""``inspect``: what a checkpoint holds."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mobile_o_export.cli import screen
from mobile_o_export.cli.console import ProgressPrinter, megabytes, table
from mobile_o_export.cli.paths import expanded
from mobile_o_export.legible import legible

Lora = Annotated[
    Path | None,
    typer.Option("--lora", help="A PEFT LoRA adapter to merge.", metavar="DIR", callback=expanded),
]
MergedLora = Annotated[
    Path | None,
    typer.Option(
        "--lora",
        help="With --checkpoint: the adapter that was merged.",
        metavar="DIR",
        callback=expanded,
    ),
]
CheckpointPath = Annotated[
    Path, typer.Argument(help="The checkpoint's folder.", metavar="CKPT", callback=expanded)
]


def inspect(
    checkpoint: CheckpointPath,
    lora: Lora = None,
    json_output: Annotated[
        bool, typer.Option("--json", help="Print a JSON object instead of a table.")
    ] = False,
) -> None:
    """List a checkpoint's components, parameters and digest."""
    with ProgressPrinter() as progress:
        progress("checkpoint", "", "reading it whole, for its digest")
        from mobile_o_export.checkpoint import Checkpoint
        from mobile_o_export.checkpoint.inspection import inspect as inspect_checkpoint

        report = inspect_checkpoint(Checkpoint.open(checkpoint, lora))
    if json_output:
        screen.result_json(report.to_json())
        return
    rows = [
        [
            part.name,
            f"{part.tensors}",
            f"{part.parameters:,}",
            megabytes(part.size_bytes),
            ", ".join(part.dtypes),
        ]
        for part in report.components
    ]
    rows.append(
        ["total", "", f"{report.parameters:,}", megabytes(report.size_bytes), ", ".join(report.dtypes)]
    )
    screen.result(table(["component", "tensors", "parameters", "size", "dtype"], rows, right=(1, 2, 3)))
    screen.result()
    for name, value in report.settings.items():
        screen.result(f"{legible(name)}: {legible(str(value))}")
    if report.lora is not None:
        screen.result(
            f"adapter: {legible(str(report.lora.path))}, rank {report.lora.rank}, alpha {report.lora.alpha:g}"
        )
        if report.lora.beside:
            screen.result(f"trained beside it: {legible(', '.join(report.lora.beside))}")
    if report.second_copies:
        screen.result(
            f"stored twice: {report.second_copies} tensors; those under a wrapper's name are not read"
        )
    screen.result(f"weights: {'random (init-checkpoint)' if report.random_weights else 'trained'}")
    screen.result(f"digest: {report.digest}")
