"""``golden record`` and ``golden compare``: the truth that every file is compared with."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from mobile_o_export.cli import screen
from mobile_o_export.cli.console import ProgressPrinter, table
from mobile_o_export.cli.inspect import CheckpointPath, Lora
from mobile_o_export.cli.paths import expanded
from mobile_o_export.errors import GateError
from mobile_o_export.legible import legible

app = typer.Typer(help="Record what every output is compared with.", no_args_is_help=True)


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
        from mobile_o_export.golden.record import GOLDEN_ROOM_BYTES, record_golden

        opened = Checkpoint.open(checkpoint, lora)
        with staged_folder(out, GOLDEN_ROOM_BYTES, partial(progress.done, "disk", "")) as folder:
            record_golden(opened, prompts, folder, progress)
            opened.require_unchanged()
    screen.result(out)


Folder = Annotated[Path, typer.Argument(help="A golden's folder.", metavar="DIR", callback=expanded)]


@app.command("compare")
def compare(
    recorded: Folder,
    other: Folder,
    least_db: Annotated[
        float | None, typer.Option("--min-snr", help="Fail below this many dB; 60 by default.", metavar="DB")
    ] = None,
) -> None:
    """Say how far two goldens of one checkpoint are apart.

    The same machine and versions record the same bytes. Another machine's differ by rounding: this says by
    how much, and fails (exit code 1) below --min-snr.
    """
    from mobile_o_export.golden import Golden
    from mobile_o_export.golden.compare import LEAST_DB, distances, same_bytes

    one, two = Golden.open(recorded), Golden.open(other)
    rows = distances(one, two)
    if same_bytes(one, two):
        screen.result(f"the same bytes: {len(one.index.tensors)} tensors")
        return
    screen.result(
        table(
            ["recorded", "differ", "worst dB"],
            [[row.place, f"{row.differing}/{row.tensors}", f"{row.snr_db:.1f}"] for row in rows],
            right=(1, 2),
        )
    )
    if one.index.recorded_with != two.index.recorded_with:
        screen.result(
            f"\nrecorded with {_versions(one.index.recorded_with)}; with {_versions(two.index.recorded_with)}"
        )
    worst = min(rows, key=lambda row: row.snr_db)
    least = LEAST_DB if least_db is None else least_db
    if not worst.snr_db >= least:
        raise GateError(
            f"{other}: {worst.place} is {worst.snr_db:.1f} dB from {recorded}, below {least:g} dB. It is no "
            "golden of the same computation: look for another version of PyTorch, transformers or diffusers."
        )


def _versions(recorded_with: dict[str, str]) -> str:
    return legible(", ".join(f"{name} {version}" for name, version in recorded_with.items()))
