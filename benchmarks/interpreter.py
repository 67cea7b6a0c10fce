"""The MIL interpreter next to PyTorch eager: seconds a call of every function of a target's packages.

    python benchmarks/interpreter.py CKPT --work FOLDER [--target coreml-ane] [--component llm …] [--times 5]

``FOLDER`` keeps the packages, one folder a component: those that it lacks are lowered first, and what is
there is taken as it is. Each component is measured in a process of its own. Eager is the fp32 module that
parity compares with; the interpreter computes without rounding (fp32) and with every result rounded to its
MIL type (typed). All three get the same random inputs, of a bucket's full length, with the same number of
threads (OMP_NUM_THREADS) and with freed memory kept for reuse. They take turns, and of each one's calls the
quickest counts. ``×`` is the interpreter's time over eager's. ``first`` is the typed interpreter's first
call, which restores the weights that no function before it has used; ``peak`` is of the process after these
calls, when nothing else is loaded.

Seconds are those of the processor, of all threads: beside other work they say more than the clock's.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from mobile_o_export import memory
from mobile_o_export.backends.base import Artifact, GraphFile
from mobile_o_export.backends.coreml.interpreted import InterpreterExecutor
from mobile_o_export.backends.registry import backend
from mobile_o_export.checkpoint import Checkpoint
from mobile_o_export.cli.console import megabytes, table
from mobile_o_export.components.base import GraphSpec
from mobile_o_export.components.registry import COMPONENT_NAMES, component
from mobile_o_export.errors import ExportError
from mobile_o_export.members import MemberName
from mobile_o_export.parity.metrics import Array
from mobile_o_export.plan import plan
from mobile_o_export.progress import Say, silent
from mobile_o_export.quiet import quiet_vendor
from mobile_o_export.reference import TorchRunner
from mobile_o_export.session import SEQUENCE, Session
from mobile_o_export.targets import load_targets
from mobile_o_export.tensors import Role, TensorSpec
from mobile_o_export.workers import run_alone

LOWERED = "graphs.json"
"""Beside a component's package, written last: the function of each graph."""


def lowered(checkpoint: Checkpoint, target: str, name: str, work: Path) -> Artifact:
    """The packages of a component, lowered unless ``work`` has them."""
    (chosen,) = load_targets([target])
    (item,) = plan(checkpoint, [chosen], [name])
    vendor, place = backend(chosen.backend), work / name
    if not (place / LOWERED).exists():
        print(f"lowering {name} …", file=sys.stderr, flush=True)
        if place.exists():
            sys.exit(f"{place} was not written to its end, or not by this script. Remove it.")
        place.mkdir(parents=True)
        with quiet_vendor():
            made = vendor.lower(item.request, checkpoint, place, lambda _: None)
        entries = {graph.spec.name: [graph.file, graph.entry] for graph in made.graphs}
        (place / LOWERED).write_text(json.dumps(entries))
    files = json.loads((place / LOWERED).read_text())
    specs = component(name).graphs(checkpoint, vendor.graph_options(item.request))
    placed = [(spec, *files[spec.name]) for spec in specs]
    return Artifact(tuple(GraphFile(spec, MemberName(file), entry) for spec, file, entry in placed))


def values(spec: TensorSpec, random: np.random.Generator) -> Array:
    """Random numbers for an input."""
    if spec.role is Role.TIMESTEP:
        return np.full(spec.shape, 500, np.float32)
    if spec.role is Role.TOKENS:
        assert spec.range is not None
        return random.integers(*map(int, spec.range), spec.shape, dtype=str(spec.dtype))
    return random.standard_normal(spec.shape, np.float32)


def length_of(graph: GraphSpec) -> int:
    """The positions that a graph takes; 1 where it has no sequence axis."""
    lengths = (
        spec.shape[spec.layout.split().index("S")] for spec in graph.inputs if "S" in spec.layout.split()
    )
    return int(next(lengths, 1))


def timed(call: Callable[[Any], Any], runner: Session | TorchRunner) -> float:
    """Processor seconds of one call."""
    started = time.process_time()
    call(runner)
    return time.process_time() - started


