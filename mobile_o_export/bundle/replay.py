"""Replays goldens on a component's files and judges every output; no checkpoint is needed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

from mobile_o_export.bundle.manifest import ComponentEntry, Manifest
from mobile_o_export.bundle.runners import BundleRunners
from mobile_o_export.components.base import Continuity, FunctionSpec, GraphSpec
from mobile_o_export.errors import ExportError, MissingToolError
from mobile_o_export.golden import Case, Golden
from mobile_o_export.parity.judge import NO_RUNTIME, Judge, Row, Status, verdict
from mobile_o_export.parity.metrics import Array
from mobile_o_export.progress import Done, Progress
from mobile_o_export.session import Session
from mobile_o_export.tensors import TensorSpec

IDLE_GRAPH = "no golden case runs this graph; record a golden on a prompt of its length (--prompts)"
UNCOMPARED = "no golden case compares this output on this graph; record one of its length (--prompts)"


def finished(rows: Sequence[Row]) -> Done:
    """How verifying one component went."""
    if {row.status for row in rows} == {Status.NOT_RUN}:
        return Done("not run here")
    return Done(f"verified, {verdict(rows)}")


def verify_component(
    folder: Path, manifest: Manifest, golden: Golden, target: str, component: str, progress: Progress
) -> list[Row]:
    """The verdict on every output of one component on one target."""
    entry = manifest.targets[target].components[component]
    assert entry.gate is not None
    progress(target, component, "loading")
    with ExitStack() as stack:
        try:
            session = stack.enter_context(BundleRunners(folder, manifest, target).open(component))
        except MissingToolError as error:
            return [_unrun(target, component, entry, Status.NOT_RUN, str(error))]
        except ExportError as error:
            return [_unrun(target, component, entry, Status.FAILED, str(error))]
        judge = Judge(target, component, session.runtime, entry.gate)
        longest = manifest.targets[target].sequence.longest
        found = list(
            replay(session, golden, component, longest, judge, lambda case: progress(target, component, case))
        )
        rows = [row for _, row in found]
        compared = {(graph, row.function, row.output) for graph, row in found}
        functions = manifest.functions[component]
        for graph in entry.graphs:
            name = graph.spec.name
            if name not in session.graphs_run:
                rows.append(judge.row(name, "", "", Status.FAILED, IDLE_GRAPH))
                continue
            rows += [
                judge.row(function, f"@{name}", output, Status.FAILED, UNCOMPARED)
                for function, output in _owed(graph.spec, functions)
                if (name, function, output) not in compared
            ]
    return rows


def _owed(graph: GraphSpec, functions: Sequence[FunctionSpec]) -> Iterator[tuple[str, str]]:
    """The (function, output) pairs that have to be compared in cases that begin on ``graph``.

    A graph that starts a sequence is judged by what continues it too: nothing else reads its KV cache.
    """
    starts = False
    for function in functions:
        if function.name in graph.functions and function.continuity is not Continuity.CONTINUES:
            starts |= function.continuity is Continuity.STARTS
            yield from ((function.name, output.name) for output in function.outputs)
    for function in functions:
        if starts and function.continuity is Continuity.CONTINUES:
            yield from ((function.name, output.name) for output in function.outputs)


def replay(
    session: Session,
    golden: Golden,
    component: str,
    longest: int,
    judge: Judge,
    progress: Callable[[str], None],
) -> Iterator[tuple[str, Row]]:
    """Each case of ``component``, on every graph that its first call fits: the graph's name and the verdicts.

    A prompt beyond ``longest``, the target's own limit, is no case of this target: a session refuses it.
    Nor is one whose padding a graph cannot tell from it; whole chains show what becomes of that.
    """
    specs = {
        function.name: {spec.name: spec for spec in function.outputs}
        for function in golden.functions(component)
    }
    for case in golden.cases(component):
        first = case.steps[0]
        inputs = golden.inputs(first)
        length = session.length_of(first.function, inputs)
        graphs = session.graphs_for(first.function, length)
        if length is not None and length > longest:
            continue
        if not graphs:
            yield "", judge.row(first.function, case.name, "", Status.FAILED, "no graph takes this length")
        for graph in graphs:
            if not session.can_tell(graph, first.function, inputs):
                continue
            progress(f"{case.name} on {graph.name}")
            for row in _replay_case(session, case, graph.name, golden, specs, judge):
                yield graph.name, row


def _replay_case(
    session: Session,
    case: Case,
    graph: str,
    golden: Golden,
    specs: Mapping[str, Mapping[str, TensorSpec]],
    judge: Judge,
) -> Iterator[Row]:
    """The rows of one case; a call that fails fails every output that was still to come."""
    problem = ""
    for index, step in enumerate(case.steps):
        outputs: dict[str, Array] = {}
        if not problem:
            try:
                outputs = session.run(step.function, golden.inputs(step), graph if index == 0 else None)
            except ExportError as error:
                problem = str(error)
        name = case.name if len(case.steps) == 1 else f"{case.name}#{index}"
        label = f"{name}@{graph}"
        for output, key in step.outputs.items():
            if problem:
                yield judge.row(step.function, label, output, Status.FAILED, problem)
            else:
                spec = specs[step.function][output]
                yield judge.compare(step.function, label, spec, golden.tensor(key), outputs.get(output))


def _unrun(target: str, component: str, entry: ComponentEntry, status: Status, reason: str) -> Row:
    """The one row of a component whose files could not be opened."""
    assert entry.gate is not None
    return Judge(target, component, NO_RUNTIME, entry.gate).row("", "", "", status, reason)
