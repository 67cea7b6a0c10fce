"""``tune``: a recipe of mixed precisions by measurement."""

from __future__ import annotations

import math
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import typer

from mobile_o_export.cli import screen
from mobile_o_export.cli.console import ProgressPrinter, megabytes, table
from mobile_o_export.cli.inspect import CheckpointPath, Lora
from mobile_o_export.cli.paths import expanded, expanded_name, require_output_file, require_replaceable
from mobile_o_export.cli.plan import Components, RecordedGolden
from mobile_o_export.cli.quantities import size_bytes
from mobile_o_export.cli.sharing import Executor, Jobs, require_one_executor
from mobile_o_export.errors import UsageError

SENSITIVITIES = "sensitivities.jsonl"
"""Beside the recipe; other recipes of the same folder go by it as well."""


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
        typer.Option(
            "--min-snr",
            help="Every output of every recorded call at least this near PyTorch's.",
            metavar="DB",
        ),
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
    jobs: Jobs = 1,
    executor: Annotated[
        Executor,
        typer.Option(
            "--executor",
            help="Where errors are measured: here, or on the nodes of the Ray cluster at RAY_ADDRESS, which "
            "have checkpoint and golden in common.",
        ),
    ] = Executor.LOCAL,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the recipe, its numbers and its chart.")
    ] = False,
) -> None:
    """Choose each weight's precision by measurement.

    Every weight is compressed alone, at every candidate, and the error that this causes at its component's
    output is measured on the golden's inputs; then bytes are spent where they matter most, and the whole is
    measured again; of the weights alone, without what fp16 arithmetic adds. Sensitivities are kept in
    sensitivities.jsonl beside the recipe: an interrupted run goes on, another goal measures only its outcome.
    """
    from mobile_o_export.tuning.outcome import counts, outcome_paths, write_outcome

    goal_bytes = None if budget is None else size_bytes("--budget", budget)
    if (budget is None) == (min_snr is None):
        raise UsageError("say what to reach: --budget SIZE or --min-snr DB, one of the two.")
    if min_snr is not None and not 0 < min_snr < math.inf:
        raise UsageError(f"--min-snr {min_snr:g} is no level to reach. Give dB above 0, such as 38.")
    if out.suffix != ".toml":
        raise UsageError(f"--out {out}: a recipe's name ends in .toml.")
    cache = out.with_name(SENSITIVITIES)
    for path in (*outcome_paths(out), cache):
        require_output_file("--out", path, None)
    require_one_executor(executor, jobs)
    if executor is Executor.RAY and golden is None:
        raise UsageError("--executor ray needs a --golden that all nodes find; 'golden record' makes one.")
    for path in outcome_paths(out):
        require_replaceable("--out", path, overwrite)
    with ProgressPrinter() as progress:
        progress("checkpoint", "", "reading its headers")
        from mobile_o_export import memory
        from mobile_o_export.checkpoint import Checkpoint
        from mobile_o_export.cluster import computing, ray_pool
        from mobile_o_export.golden import Golden
        from mobile_o_export.golden.record import record_golden
        from mobile_o_export.jobs import Pool
        from mobile_o_export.precision import Precision
        from mobile_o_export.targets import load_target
        from mobile_o_export.tuning.tune import Goal
        from mobile_o_export.tuning.tune import tune as run

        chosen = load_target(target)
        try:
            candidates = [Precision.parse(name) for name in candidate or ()]
        except ValueError as error:
            raise UsageError(f"{error}.") from error
        opened = Checkpoint.open(checkpoint, lora)
        with ExitStack() as stack:
            place = golden or Path(stack.enter_context(TemporaryDirectory(prefix="mobile-o-golden-")))
            if golden is None:
                record_golden(opened, None, place, progress)
            pool = None
            if executor is Executor.RAY:
                pool = stack.enter_context(ray_pool(*computing(), partial(progress.done, "ray", "")))
            elif jobs > 1:
                pool = Pool(jobs, memory.available_bytes(), partial(progress.done, "jobs", ""))
            found = run(
                opened,
                chosen,
                component or (),
                candidates,
                Golden.open(place),
                Goal(goal_bytes, min_snr),
                cache,
                progress,
                pool,
            )
        asked = f"--budget {budget}" if budget is not None else f"--min-snr {min_snr:g}"
        write_outcome(found, chosen.name, asked, out, partial(progress.done, "disk", ""))
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
    screen.result(table(["component", "weights", "predicted dB", "measured dB", "of"], rows, right=(1, 2, 3)))
    screen.result(f"\n{megabytes(sum(tuned.size_bytes for tuned in found))} in all\nrecipe: {out}")
