"""``export``: a checkpoint to a verified bundle."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mobile_o_export.atomic import require_new, staged_file
from mobile_o_export.cli import screen
from mobile_o_export.cli.caching import CachePlace, export_store, limit_bytes, shared_store
from mobile_o_export.cli.console import ProgressPrinter, megabytes, table
from mobile_o_export.cli.inspect import CheckpointPath, Lora
from mobile_o_export.cli.paths import expanded, expanded_all, require_output_file
from mobile_o_export.cli.plan import (
    Components,
    Precisions,
    RecipeFile,
    RecordedGolden,
    Targets,
    memory_limit,
)
from mobile_o_export.cli.rows import summary
from mobile_o_export.cli.sharing import Executor, Jobs, parsed_share, require_consistent

if TYPE_CHECKING:
    from mobile_o_export.cache.store import Store
    from mobile_o_export.profile import Profile

FROM_CACHE = "from cache"


def export(
    checkpoint: CheckpointPath,
    target: Targets,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            help="The folder of the bundle; must not exist. Required without --shard.",
            metavar="BUNDLE",
            callback=expanded,
        ),
    ] = None,
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
    cache: CachePlace = None,
    no_cache: Annotated[
        bool, typer.Option("--no-cache", help="Make everything anew, and keep nothing for other exports.")
    ] = False,
    profile: Annotated[
        Path | None,
        typer.Option(
            "--profile",
            help="Print what the time went to, and write it to this file as a trace for Perfetto or "
            "chrome://tracing.",
            metavar="FILE",
            callback=expanded,
        ),
    ] = None,
    jobs: Jobs = 1,
    shard: Annotated[
        str | None,
        typer.Option(
            "--shard",
            help="Make only the I-th of N shares and keep it in the cache, which N machines have in "
            "common. The export that follows, without --shard, finds everything there.",
            metavar="I/N",
        ),
    ] = None,
    executor: Annotated[
        Executor,
        typer.Option(
            "--executor",
            help="Where components are lowered and verified: here, or on the nodes of the Ray cluster at "
            "RAY_ADDRESS, which have checkpoint, goldens and cache in common.",
        ),
    ] = Executor.LOCAL,
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

    With --shard I/N, only a share of the work is done, and kept in the cache for the export that follows:
    on N machines that share one. With --executor ray, a cluster does all of it.
    """
    share = None if shard is None else parsed_share(shard)
    require_consistent(out, share, executor, jobs)
    if profile is not None:
        require_output_file("--profile", profile, None)
    with ProgressPrinter() as progress:
        progress("checkpoint", "", "reading its headers")
        from mobile_o_export.checkpoint import Checkpoint
        from mobile_o_export.cluster import computing, ray_pool
        from mobile_o_export.export import ExportResult, ParityError, export_bundle
        from mobile_o_export.exporting.nodes import export_on_nodes
        from mobile_o_export.exporting.shares import ShareError, ShareResult, export_share
        from mobile_o_export.profile import Profile
        from mobile_o_export.targets import load_targets

        profiled = Profile(progress)
        say = partial(progress.done, "cache", "")
        limit = limit_bytes()
        max_memory_bytes = memory_limit(max_memory)
        targets = load_targets(target, precision or (), recipe)
        opened = Checkpoint.open(checkpoint, lora)
        given = (opened, targets, component or (), golden)
        places = [Path(place) for place in calibration or ()]
        store: Store | None
        result: ExportResult | ShareResult
        failure: ParityError | ShareError | None = None
        try:
            if share is not None:
                common = store = shared_store(cache, no_cache, "--shard", say)
                result = export_share(*given, share, common, profiled, places, jobs, max_memory_bytes)
            else:
                assert out is not None
                if executor is Executor.RAY:
                    require_new(out)
                    common = store = shared_store(cache, no_cache, "--executor ray", say)
                    with ray_pool(*computing(), partial(progress.done, "ray", "")) as pool:
                        export_on_nodes(*given, common, pool, profiled, places, max_memory_bytes)
                else:
                    store = export_store(cache, no_cache, out, say)
                result = export_bundle(
                    *given, out, bundle_version, profiled, places, store, jobs, max_memory_bytes
                )
        except (ParityError, ShareError) as error:
            failure = error
        if profile is not None:
            write_profile(profiled, profile)
        if store is not None and store.stored:
            for kept in store.prune(limit):
                say(f"removed {kept.kind} {kept.folder.name[:8]}, not used for the longest time")
    if profile is not None:
        screen.result(profile_table(profiled))
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
    screen.result(f"\npassed: {len(result.rows)} outputs compared")
    if isinstance(result, ShareResult):
        chains = ", ".join(result.chained) or "left to the export"
        made = f"{len(result.costs)} of {result.components} components"
        screen.result(f"share {share}: {made}; chains: {chains}\ncache: {result.cache}")
    else:
        screen.result(f"bundle: {result.bundle}")


def write_profile(profile: Profile, place: Path) -> None:
    """Writes the trace to the file ``place``."""
    profile.end()
    with staged_file(place) as partial:
        partial.write_text(json.dumps(profile.trace()) + "\n", encoding="utf-8")


def profile_table(profile: Profile) -> str:
    """The stages that took a hundredth of the time or more, and what all others took together."""
    stages = profile.stages()
    total = sum(stage.seconds for stage in stages)
    long = [stage for stage in stages if stage.seconds >= total / 100]
    rows = [
        [stage.target, stage.component, stage.name, str(stage.steps), *_share(stage.seconds, total)]
        for stage in long
    ]
    rest = total - sum(stage.seconds for stage in long)
    rows.append(
        ["", "", "all others", str(sum(stage.steps for stage in stages[len(long) :])), *_share(rest, total)]
    )
    return table(["target", "component", "stage", "steps", "time", "of all"], rows, right=(3, 4, 5)) + "\n"


def _share(seconds: float, total: float) -> tuple[str, str]:
    return f"{seconds:.1f} s", f"{seconds / total:.0%}" if total else ""
