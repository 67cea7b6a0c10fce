"""``cache show``, ``cache prune`` and ``cache verify``: what exports have kept."""

from __future__ import annotations

import time
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mobile_o_export.cli import screen
from mobile_o_export.cli.caching import FOLDER_VARIABLE, CachePlace, chosen_cache, limit_bytes
from mobile_o_export.cli.console import ProgressPrinter, megabytes, table
from mobile_o_export.cli.inspect import Lora
from mobile_o_export.cli.paths import expanded
from mobile_o_export.cli.quantities import size_bytes
from mobile_o_export.errors import GateError, UsageError

if TYPE_CHECKING:
    from mobile_o_export.cache.store import Store

app = typer.Typer(help="Show, prune and verify what exports have kept.", no_args_is_help=True)

DAY_SECONDS = 86400.0


@app.command("show")
def show(
    cache: CachePlace = None,
    json_output: Annotated[
        bool, typer.Option("--json", help="Print a JSON object instead of a table.")
    ] = False,
) -> None:
    """Say where the cache is and what it holds."""
    with ProgressPrinter() as progress:
        store = _opened(cache, progress)
        kept = list(store.kept())
    kinds = sorted({entry.kind for entry in kept})
    rows: list[dict[str, Any]] = [
        {
            "kind": kind,
            "entries": sum(entry.kind == kind for entry in kept),
            "size_bytes": sum(entry.size_bytes for entry in kept if entry.kind == kind),
            "unusable": sum(bool(entry.problem) for entry in kept if entry.kind == kind),
            "last_used": max(entry.used for entry in kept if entry.kind == kind),
        }
        for kind in kinds
    ]
    total = sum(entry.size_bytes for entry in kept)
    if json_output:
        content = {"schema": 1, "folder": str(store.root), "size_bytes": total, "limit_bytes": limit_bytes()}
        screen.result_json({**content, "rows": rows})
        return
    shown = [
        [
            row["kind"],
            f"{row['entries']}",
            megabytes(row["size_bytes"]),
            f"{datetime.fromtimestamp(row['last_used'], UTC):%Y-%m-%d %H:%M} UTC",
            f"{row['unusable']} unusable" if row["unusable"] else "",
        ]
        for row in rows
    ]
    screen.result(table(["kind", "entries", "size", "last used", ""], shown, right=(1, 2)))
    screen.result(f"\n{megabytes(total)} of {megabytes(limit_bytes())}\ncache: {store.root}")


@app.command("prune")
def prune(
    cache: CachePlace = None,
    max_size: Annotated[
        str | None,
        typer.Option(
            "--max-size",
            help="Keep at most this, 5GB for example, and of it what was used last; by default the limit.",
            metavar="SIZE",
        ),
    ] = None,
    older_than: Annotated[
        float | None,
        typer.Option(
            "--older-than", help="Remove what was not used for so many days.", metavar="DAYS", min=0
        ),
    ] = None,
) -> None:
    """Remove what was not used for the longest time, and what killed exports left."""
    most = limit_bytes() if max_size is None else size_bytes("--max-size", max_size)
    since = None if older_than is None else time.time() - older_than * DAY_SECONDS
    with ProgressPrinter() as progress:
        store = _opened(cache, progress)
        removed = store.prune(most, since)
        left = sum(entry.size_bytes for entry in store.kept())
    freed = megabytes(sum(entry.size_bytes for entry in removed))
    screen.result(f"removed {len(removed)} entries, {freed}; {megabytes(left)} left\ncache: {store.root}")


@app.command("verify")
def verify(
    cache: CachePlace = None,
    checkpoint: Annotated[
        Path | None,
        typer.Option(
            "--checkpoint",
            help="Also lower components of this checkpoint again that are in the cache, and compare bytes.",
            metavar="CKPT",
            callback=expanded,
        ),
    ] = None,
    lora: Lora = None,
    share: Annotated[
        float | None,
        typer.Option(
            "--share",
            help="With --checkpoint: which share of them, chosen at random, at least one; all by default.",
            metavar="F",
            min=0.0,
            max=1.0,
        ),
    ] = None,
) -> None:
    """Read every file of the cache and compare its digest.

    With --checkpoint also make some of it again. What is not as it should be is removed, so that no export
    uses it, and is a failed gate (exit code 1).
    """
    if checkpoint is None and (lora is not None or share is not None):
        raise UsageError("--lora and --share go with --checkpoint; give the checkpoint too.")
    with ProgressPrinter() as progress:
        from mobile_o_export.cache.check import check_entries, recompute
        from mobile_o_export.checkpoint import Checkpoint

        store = _opened(cache, progress)
        checked = check_entries(store, progress)
        wrong = list(checked.wrong)
        again = None
        if checkpoint is not None:
            again = recompute(
                store, Checkpoint.open(checkpoint, lora), 1.0 if share is None else share, progress
            )
            wrong += again.wrong
    for problem in wrong:
        screen.result(problem)
    screen.result(f"{checked.entries} entries, {megabytes(checked.size_bytes)}: digests compared")
    if again is not None:
        screen.result(
            f"{again.entries} of {again.candidates} components of the checkpoint lowered again: "
            f"{again.entries - len(again.wrong)} the same bytes"
        )
    screen.result(f"cache: {store.root}")
    if wrong:
        raise GateError(f"{store.root}: {len(wrong)} entries were not as they should be; they are removed.")
    if again is not None and not again.entries:
        raise UsageError(
            f"{store.root}: holds no component of this checkpoint that this version made on this machine. "
            "Export it first."
        )


def _opened(given: str | None, progress: ProgressPrinter) -> Store:
    """The cache that the user means, on this machine.

    Raises:
        UsageError: there is none, something else lies there, or it is a URL.
        CacheError: it cannot be used.
    """
    if given is not None and "://" in given:
        raise UsageError(
            f"--cache {given}: what lies there is shown, pruned and verified by the tools of the service. "
            "Give a folder, or nothing for this machine's own."
        )
    chosen = chosen_cache(given)
    if chosen is None:
        raise UsageError(f"{FOLDER_VARIABLE} says that there is no cache. Give one with --cache.")
    progress("cache", "", "reading its entries")
    return replace(chosen, url=None).open(partial(progress.done, "cache", ""))
