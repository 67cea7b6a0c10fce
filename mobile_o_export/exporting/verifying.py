"""Components of a bundle are verified, or their verdicts are taken from the cache."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from mobile_o_export import memory
from mobile_o_export.bundle.manifest import Manifest
from mobile_o_export.bundle.replay import finished, verify_component
from mobile_o_export.cache.exports import ExportCache
from mobile_o_export.golden import Golden
from mobile_o_export.jobs import Job, Measured, measured
from mobile_o_export.parity.judge import Row
from mobile_o_export.plan import PlanItem
from mobile_o_export.progress import Done, Progress, Say, said_by


@dataclass(frozen=True)
class VerifyTask:
    """One component of the bundle in ``folder`` to be verified, for the worker that does it.

    ``threads`` are PyTorch's; on other numbers of threads it adds up in another order.
    """

    folder: Path
    manifest: Manifest
    golden: Golden
    target: str
    component: str
    threads: int


def verify_in_worker(task: VerifyTask, say: Say) -> Measured[list[Row]]:
    """Its rows, as ``verify_component`` gives them."""
    import torch

    torch.set_num_threads(task.threads)

    of = (task.folder, task.manifest, task.golden, task.target, task.component)
    return measured(lambda: verify_component(*of, said_by(say)))


def told(rows: Sequence[Row], cached: bool) -> Done:
    """How verifying went, and whether that is known from before."""
    told = finished(rows)
    return Done(f"{told}, from the cache") if cached else told


@dataclass(frozen=True)
class VerifiedItem:
    """The verdicts on one component, and what they took."""

    rows: list[Row]
    seconds: float
    peak_bytes: int
    cached: bool


class Verifying:
    """Judges the components of the bundle in ``folder``, or takes the verdicts from the cache.

    Attributes:
        found: by target and component, as far as it has come.
    """

    def __init__(
        self, folder: Path, manifest: Manifest, golden: Golden, cache: ExportCache, progress: Progress
    ) -> None:
        self._folder = folder
        self._manifest = manifest
        self._golden = golden
        self._cache = cache
        self._progress = progress
        self.found: dict[tuple[str, str], VerifiedItem] = {}

    def jobs(self, items: Sequence[PlanItem]) -> Iterator[Job[Measured[list[Row]]]]:
        """One for each item whose verdicts are not in the cache when it is its turn."""
        import torch

        for item in items:
            if item.request is None:
                continue
            of = (self._folder, self._manifest, self._golden, item.target, item.component)
            asked = measured(partial(self._cache.verdict, *of))
            found = asked.result
            if found.result is not None:
                taken = Measured(found.result, asked.seconds, asked.peak_bytes)
                self._judged(item, taken, cached=True)
                continue

            def done(
                made: Measured[list[Row]],
                item: PlanItem = item,
                keep: Callable[[list[Row]], None] = found.keep,
            ) -> None:
                keep(made.result)
                self._judged(item, made, cached=False)

            yield Job(
                name=f"{item.target}, {item.component}",
                # Lowering keeps several copies of the weights, a runtime no more of them.
                memory_bytes=item.memory_bytes,
                here=partial(measured, partial(self._verified_here, of)),
                work=verify_in_worker,
                task=VerifyTask(*of, torch.get_num_threads()),
                say=partial(self._progress, item.target, item.component),
                done=done,
            )

    def _verified_here(self, of: tuple[Path, Manifest, Golden, str, str]) -> list[Row]:
        rows = verify_component(*of, self._progress)
        memory.release()
        return rows

    def _judged(self, item: PlanItem, made: Measured[list[Row]], *, cached: bool) -> None:
        self.found[item.key] = VerifiedItem(made.result, made.seconds, made.peak_bytes, cached)
        self._progress(item.target, item.component, told(made.result, cached))
