"""Shares of an export: each is made by itself, on any of several machines, and what it makes is in the cache.

The export that follows finds all of it there. What it does not find, because a share was not made or was made
by another kind of machine, it makes itself: shares change how long an export takes, never its bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mobile_o_export.atomic import working_folder
from mobile_o_export.backends.registry import backend
from mobile_o_export.cache.layout import CacheError
from mobile_o_export.cache.store import Store
from mobile_o_export.errors import GateError
from mobile_o_export.exporting.making import Cost, Making, missed
from mobile_o_export.parity.judge import Row, Status
from mobile_o_export.plan import PlanItem, room_bytes
from mobile_o_export.progress import Done, Progress

if TYPE_CHECKING:
    from mobile_o_export.checkpoint import Checkpoint
    from mobile_o_export.targets import Target

SHARE_VERSION = "0.0.0"
"""Nothing that is kept depends on the bundle's version."""


@dataclass(frozen=True)
class Share:
    """The ``index``-th of ``count`` shares, counted from 1."""

    index: int
    count: int

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"


@dataclass(frozen=True)
class ShareResult:
    """What a share came to.

    Attributes:
        rows: the verdicts.
        costs: what its components took.
        chained: the targets whose chains are in it.
        components: how many the whole export has.
        cache: where everything is kept.
    """

    rows: tuple[Row, ...]
    costs: tuple[Cost, ...]
    chained: tuple[str, ...]
    components: int
    cache: str


class ShareError(GateError):
    """A share some of whose outputs missed their gates; the others are kept.

    Attributes:
        result: what came of it.
    """

    def __init__(self, result: ShareResult) -> None:
        self.result = result
        super().__init__(
            f"{missed(result.rows)}. Their verdicts are not kept: an export of the whole leaves the files "
            "for inspection."
        )


def units(items: Sequence[PlanItem], targets: Sequence[Target]) -> tuple[tuple[PlanItem, ...], ...]:
    """The smallest groups of ``items`` that can be made apart: those that share a folder stay together.

    What is skipped takes nothing and is in none.
    """
    vendors = {target.name: backend(target.backend) for target in targets}
    found: dict[tuple[str, str], list[PlanItem]] = {}
    for item in items:
        if item.request is not None:
            found.setdefault((item.target, vendors[item.target].folder(item.component)), []).append(item)
    return tuple(tuple(group) for group in found.values())


def divided(
    items: Sequence[PlanItem], targets: Sequence[Target], count: int
) -> tuple[tuple[PlanItem, ...], ...]:
    """``count`` shares of ``items``, about equal by estimated memory, as the work is; some may be empty.

    Whole targets where there are enough of them, else components.
    """
    whole = by_target(items)
    groups = whole if count <= len(whole) else units(items, targets)
    shares: list[list[PlanItem]] = [[] for _ in range(count)]
    loads = [0] * count
    # Largest first, each to whoever has least: at most a third above the best division (Graham, 1969).
    for group in sorted(groups, key=_load, reverse=True):
        least = loads.index(min(loads))
        shares[least] += group
        loads[least] += _load(group)
    order = {item.key: index for index, item in enumerate(items)}
    return tuple(tuple(sorted(share, key=lambda item: order[item.key])) for share in shares)


def export_share(
    checkpoint: Checkpoint,
    targets: Sequence[Target],
    components: Sequence[str],
    golden: Path | None,
    share: Share,
    store: Store,
    progress: Progress,
    calibration: Sequence[Path] = (),
    jobs: int = 1,
    max_memory_bytes: int | None = None,
) -> ShareResult:
    """Makes one share of what ``export_bundle`` would, for the arguments that they have in common.

    Raises:
        ShareError: an output missed its gate.
        CacheError: something could not be kept in ``store``.
        ExportError: as ``export_bundle``.
    """
    making = Making.of(
        checkpoint, targets, components, golden, calibration, store, jobs, max_memory_bytes, progress
    )
    return make_share(making, divided(making.items, targets, share.count)[share.index - 1], store)


def make_share(making: Making, items: Sequence[PlanItem], store: Store) -> ShareResult:
    """Makes ``items`` and, of targets that are among them as a whole, the chains; keeps them in ``store``.

    Args:
        making: how it is done, and what is exported in all; its cache is ``store``.
        items: what is made.
        store: the cache.

    Raises:
        ShareError: an output missed its gate.
        CacheError: something could not be kept.
        ExportError: as ``export_bundle``.
    """
    count = sum(item.request is not None for item in making.items)
    chained = [
        target.name
        for target in making.targets
        if {item.key for item in making.items if item.target == target.name} <= {item.key for item in items}
    ]
    rows: tuple[Row, ...] = ()
    costs: tuple[Cost, ...] = ()
    if items:
        with working_folder(
            store.root, room_bytes(items), lambda phrase: making.progress("disk", "", Done(phrase))
        ) as folder:
            sources = making.furnish(folder)
            made = making.components(folder, items, SHARE_VERSION, sources)
            rows, costs = made.rows, made.costs
            if chained:
                rows += making.chains(folder, made.manifest, chained).rows
        making.require_unchanged()
    result = ShareResult(rows, costs, tuple(chained), count, store.place)
    if any(row.status is not Status.PASSED for row in rows):
        raise ShareError(result)
    if not store.keeps:
        raise CacheError(
            f"{store.place}: not all of the share could be kept there, so that the export would not find it. "
            "Free some space, or choose another --cache, and run the command again."
        )
    return result


def by_target(items: Sequence[PlanItem]) -> list[tuple[PlanItem, ...]]:
    """The items of each target of which anything is exported, what it skips included."""
    found: dict[str, list[PlanItem]] = {}
    for item in items:
        found.setdefault(item.target, []).append(item)
    return [tuple(own) for own in found.values() if any(item.request is not None for item in own)]


def _load(group: Sequence[PlanItem]) -> int:
    return sum(item.memory_bytes for item in group)
