"""Measures every function of a bundle on this host's runtimes, and in PyTorch eager beside them."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from mobile_o_export import memory
from mobile_o_export.benching.calls import Repeats, Run, calls_to_time, latency
from mobile_o_export.benching.machine import Machine
from mobile_o_export.benching.measured import Call, ComponentRun, Latency, Outcome
from mobile_o_export.bundle.manifest import (
    GOLDEN_FOLDER,
    DamagedBundleError,
    Manifest,
    damage,
    manifest_digest,
    read_manifest,
)
from mobile_o_export.bundle.runners import BundleRunners, chosen_components, require_source
from mobile_o_export.errors import ExportError, MissingToolError
from mobile_o_export.golden import Golden
from mobile_o_export.parity.metrics import Array
from mobile_o_export.pipelines.pipeline import TORCH
from mobile_o_export.progress import Done, Progress, Say
from mobile_o_export.workers import run_alone

if TYPE_CHECKING:
    from mobile_o_export.checkpoint import Checkpoint

APPLE = ("coreml", "mobile-o-app")
"""Backends whose files have their runtime on Apple's systems alone."""

NOT_A_PHONE = (
    "Core ML runs on macOS alone. Here the MIL interpreter and PyTorch compute the files of {targets}: a "
    "check of the files, no measure of a phone's speed."
)

BUSY = 0.25
"""Of the cores. Above it, what already ran when a measurement began slows it down."""

OTHER_WORK = (
    "Other work was going on: the load was {load:.1f} on {cores} cores before anything was measured. Measure "
    "again on an idle machine."
)


@dataclass(frozen=True)
class Request:
    """What to measure and how often; all targets and components where none are named."""

    repeats: Repeats
    targets: Sequence[str] = ()
    components: Sequence[str] = ()


@dataclass(frozen=True)
class Benched:
    """A finished measurement.

    Attributes:
        machine: where it was made.
        bundle: identity of the bundle, hex SHA-256 of its manifest.
        bundle_version: the release manager's own.
        repeats: how often each call was made.
        runs: each component on each target.
        torch: the same calls in PyTorch eager, by component; empty without a checkpoint.
        notes: what the numbers do not say.
    """

    machine: Machine
    bundle: str
    bundle_version: str
    repeats: Repeats
    runs: tuple[ComponentRun, ...]
    torch: Mapping[str, ComponentRun]
    notes: tuple[str, ...]

    def eager(self, component: str, call: Call) -> Latency | None:
        """What PyTorch took for the recorded call that ``call`` replays; None where that was not measured."""
        run = self.torch.get(component)
        found = run.functions if run is not None else ()
        return next((latency for latency in found if latency.call.recorded == call.recorded), None)


def bench_bundle(
    folder: Path, request: Request, checkpoint: Checkpoint | None, progress: Progress
) -> Benched:
    """Latency, peak memory and size of the chosen functions of the bundle in ``folder``.

    Each component of each target runs in a process of its own, one after the other. They are spawned: a
    script that calls this needs ``if __name__ == "__main__":``. A component that fails or that this host
    cannot run has no numbers and a reason; the others are measured all the same.

    Args:
        folder: the bundle.
        request: what to measure, and how often.
        checkpoint: what the bundle was made from, to be run in PyTorch eager; None for the files alone.
        progress: told what happens.

    Raises:
        BundleError: there is no bundle in ``folder``.
        DamagedBundleError: a file is missing, changed or added.
        GoldenError: its golden is unusable.
        UsageError: the choice makes no sense, or the bundle was made from another checkpoint.
    """
    machine = Machine.here()
    manifest, identity = read_manifest(folder), manifest_digest(folder)
    chosen = chosen_components(folder, manifest, request.targets, request.components)
    if problems := damage(folder, manifest):
        raise DamagedBundleError(folder, problems)
    if checkpoint is not None:
        progress(TORCH, "", "computing the checkpoint's digest")
        require_source(folder, manifest, checkpoint.digest)
    golden = Golden.open(folder / GOLDEN_FOLDER)
    golden.require_checkpoint(manifest.checkpoint.digest)
    runs = []
    for target, component in chosen:
        task = _TargetTask(folder, manifest, golden, target, component, request.repeats)
        size_bytes = manifest.targets[target].components[component].size_bytes
        found = _measured(_run_target, task, target, component, progress)
        runs.append(replace(found, size_bytes=size_bytes))
    torch = {}
    if checkpoint is not None:
        for component in dict.fromkeys(component for _, component in chosen):
            calls = _recorded(run for run in runs if run.component == component)
            if calls:
                lora = None if checkpoint.lora is None else checkpoint.lora.path
                eager = _TorchTask(checkpoint.path, lora, golden, component, calls, request.repeats)
                torch[component] = _measured(_run_torch, eager, TORCH, component, progress)
    return Benched(
        machine=machine,
        bundle=identity,
        bundle_version=manifest.bundle_version,
        repeats=request.repeats,
        runs=tuple(runs),
        torch=torch,
        notes=tuple(_notes(machine, manifest, runs)),
    )


