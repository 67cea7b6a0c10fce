"""``golden record``: the truth that every file is compared with."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mobile_o_export.cli.console import ProgressPrinter
from mobile_o_export.cli.inspect import CheckpointPath, Lora
from mobile_o_export.cli.paths import expanded

app = typer.Typer(help="Record what every output is compared with.", no_args_is_help=True)


@app.callback()
def _golden() -> None:
    """Keeps ``record`` a subcommand while it is the only one."""


@app.command("record")
def record(
    checkpoint: CheckpointPath,
    out: Annotated[Path, typer.Option("--out", help="The folder to make.", metavar="DIR", callback=expanded)],
    prompts: Annotated[
        Path | None,
        typer.Option(
            "--prompts",
            help="A TOML file of prompts and images instead of the shipped one.",
            metavar="FILE",
            callback=expanded,
        ),
    ] = None,
    lora: Lora = None,
) -> None:
    """Record a golden from the PyTorch pipeline.

    It runs on real prompts and images, and each function is recorded along the way.
    """
    with ProgressPrinter() as progress:
        progress("checkpoint", "", "reading its headers")
        from mobile_o_export.atomic import staged_folder
        from mobile_o_export.checkpoint import Checkpoint
        from mobile_o_export.export import GOLDEN_ROOM_BYTES, record_golden

        opened = Checkpoint.open(checkpoint, lora)
        with staged_folder(out, GOLDEN_ROOM_BYTES) as folder:
            record_golden(opened, prompts, folder, progress)
    print(out)
