"""Which model a task runs on, as users say it: a bundle's target, or a checkpoint in PyTorch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mobile_o_export.cli.paths import expanded
from mobile_o_export.errors import UsageError

if TYPE_CHECKING:
    from mobile_o_export.pipelines.pipeline import Pipeline
    from mobile_o_export.progress import Say

Bundle = Annotated[
    Path | None,
    typer.Argument(
        help="The bundle's folder; not needed with --target torch.", metavar="BUNDLE", callback=expanded
    ),
]
TargetName = Annotated[
    str | None,
    typer.Option(
        "--target",
        help="Which target of the bundle, or 'torch' for PyTorch. May be left out if the bundle has one.",
        metavar="T",
    ),
]
TargetNames = Annotated[
    list[str] | None,
    typer.Option("--target", help="Only this target; may be repeated. All of them by default.", metavar="T"),
]
CheckpointBeside = Annotated[
    Path | None,
    typer.Option(
        "--checkpoint",
        help="Run this checkpoint in PyTorch too, beside the targets.",
        metavar="CKPT",
        callback=expanded,
    ),
]
CheckpointOption = Annotated[
    Path | None,
    typer.Option(
        "--checkpoint", help="With --target torch: the checkpoint.", metavar="CKPT", callback=expanded
    ),
]
Truncate = Annotated[
    bool, typer.Option("--truncate", help="Cut a prompt that is too long at its end, instead of refusing it.")
]
JsonOutput = Annotated[
    bool, typer.Option("--json", help="Print a JSON object with timings instead of plain text.")
]


def open_model(
    bundle: Path | None, target: str | None, checkpoint: Path | None, say: Say, *, keep: bool = False
) -> Pipeline:
    """The tasks over what the user named; a component is freed after its part, unless they are to be kept.

    Raises:
        UsageError: bundle, target and checkpoint do not go together.
        ExportError: what they name cannot be used.
    """
    from mobile_o_export.pipelines.pipeline import TORCH

    if target == TORCH:
        if checkpoint is None:
            raise UsageError("--target torch runs a checkpoint in PyTorch; say which with --checkpoint CKPT.")
        from mobile_o_export.checkpoint import Checkpoint
        from mobile_o_export.reference import torch_pipeline

        opened = Checkpoint.open(checkpoint)
        if bundle is not None:
            from mobile_o_export.bundle.manifest import read_manifest
            from mobile_o_export.bundle.runners import require_source

            require_source(bundle, read_manifest(bundle), opened.digest)
        return torch_pipeline(opened, keep=keep, say=say)
    if checkpoint is not None:
        raise UsageError("--checkpoint goes with --target torch; a bundle's targets need none. Leave it out.")
    if bundle is None:
        raise UsageError("say which model: the folder of a bundle, or --target torch --checkpoint CKPT.")
    from mobile_o_export.bundle.runners import open_bundle

    return open_bundle(bundle, target, keep=keep, say=say)
