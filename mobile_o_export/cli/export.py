"""``export``: a checkpoint to a verified bundle."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from mobile_o_export.cli import screen
from mobile_o_export.cli.caching import CacheFolder, export_store, limit_bytes
from mobile_o_export.cli.console import ProgressPrinter, megabytes, table
from mobile_o_export.cli.inspect import CheckpointPath, Lora
from mobile_o_export.cli.paths import expanded, expanded_all
from mobile_o_export.cli.plan import (
    Components,
    Precisions,
    RecipeFile,
    RecordedGolden,
    Targets,
    memory_limit,
)
from mobile_o_export.cli.rows import summary

FROM_CACHE = "from cache"


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
    cache: CacheFolder = None,
    no_cache: Annotated[
        bool, typer.Option("--no-cache", help="Make everything anew, and keep nothing for other exports.")
    ] = False,
    jobs: Annotated[
        int,
        typer.Option(
            "--jobs",
            help="Lower and verify so many components at once, each in a process of its own.",
            min=1,
            metavar="N",
        ),
    ] = 1,
    max_memory: Annotated[
        str | None,
        typer.Option(
            "--max-memory",
            help="What the estimates of all that is done at once may add up to, such as 8GB; by default what "
            "is free. One component that needs more is refused, before any work.",
            metavar="SIZE",
        ),
    ] = None,
) -> None:
    """Lower, run, compare and pack.

    The bundle appears at BUNDLE only when every output passed its gate.

    What is made on the way is kept in a cache: an export that was stopped goes on where it was when it is
    started again, and another one makes only what differs. The bundle is the same without.

    With --jobs N, N components at a time are lowered and verified as memory allows; the bundle is the same.
    """
    with ProgressPrinter() as progress:
        progress("checkpoint", "", "reading its headers")
        from mobile_o_export.checkpoint import Checkpoint
        from mobile_o_export.export import ParityError, export_bundle
        from mobile_o_export.targets import load_targets

        say = partial(progress.done, "cache", "")
        limit = limit_bytes()
        max_memory_bytes = memory_limit(max_memory)
        store = export_store(cache, no_cache, out, say)
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
                store=store,
                jobs=jobs,
                max_memory_bytes=max_memory_bytes,
            )
        except ParityError as error:
            failure = error
        if store is not None and store.stored:
            for kept in store.prune(limit):
                say(f"removed {kept.kind} {kept.folder.name[:8]}, not used for the longest time")
    if failure is not None:
        screen.result(summary(failure.result.rows))
        raise failure
    rows = [
        [
            cost.target,
            cost.component,
            megabytes(cost.size_bytes),
            *(
                (FROM_CACHE, "")
                if cost.lower_cached
                else (f"{cost.lower_seconds:.1f} s", megabytes(cost.lower_peak_bytes))
            ),
            FROM_CACHE if cost.verify_cached else f"{cost.verify_seconds:.1f} s",
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
