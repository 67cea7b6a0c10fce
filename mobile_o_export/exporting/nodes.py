"""An export on many machines: units of it are jobs for a cluster, and what they make is in the cache.

First every component by itself, then the chains of each target, whose components are in the cache by then.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mobile_o_export.atomic import working_folder
from mobile_o_export.cache.keys import surroundings
from mobile_o_export.cache.layout import CacheError
from mobile_o_export.cache.mirror import Mirror
from mobile_o_export.cache.store import Store
from mobile_o_export.errors import UnsupportedError
from mobile_o_export.exporting.making import Making
from mobile_o_export.exporting.shares import ShareError, ShareResult, by_target, make_share, units
from mobile_o_export.jobs import Job, Pool
from mobile_o_export.parity.judge import Status
from mobile_o_export.plan import PlanItem, room_bytes
from mobile_o_export.progress import Done, Progress, Say, said_by, silent
from mobile_o_export.targets import Target

if TYPE_CHECKING:
    from mobile_o_export.checkpoint import Checkpoint


@dataclass(frozen=True)
class UnitTask:
    """Components to be made by a process on any node, which keeps them in the cache.

    Attributes:
        checkpoint: the folder of what is exported.
        lora: that of the adapter, if any.
        targets, components, golden, calibration: as for ``export_bundle``.
        keys: of the items to make.
        cache: its folder.
        url: of its copy for several machines, if any.
        threads: PyTorch's.
        surroundings: of the process that asks; results of others would be other bytes.
    """

    checkpoint: Path
    lora: Path | None
    targets: tuple[Target, ...]
    components: tuple[str, ...]
    golden: Path | None
    calibration: tuple[Path, ...]
    keys: frozenset[tuple[str, str]]
    cache: Path
    url: str | None
    threads: int
    surroundings: Mapping[str, Any]


@dataclass(frozen=True)
class UnitResult:
    """What was made, and under which names it is in the cache."""

    share: ShareResult
    names: frozenset[str]


def make_unit(task: UnitTask, say: Say) -> UnitResult:
    """Makes it; what misses its gate is in the result and not in the cache.

    Raises:
        UnsupportedError: this machine, or what is installed on it, is another than where it was asked for.
        ExportError: as ``export_share``.
    """
    import torch

    from mobile_o_export.checkpoint import Checkpoint

    torch.set_num_threads(task.threads)
    if differing := next(_differing(task.surroundings, surroundings()), None):
        raise UnsupportedError(
            f"a node of the cluster differs in {differing} from the machine of this command, and would make "
            "other bytes. Use nodes of one kind with the same packages, and start the command on one of them."
        )

    store = Store.open(task.cache, say, None if task.url is None else Mirror(task.url))
    making = Making.of(
        Checkpoint.open(task.checkpoint, task.lora),
        task.targets,
        task.components,
        task.golden,
        task.calibration,
        store,
        1,
        None,
        said_by(say),
    )
    try:
        made = make_share(making, [item for item in making.items if item.key in task.keys], store)
    except ShareError as error:
        made = error.result
    return UnitResult(made, frozenset(store.used))


def export_on_nodes(
    checkpoint: Checkpoint,
    targets: Sequence[Target],
    components: Sequence[str],
    golden: Path | None,
    store: Store,
    pool: Pool,
    progress: Progress,
    calibration: Sequence[Path] = (),
    max_memory_bytes: int | None = None,
) -> None:
    """Makes on the nodes of ``pool`` what an export would make here, which then finds it in ``store``.

    What misses a gate is left to that export. Arguments as for ``export_bundle``.

    Raises:
        CacheError: what nodes keep is not found here.
        ExportError: as ``export_bundle``.
    """
    making = Making.of(
        checkpoint, targets, components, golden, calibration, store, 1, max_memory_bytes, progress
    )
    # The golden is recorded once, and not by every node.
    with working_folder(store.root, room_bytes(()), silent) as folder:
        making.furnish(folder)
    done: list[UnitResult] = []
    pool.run(_jobs(units(making.items, targets), making, golden, calibration, store, done.append))
    good = {
        target.name
        for target in targets
        if all(
            row.status is Status.PASSED
            for unit in done
            for row in unit.share.rows
            if row.target == target.name
        )
    }
    chained = {name for unit in done for name in unit.share.chained}
    whole = [group for group in by_target(making.items) if group[0].target in good - chained]
    pool.run(_jobs(whole, making, golden, calibration, store, done.append))
    if lost := [name for unit in done for name in unit.names if not store.has(name)]:
        raise CacheError(
            f"{store.place}: {lost[0]} was stored by a node and is not here. Give a --cache that all nodes "
            "share: one folder, or the URL of an object store."
        )


def _jobs(
    groups: Iterable[Sequence[PlanItem]],
    making: Making,
    golden: Path | None,
    calibration: Sequence[Path],
    store: Store,
    done: Callable[[UnitResult], object],
) -> Iterator[Job[UnitResult]]:
    """One for each of ``groups``."""
    import torch

    checkpoint = making.checkpoint
    for group in groups:
        exported = [item for item in group if item.request is not None]
        target = exported[0].target
        names = ", ".join(item.component for item in exported)
        task = UnitTask(
            checkpoint=checkpoint.path.resolve(),
            lora=None if checkpoint.lora is None else checkpoint.lora.path.resolve(),
            targets=tuple(making.targets),
            components=tuple(dict.fromkeys(item.component for item in making.items)),
            golden=None if golden is None else golden.resolve(),
            calibration=tuple(path.resolve() for path in calibration),
            keys=frozenset(item.key for item in group),
            cache=store.root.resolve(),
            url=None if store.mirror is None else store.mirror.url,
            threads=torch.get_num_threads(),
            surroundings=surroundings(),
        )

        def finished(result: UnitResult, target: str = target, names: str = names) -> None:
            done(result)
            making.progress(target, names, Done("made on a node"))

        yield Job(
            name=f"{target}, {names}",
            memory_bytes=max(item.memory_bytes for item in exported),
            here=partial(make_unit, task, silent),
            work=make_unit,
            task=task,
            say=partial(making.progress, target, names),
            done=finished,
        )


def _differing(wanted: Mapping[str, Any], found: Mapping[str, Any], within: str = "") -> Iterator[str]:
    """What differs, as ``packages, torch (2.13.0 and 2.12.0)``."""
    for name in sorted(wanted.keys() | found.keys()):
        one, other = wanted.get(name), found.get(name)
        if isinstance(one, Mapping) and isinstance(other, Mapping):
            yield from _differing(one, other, f"{within}{name}, ")
        elif one != other:
            yield f"{within}{name} ({one} and {other})"