TaskT = TypeVar("TaskT")


def _measured(
    work: Callable[[TaskT, Say], ComponentRun], task: TaskT, target: str, component: str, progress: Progress
) -> ComponentRun:
    """What ``work`` measures in a process of its own, or why it could not."""
    try:
        found = run_alone(work, task, partial(progress, target, component))
    except MissingToolError as error:
        found = ComponentRun(target, component, Outcome.NOT_RUN, str(error))
    except ExportError as error:
        found = ComponentRun(target, component, Outcome.FAILED, str(error))
    progress(target, component, Done(_phrase(found.outcome)))
    return found


def _phrase(outcome: Outcome) -> str:
    return "not run here" if outcome is Outcome.NOT_RUN else str(outcome)


@dataclass(frozen=True)
class _TargetTask:
    """One component of one target, for the process that runs it."""

    folder: Path
    manifest: Manifest
    golden: Golden
    target: str
    component: str
    repeats: Repeats


def _run_target(task: _TargetTask, say: Say) -> ComponentRun:
    """Times every function on every graph."""
    entry = task.manifest.targets[task.target]
    graphs = tuple(graph.spec for graph in entry.components[task.component].graphs)
    functions = task.manifest.functions[task.component]
    say("loading")
    with BundleRunners(task.folder, task.manifest, task.target).open(task.component) as session:
        calls = calls_to_time(session, task.golden, task.component, functions, graphs, entry.sequence.longest)
        latencies = _latencies(session.run, task, calls, say)
        return ComponentRun(
            task.target,
            task.component,
            Outcome.MEASURED,
            runtime=session.runtime,
            threads=session.threads,
            peak_bytes=memory.peak_bytes(),
            functions=latencies,
        )


@dataclass(frozen=True)
class _TorchTask:
    """One component of a checkpoint, for the process that runs it."""

    checkpoint: Path
    lora: Path | None
    golden: Golden
    component: str
    calls: tuple[Call, ...]
    repeats: Repeats


def _run_torch(task: _TorchTask, say: Say) -> ComponentRun:
    """Times the calls in PyTorch eager."""
    from mobile_o_export.checkpoint import Checkpoint
    from mobile_o_export.reference import TorchRunner

    say("loading")
    runner = TorchRunner.of(Checkpoint.open(task.checkpoint, task.lora), task.component)

    def run(function: str, inputs: Mapping[str, Array], _graph: str | None) -> dict[str, Array]:
        return runner.run(function, inputs)

    latencies = _latencies(run, task, task.calls, say)
    return ComponentRun(
        TORCH,
        task.component,
        Outcome.MEASURED,
        runtime=runner.runtime,
        threads=runner.threads,
        peak_bytes=memory.peak_bytes(),
        functions=latencies,
    )


def _latencies(
    run: Run, task: _TargetTask | _TorchTask, calls: Iterable[Call], say: Say
) -> tuple[Latency, ...]:
    """Of each of ``calls``, in their order."""
    latencies = []
    for call in calls:
        say(f"timing {call.function} on {call.graph}" if call.graph else f"timing {call.function}")
        latencies.append(latency(run, task.golden, task.component, call, task.repeats))
    return tuple(latencies)


def _recorded(runs: Iterable[ComponentRun]) -> tuple[Call, ...]:
    """The calls that ``runs`` replayed, each once, as PyTorch makes them: without a graph."""
    calls = [latency.call for run in runs for latency in run.functions]
    return tuple({call.recorded: replace(call, graph="") for call in calls}.values())


def _notes(machine: Machine, manifest: Manifest, runs: Iterable[ComponentRun]) -> Iterator[str]:
    """What the numbers do not say."""
    measured = [run.target for run in runs if run.outcome is Outcome.MEASURED]
    apple = [name for name in dict.fromkeys(measured) if manifest.targets[name].backend in APPLE]
    if apple and sys.platform != "darwin":
        yield NOT_A_PHONE.format(targets=" and ".join(apple))
    if machine.load > BUSY * machine.cores:
        yield OTHER_WORK.format(load=machine.load, cores=machine.cores)
