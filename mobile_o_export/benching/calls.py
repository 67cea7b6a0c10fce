"""Which recorded calls are timed, and the timing of one.

A golden's calls have real inputs: prompts, pictures, and caches that a real prefix has filled.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from time import perf_counter

from mobile_o_export.benching.measured import Call, Latency
from mobile_o_export.bundle.replay import IDLE_GRAPH
from mobile_o_export.components.base import FunctionSpec, GraphSpec
from mobile_o_export.errors import GateError
from mobile_o_export.golden import Case, Golden, Step
from mobile_o_export.parity.metrics import Array
from mobile_o_export.session import Session

Run = Callable[[str, Mapping[str, Array], str | None], dict[str, Array]]
"""Takes a function, its inputs and the graph, None for the smallest that fits; gives the outputs."""


@dataclass(frozen=True)
class Repeats:
    """How often each call is made: first ``warmup`` times untimed, then ``runs`` times timed."""

    warmup: int
    runs: int


@dataclass(frozen=True)
class Timed:
    """One timed call: the golden's step that it replays, and what it computed in how long."""

    step: Step
    outputs: Mapping[str, Array]
    seconds: float


def calls_to_time(
    session: Session,
    golden: Golden,
    component: str,
    functions: tuple[FunctionSpec, ...],
    graphs: tuple[GraphSpec, ...],
    longest: int,
) -> list[Call]:
    """The call to time of each function on each of its graphs, in the order of ``functions`` and ``graphs``.

    It is the recorded one with the longest sequence that the graph takes, cached positions included: a
    padded graph computes all of its length anyway, and so has the least padding. ``longest`` is the target's
    own limit of a prompt.

    Raises:
        GateError: no recorded call fits a graph.
    """
    chosen: dict[tuple[str, str], Call] = {}
    for case in golden.cases(component):
        for call in _calls_of(session, golden, case, longest):
            place = call.function, call.graph
            if place not in chosen or _extent(call) > _extent(chosen[place]):
                chosen[place] = call
    places = [
        (function.name, graph.name)
        for function in functions
        for graph in graphs
        if function.name in graph.functions
    ]
    if idle := [place for place in places if place not in chosen]:
        function, graph = idle[0]
        raise GateError(f"{function} on {graph} cannot be timed: {IDLE_GRAPH}")
    return [chosen[place] for place in places]


def _calls_of(session: Session, golden: Golden, case: Case, longest: int) -> Iterator[Call]:
    """The first call of ``case`` on each graph that takes it, and the first call of what continues it."""
    first = case.steps[0]
    inputs = golden.inputs(first)
    length = session.length_of(first.function, inputs)
    if length is not None and length > longest:
        return
    graphs = [
        graph
        for graph in session.graphs_for(first.function, length)
        if session.can_tell(graph, first.function, inputs)
    ]
    for graph in graphs:
        yield Call(first.function, graph.name, case.name, 0, length, 0)
    if graphs and len(case.steps) > 1:
        after = case.steps[1]
        positions = session.length_of(after.function, golden.inputs(after))
        for graph in session.graphs_for(after.function, positions):
            # A function that continues a sequence without a sequence axis takes one position.
            yield Call(after.function, graph.name, case.name, 1, positions or 1, length or 0)


def _extent(call: Call) -> int:
    return (call.positions or 0) + call.cached


def latency(run: Run, golden: Golden, component: str, call: Call, repeats: Repeats) -> Latency:
    """The latencies of ``call``, after the warm-up."""
    timed = repeated(run, golden, component, call)
    for _ in islice(timed, repeats.warmup):
        pass
    return Latency(call, tuple(1000.0 * made.seconds for made in islice(timed, repeats.runs)))


def repeated(run: Run, golden: Golden, component: str, call: Call) -> Iterator[Timed]:
    """Makes ``call`` again and again, without end.

    What continues a sequence is not the same twice: its recorded steps follow one another (a token each).
    After the last of them the sequence starts anew, untimed. So every call has exactly the recorded inputs
    and cache.
    """
    (case,) = (case for case in golden.cases(component) if case.name == call.case)
    others = (i for i, step in enumerate(case.steps) if i > call.first and step.function != call.function)
    steps = case.steps[: next(others, len(case.steps)) if call.first else 1]
    inputs = [golden.inputs(step) for step in steps]
    while True:
        for index, (step, given) in enumerate(zip(steps, inputs, strict=True)):
            if index < call.first:
                run(step.function, given, None)
                continue
            started = perf_counter()
            outputs = run(step.function, given, call.graph or None)
            yield Timed(step, outputs, perf_counter() - started)