def calls(artifact: Artifact, functions: dict[str, Any]) -> Iterator[tuple[str, Callable[[Any], Any]]]:
    """Every graph's name, and what calls its function: of a session over the graph, or of eager."""
    random = np.random.default_rng(0)
    for file in artifact.graphs:
        (name,) = file.spec.functions
        inputs = {
            spec.name: values(spec.bind({SEQUENCE: length_of(file.spec)}), random)
            for spec in functions[name].inputs
        }

        def call(
            runner: Session | TorchRunner,
            name: str = name,
            graph: str = file.spec.name,
            inputs: dict[str, Array] = inputs,
        ) -> Any:
            if isinstance(runner, Session):
                return runner.run(name, inputs, graph)
            return runner.run(name, inputs)

        yield file.spec.name, call


def measure(task: tuple[Path, str, str, Path, int], _say: Say) -> dict[str, Any]:
    """What the functions of a component took: of checkpoint, target, component, work folder, repeats."""
    import torch

    path, target, name, work, times = task
    checkpoint = Checkpoint.open(path)
    artifact = lowered(checkpoint, target, name, work)
    functions = {function.name: function for function in component(name).functions(checkpoint)}
    package, entries = artifact.graphs[0].file, {graph.spec.name: graph.entry for graph in artifact.graphs}
    specs = [graph.spec for graph in artifact.graphs]
    graphs = dict(calls(artifact, functions))

    def session(*, fp32: bool) -> Session:
        executor = InterpreterExecutor(work / name / package, entries, name, fp32=fp32)
        return Session(list(functions.values()), specs, executor)

    memory.release()
    memory.reset_peak()
    runners: dict[str, Any] = {"typed": session(fp32=False)}
    found: dict[str, dict[str, float]] = {}
    for graph, call in graphs.items():
        found[graph] = {"first": timed(call, runners["typed"])}
    peak = memory.peak_bytes()
    runners["fp32"] = session(fp32=True)
    runners["eager"] = TorchRunner.of(checkpoint, name)
    for graph, call in graphs.items():
        for runner in runners.values():
            call(runner)  # warm; of decode, after the prefill before it
        for _ in range(times):
            for kind in ("eager", "fp32", "typed"):
                seconds = timed(call, runners[kind])
                found[graph][kind] = min(seconds, found[graph].get(kind, seconds))
    return {"functions": found, "peak": peak, "threads": torch.get_num_threads()}


def row(component: str, function: str, seconds: dict[str, float], peak: int) -> list[str]:
    eager = seconds["eager"]
    return [
        component,
        function,
        f"{eager:.3f} s",
        *(
            text
            for kind in ("fp32", "typed")
            for text in (f"{seconds[kind]:.3f} s", f"{seconds[kind] / eager:.2f}")
        ),
        f"{seconds['first']:.2f} s",
        megabytes(peak),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--work", type=Path, required=True, help="where packages are, or will be")
    parser.add_argument("--target", default="coreml-ane")
    parser.add_argument("--component", action="append", choices=COMPONENT_NAMES)
    parser.add_argument("--times", type=int, default=5, help="calls of each, of which the quickest counts")
    parser.add_argument("--json", type=Path, help="also write everything measured here")
    arguments = parser.parse_args()
    results = {}
    for name in arguments.component or COMPONENT_NAMES:
        print(f"measuring {name} …", file=sys.stderr, flush=True)
        task = (arguments.checkpoint.resolve(), arguments.target, name, arguments.work.resolve())
        try:
            results[name] = run_alone(measure, (*task, arguments.times), silent)
        except ExportError as error:
            sys.exit(f"{name}: {error}")
    (threads,) = {found["threads"] for found in results.values()}
    print(f"\n{arguments.target}, {threads} threads\n")
    header = ["component", "function", "eager", "fp32", "×", "typed", "×", "first", "peak"]
    rows = [
        row(name, function, seconds, found["peak"])
        for name, found in results.items()
        for function, seconds in found["functions"].items()
    ]
    print(table(header, rows, right=range(2, 9)))
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
