"""``plan``: what an export would do, before any work."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mobile_o_export.cli import screen
from mobile_o_export.cli.console import ProgressPrinter, megabytes, table
from mobile_o_export.cli.inspect import CheckpointPath, Lora
from mobile_o_export.cli.paths import expanded, expanded_all
from mobile_o_export.cli.quantities import size_bytes
from mobile_o_export.errors import UnsupportedError

Targets = Annotated[
    list[str],
    typer.Option(
        "--target",
        help="A shipped target's name or a .toml file; may be repeated.",
        metavar="T",
        callback=expanded_all,
    ),
]
Components = Annotated[
    list[str] | None, typer.Option("--component", help="Only this component; may be repeated.", metavar="C")
]
RecordedGolden = Annotated[
    Path | None,
    typer.Option(
        "--golden",
        help="A recorded golden; without it one is recorded on the way.",
        metavar="DIR",
        callback=expanded,
    ),
]
Precisions = Annotated[
    list[str] | None,
    typer.Option(
        "--precision",
        help="Instead of the targets' own: P for every component, or COMPONENT=P; may be repeated. "
        "uncompressed is the target's floating point.",
        metavar="P",
    ),
]
RecipeFile = Annotated[
    Path | None,
    typer.Option(
        "--recipe",
        help="A .toml of precisions and rules for components, instead of the targets' own.",
        metavar="FILE",
        callback=expanded,
    ),
]

MaxMemory = Annotated[
    str | None,
    typer.Option(
        "--max-memory",
        help="Refuse what by estimate needs more memory than this, such as 8GB, before any work.",
        metavar="SIZE",
    ),
]


def plan(
    checkpoint: CheckpointPath,
    target: Targets,
    component: Components = None,
    precision: Precisions = None,
    recipe: RecipeFile = None,
    lora: Lora = None,
    max_memory: MaxMemory = None,
    json_output: Annotated[
        bool, typer.Option("--json", help="Print a JSON object instead of a table.")
    ] = False,
) -> None:
    """Show what an export would do, and what is refused.

    Components × targets, with precisions, graphs, and estimates of size and peak memory.
    """
    with ProgressPrinter() as progress:
        progress("checkpoint", "", "reading its headers")
        from mobile_o_export import memory
        from mobile_o_export.checkpoint import Checkpoint
        from mobile_o_export.plan import REFUSED_HINT, peak_bytes, room_bytes, short_of_memory, within_memory
        from mobile_o_export.plan import plan as make_plan
        from mobile_o_export.targets import load_targets

        limit = memory_limit(max_memory)
        targets = load_targets(target, precision or (), recipe)
        items = within_memory(make_plan(Checkpoint.open(checkpoint, lora), targets, component or ()), limit)
        room, peak, available = room_bytes(items), peak_bytes(items), memory.available_bytes()
    if json_output:
        rows = [
            {
                "target": item.target,
                "component": item.component,
                "precision": None if item.recipe is None else str(item.recipe.default),
                "recipe": None if item.recipe is None else item.recipe.model_dump(mode="json"),
                "graphs": list(item.graphs),
                "size_bytes": item.size_bytes,
                "memory_bytes": item.memory_bytes,
                "refusal": item.refusal,
                "skip": item.skip,
                "caution": item.caution,
            }
            for item in items
        ]
        needs = {"room_bytes": room, "memory_bytes": peak, "available_memory_bytes": available}
        screen.result_json({"schema": 1, **needs, "rows": rows})
    else:
        lines = []
        for item in items:
            note = (
                f"refused: {item.refusal}" if item.refusal else f"skipped: {item.skip}" if item.skip else ""
            )
            numbers = (
                ["", ""]
                if item.skip
                else [f"≈ {megabytes(item.size_bytes)}", f"≈ {megabytes(item.memory_bytes)}"]
            )
            lines.append(
                [
                    item.target,
                    item.component,
                    "-" if item.recipe is None else str(item.recipe),
                    *numbers,
                    note or ", ".join(item.graphs),
                ]
            )
        screen.result(
            table(["target", "component", "precision", "size", "peak memory", "graphs"], lines, right=(3, 4))
        )
        total = sum(item.size_bytes for item in items if item.request is not None)
        screen.result(f"\nestimated size of all files: {megabytes(total)}")
        screen.result(f"free space that an export asks for: {megabytes(room)}")
        screen.result(f"its peak memory: {megabytes(peak)}; available here: {megabytes(available)}")
    for item in items:
        if item.caution:
            screen.message(f"{item.target}, {item.component}: {item.caution}")
    if short := short_of_memory(items, available):
        screen.message(short)
    if refused := [item for item in items if item.refusal]:
        raise UnsupportedError(
            f"{len(refused)} of {len(items)} cannot be exported, the first: {refused[0].target}, "
            f"{refused[0].component}: {refused[0].refusal}. {REFUSED_HINT}"
        )


def memory_limit(given: str | None) -> int | None:
    """What ``--max-memory`` allows, in bytes.

    Raises:
        UsageError: it is no size.
    """
    return None if given is None else size_bytes("--max-memory", given)
