"""``golden record``: the truth that every file is compared with."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mobile_o_export.cli.console import ProgressPrinter
from mobile_o_export.cli.inspect import CheckpointPath, Lora

app = typer.Typer(
    help="Goldens: inputs and outputs recorded from the PyTorch pipeline.", no_args_is_help=True
)


@app.callback()
def _golden() -> None:
    """Keeps ``record`` a subcommand while it is the only one."""


@app.command("record")
def record(
    checkpoint: CheckpointPath,
    out: Annotated[Path, typer.Option("--out", help="The folder to make.", metavar="DIR")],
    prompts: Annotated[
        Path | None,
        typer.Option(
            "--prompts", help="A TOML file of prompts and images instead of the shipped one.", metavar="FILE"
        ),
    ] = None,
    lora: Lora = None,
) -> None:
    """Run the PyTorch pipeline on real prompts and images and record each function along the way."""
    from mobile_o_export.atomic import staged_folder
    from mobile_o_export.checkpoint import Checkpoint
    from mobile_o_export.export import GOLDEN_ROOM_BYTES, record_golden

    printer = ProgressPrinter()
    opened = Checkpoint.open(checkpoint, lora)
    with staged_folder(out, GOLDEN_ROOM_BYTES) as folder:
        record_golden(opened, prompts, folder, printer)
    printer.close()
    print(out)
