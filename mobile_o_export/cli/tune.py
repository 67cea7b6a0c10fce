"""``tune``: a recipe of mixed precisions by measurement."""

from __future__ import annotations

import re
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import typer

from mobile_o_export.atomic import staged_file
from mobile_o_export.cli.console import ProgressPrinter, megabytes, table
from mobile_o_export.cli.inspect import CheckpointPath, Lora
from mobile_o_export.cli.paths import expanded, expanded_name
from mobile_o_export.cli.plan import Components, RecordedGolden
from mobile_o_export.errors import UsageError

UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


def tune(
    checkpoint: CheckpointPath,
    target: Annotated[
        str,
        typer.Option(
            "--target", help="A shipped target's name or a .toml file.", metavar="T", callback=expanded_name
        ),
    ],
    out: Annotated[
        Path,
        typer.Option(
            "--out",
            help="The recipe's file, .toml; numbers and a chart go beside it as .json and .png.",
            metavar="FILE",
            callback=expanded,
        ),
    ],
    budget: Annotated[
        str | None, typer.Option("--budget", help="All weights in at most this: 900MB.", metavar="SIZE")
    ] = None,
    min_snr: Annotated[
        float | None,
        typer.Option("--min-snr", help="Every output at least this near PyTorch's.", metavar="DB"),
    ] = None,
    component: Components = None,
    candidate: Annotated[
        list[str] | None,
        typer.Option(
            "--candidate",
            help="A precision to choose from; may be repeated. By default the target's candidates.",
            metavar="P",
        ),
    ] = None,
    golden: RecordedGolden = None,
    lora: Lora = None,
) -> None:
    """Choose each weight's precision by measurement.

    Every weight is compressed alone, at every candidate, and the error that this causes at its component's
    output is measured on the golden's inputs; then bytes are spent where they matter most, and the whole is
    measured again. Sensitivities are kept beside the recipe (.sensitivities.jsonl): an interrupted run goes
    on, another goal takes seconds.
    """
    goal_bytes = None if budget is None else size_bytes(budget)
    if (budget is None) == (min_snr is None):
        raise UsageError("say what to reach: --budget SIZE or --min-snr DB, one of the two.")
    with ProgressPrinter() as progress:
        progress("checkpoint", "", "reading its headers")
        from mobile_o_export.checkpoint import Checkpoint
        from mobile_o_export.export import record_golden
        from mobile_o_export.golden import Golden
        from mobile_o_export.precision import Precision
        from mobile_o_export.targets import load_target
        from mobile_o_export.tuning.outcome import counts, recipe_toml, write_outcome
        from mobile_o_export.tuning.tune import Goal
        from mobile_o_export.tuning.tune import tune as run

        chosen = load_target(target)
        try:
            candidates = [Precision.parse(name) for name in candidate or ()]
        except ValueError as error:
            raise UsageError(f"{error}.") from error
        opened = Checkpoint.open(checkpoint, lora)
        with TemporaryDirectory(prefix="mobile-o-golden-") as place:
            if golden is None:
                record_golden(opened, None, Path(place), progress)
            found = run(
                opened,
                chosen,
                component or (),
                candidates,
                Golden.open(golden or Path(place)),
                Goal(goal_bytes, min_snr),
                out.with_suffix(".sensitivities.jsonl"),
                progress,
            )
        asked = f"--budget {budget}" if budget is not None else f"--min-snr {min_snr:g}"
        with staged_file(out) as path:
            path.write_text(recipe_toml(found, chosen.name, asked), encoding="utf-8")
        write_outcome(out, found)
    rows = [
        [
            tuned.component,
            megabytes(tuned.size_bytes),
            f"{tuned.predicted_db:.1f}",
            f"{tuned.measured_db:.1f}",
            ", ".join(f"{count} {name}" for name, count in counts(tuned).most_common()),
        ]
        for tuned in found
    ]
    print(table(["component", "weights", "predicted dB", "measured dB", "of"], rows, right=(1, 2, 3)))
    print(f"\n{megabytes(sum(tuned.size_bytes for tuned in found))} in all\nrecipe: {out}")


def size_bytes(text: str) -> int:
    """``900MB`` → 900 000 000.

    Raises:
        UsageError: it is no size.
    """
    found = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([KMG]?I?B?)\s*", text.upper())
    unit = "" if found is None else found[2] if found[2] in UNITS else f"{found[2]}B"
    if found is None or unit not in UNITS or float(found[1]) <= 0:
        raise UsageError(f"--budget {text!r} is no size. Write 900MB, 1.1GB or a number of bytes.")
    return round(float(found[1]) * UNITS[unit])
