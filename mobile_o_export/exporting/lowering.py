"""Components of a bundle are lowered, or taken from the cache."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mobile_o_export.backends.base import Backend, LowerRequest
from mobile_o_export.backends.registry import backend
from mobile_o_export.bundle.manifest import ComponentEntry
from mobile_o_export.cache.exports import ExportCache
from mobile_o_export.cache.keys import read_components
from mobile_o_export.calibration import Calibration
from mobile_o_export.components.registry import component
from mobile_o_export.golden import Golden
from mobile_o_export.jobs import Job, Measured, measured
from mobile_o_export.lowered import Lowered, lower_component
from mobile_o_export.members import MemberName
from mobile_o_export.plan import PlanItem
from mobile_o_export.progress import Done, Progress, Say

if TYPE_CHECKING:
    from mobile_o_export.checkpoint import Checkpoint
    from mobile_o_export.compression.recipe import Recipe
    from mobile_o_export.targets import Sequence as Lengths
    from mobile_o_export.targets import Target


@dataclass(frozen=True)
class LowerTask:
    """One component to be lowered, for the worker that does it: a ``LowerRequest`` that can be pickled.

    Attributes:
        checkpoint: the folder of what it is a component of.
        lora: that of the adapter, if any.
        backend: the backend's name.
        target, component, recipe, sequence, options: as in the request, the component by its name.
        goldens: what activations are calibrated on.
        place: the folder to make.
        threads: PyTorch's; on other numbers of threads it adds up in another order.
    """

    checkpoint: Path
    lora: Path | None
    backend: str
    target: str
    component: str
    recipe: Recipe
    sequence: Lengths
    options: Mapping[str, Any]
    goldens: tuple[Golden, ...]
    place: Path
    threads: int


def lower_in_worker(task: LowerTask, say: Say) -> Measured[Lowered]:
    """Lowers it as ``lower_component`` does."""
    import torch

    from mobile_o_export.checkpoint import Checkpoint

    torch.set_num_threads(task.threads)
    checkpoint = Checkpoint.open(task.checkpoint, task.lora)
    vendor = backend(task.backend)
    part = checkpoint.part(read_components(vendor, task.component))
    calibration = Calibration(checkpoint, task.goldens)
    request = LowerRequest(task.target, component(task.component), task.recipe, task.sequence, task.options)
    return measured(lambda: lower_component(request, vendor, part, calibration, task.place, say))


@dataclass(frozen=True)
class LoweredItem:
    """One component's part of the bundle, and what it took."""

    entry: ComponentEntry
    seconds: float
    peak_bytes: int
    cached: bool


class Lowering:
    """Lowers the components of a bundle in ``folder``, or takes them from the cache.

    Attributes:
        lowered: by target and component, as far as it has come.
    """

    def __init__(
        self,
        folder: Path,
        checkpoint: Checkpoint,
        goldens: Sequence[Golden],
        cache: ExportCache,
        progress: Progress,
    ) -> None:
        self._folder = folder
        self._checkpoint = checkpoint
        self._goldens = goldens
        self._calibration = Calibration(checkpoint, goldens)
        self._cache = cache
        self._progress = progress
        self.lowered: dict[tuple[str, str], LoweredItem] = {}

    def jobs(self, items: Sequence[PlanItem], targets: Sequence[Target]) -> Iterator[Job[Measured[Lowered]]]:
        """One for each item whose files are not in the cache when it is its turn."""
        backends = {target.name: backend(target.backend) for target in targets}
        for item in items:
            if item.request is None:
                continue
            vendor = backends[item.target]
            # A folder of its own while it is lowered, even where it will share one with others.
            place = self._folder / item.target / f".{item.component}"
            place.parent.mkdir(exist_ok=True)
            asked = measured(partial(self._cache.lowered, place, item.request, vendor, self._goldens))
            found = asked.result
            if found.result is not None:
                taken = Measured(found.result, asked.seconds, asked.peak_bytes)
                self._place(item, vendor, place, taken, cached=True)
            else:
                yield self._job(item, item.request, vendor, place, found.keep)

    def _job(
        self,
        item: PlanItem,
        request: LowerRequest,
        vendor: Backend,
        place: Path,
        keep: Callable[[Lowered], None],
    ) -> Job[Measured[Lowered]]:
        import torch

        say = partial(self._progress, item.target, item.component)
        part = self._checkpoint.part(read_components(vendor, item.component))
        here = partial(lower_component, request, vendor, part, self._calibration, place, say)

        def done(made: Measured[Lowered]) -> None:
            keep(made.result)
            self._place(item, vendor, place, made, cached=False)

        return Job(
            name=f"{item.target}, {item.component}",
            memory_bytes=item.memory_bytes,
            here=partial(measured, here),
            work=lower_in_worker,
            task=LowerTask(
                checkpoint=self._checkpoint.path,
                lora=None if self._checkpoint.lora is None else self._checkpoint.lora.path,
                backend=vendor.name,
                target=item.target,
                component=item.component,
                recipe=request.recipe,
                sequence=request.sequence,
                options=request.options,
                goldens=tuple(self._goldens),
                place=place,
                threads=torch.get_num_threads(),
            ),
            say=say,
            done=done,
        )

    def _place(
        self, item: PlanItem, vendor: Backend, place: Path, made: Measured[Lowered], *, cached: bool
    ) -> None:
        """Moves the files in ``place`` to where they belong in the bundle."""
        lowered = made.result
        home = self._folder / item.target / vendor.folder(item.component)
        home.mkdir(exist_ok=True)
        for path in place.iterdir():
            path.rename(home / path.name)
        place.rmdir()
        self._cache.placed(home, lowered.files)
        below = home.relative_to(self._folder)
        entry = ComponentEntry(
            recipe=item.recipe,
            gate=item.gate,
            folder=MemberName(below.as_posix()),
            files=tuple(MemberName((below / name).as_posix()) for name in sorted(lowered.files)),
            size_bytes=lowered.size_bytes,
            graphs=lowered.graphs,
        )
        self.lowered[item.key] = LoweredItem(entry, made.seconds, made.peak_bytes, cached)
        origin = "from the cache, " if cached else ""
        size = f"{entry.size_bytes / 1e6:.1f} MB"
        self._progress(item.target, item.component, Done(f"lowered, {origin}{size}"))
