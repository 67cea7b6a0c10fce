"""Whole chains over a target's components are judged, or their verdicts are taken from the cache."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from mobile_o_export import memory
from mobile_o_export.bundle.chains import Chain, verify_chains
from mobile_o_export.bundle.manifest import Manifest
from mobile_o_export.bundle.outcomes import OutcomeWriter
from mobile_o_export.cache.exports import ExportCache
from mobile_o_export.exporting.verifying import told
from mobile_o_export.golden import Golden
from mobile_o_export.jobs import Job, Measured, measured
from mobile_o_export.parity.chain import CHAIN
from mobile_o_export.parity.judge import Row
from mobile_o_export.parity.metrics import Array
from mobile_o_export.pipelines.answering import Answer
from mobile_o_export.pipelines.drawing import Drawing
from mobile_o_export.plan import PlanItem
from mobile_o_export.progress import Progress, Say, said_by


@dataclass(frozen=True)
class ChainTask:
    """The chains of a target of the bundle in ``folder``, for the worker that judges them.

    ``threads`` are PyTorch's; on other numbers of threads it adds up in another order.
    """

    folder: Path
    manifest: Manifest
    golden: Golden
    target: str
    threads: int


@dataclass(frozen=True)
class Judged:
    """The verdicts on a target's chains, and the picture or text that came out of each."""

    rows: list[Row]
    results: tuple[tuple[Chain, Array | str], ...]


def judge_in_worker(task: ChainTask, say: Say) -> Measured[Judged]:
    """What :func:`judge` finds, in a process of its own."""
    import torch

    torch.set_num_threads(task.threads)

    return measured(lambda: judge(task.folder, task.manifest, task.golden, task.target, said_by(say)))


def judge(folder: Path, manifest: Manifest, golden: Golden, target: str, progress: Progress) -> Judged:
    """The verdicts on the chains of ``target``; none where it has not the components for one."""
    results: list[tuple[Chain, Array | str]] = []

    def keep(_target: str, chain: Chain, result: Drawing | Answer) -> None:
        results.append((chain, result.text if isinstance(result, Answer) else result.image))

    rows = verify_chains(folder, manifest, golden, target, progress, keep)
    memory.release()
    return Judged(rows, tuple(results))


@dataclass(frozen=True)
class ChainedTarget:
    """The verdicts on one target's chains, and what they took."""

    rows: list[Row]
    seconds: float


class Chaining:
    """Judges the chains of the bundle in ``folder``, or takes the verdicts from the cache.

    Attributes:
        found: by target, as far as it has come.
    """

    def __init__(
        self,
        folder: Path,
        manifest: Manifest,
        golden: Golden,
        outcomes: OutcomeWriter,
        cache: ExportCache,
        progress: Progress,
    ) -> None:
        self._folder = folder
        self._manifest = manifest
        self._golden = golden
        self._outcomes = outcomes
        self._cache = cache
        self._progress = progress
        self.found: dict[str, ChainedTarget] = {}

    def jobs(self, targets: Sequence[str], items: Sequence[PlanItem]) -> Iterator[Job[Measured[Judged]]]:
        """One for each of ``targets`` whose verdicts are not in the cache; ``items`` are what it exports."""
        import torch

        for target in targets:
            of = (self._folder, self._manifest, self._golden, target)
            asked = measured(partial(self._cache.chains, *of, self._outcomes))
            found = asked.result
            if found.result is not None:
                self._judged(target, found.result, asked.seconds, cached=True)
                continue

            def done(
                made: Measured[Judged], target: str = target, keep: Callable[[list[Row]], None] = found.keep
            ) -> None:
                for chain, result in made.result.results:
                    self._outcomes.add(target, chain, result)
                keep(made.result.rows)
                self._judged(target, made.result.rows, made.seconds, cached=False)

            yield Job(
                name=f"{target}, chains",
                # One component is loaded at a time.
                memory_bytes=max((item.memory_bytes for item in items if item.target == target), default=0),
                here=partial(measured, partial(judge, *of, self._progress)),
                work=judge_in_worker,
                task=ChainTask(*of, torch.get_num_threads()),
                say=partial(self._progress, target, CHAIN),
                done=done,
            )

    def _judged(self, target: str, rows: list[Row], seconds: float, *, cached: bool) -> None:
        self.found[target] = ChainedTarget(rows, seconds)
        if rows:
            self._progress(target, CHAIN, told(rows, cached))
