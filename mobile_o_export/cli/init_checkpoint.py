"""``init-checkpoint``: a random checkpoint with the published names and shapes."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import typer

from mobile_o_export.cli import screen
from mobile_o_export.cli.console import ProgressPrinter, megabytes
from mobile_o_export.cli.paths import expanded


def init_checkpoint(
    out: Annotated[Path, typer.Argument(help="The folder to make.", metavar="OUT", callback=expanded)],
    size: Annotated[Literal["tiny", "0.5b", "1.5b"], typer.Option(help="Which model's shapes.")] = "tiny",
    seed: Annotated[int, typer.Option(help="Seed of the weights.")] = 0,
    dtype: Annotated[
        Literal["float16", "bfloat16", "float32"], typer.Option(help="Element type of the weights.")
    ] = "float16",
) -> None:
    """Write a checkpoint of random weights. Every command accepts it."""
    with ProgressPrinter() as progress:
        progress("init-checkpoint", "", "starting")
        from mobile_o_export.checkpoint.initialise import init_checkpoint as write

        def written(name: str, done: int, total: int) -> None:
            progress("init-checkpoint", "", f"{megabytes(done)} of {megabytes(total)}, {name}")

        write(out, size, seed, dtype, written, partial(progress.done, "disk", ""))
    screen.result(out)
