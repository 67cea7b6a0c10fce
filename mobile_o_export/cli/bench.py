"""``bench``: how fast, how large and how hungry is a bundle on this host?"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mobile_o_export import __version__
from mobile_o_export.cli import screen
from mobile_o_export.cli.console import ProgressPrinter, megabytes, table
from mobile_o_export.cli.inspect import MergedLora
from mobile_o_export.cli.model import TargetNames
from mobile_o_export.cli.paths import expanded
from mobile_o_export.cli.plan import Components

if TYPE_CHECKING:
    from mobile_o_export.benching.bench import Benched
    from mobile_o_export.benching.measured import ComponentRun, Latency

NO_EAGER = (
    "note: a bundle holds no source weights. To see PyTorch eager beside the runtimes, give the checkpoint "
    "that it was made from with --checkpoint CKPT."
)


def bench(
    bundle: Annotated[Path, typer.Argument(help="The bundle's folder.", metavar="BUNDLE", callback=expanded)],
    target: TargetNames = None,
    component: Components = None,
    checkpoint: Annotated[
        Path | None,
        typer.Option(
            "--checkpoint",
            help="Also time PyTorch eager on this checkpoint, which the bundle was made from.",
            metavar="CKPT",
            callback=expanded,
        ),
    ] = None,
    lora: MergedLora = None,
    warmup: Annotated[
        int, typer.Option("--warmup", help="Untimed calls of each function first.", min=0, metavar="N")
    ] = 3,
    runs: Annotated[
        int, typer.Option("--runs", help="Timed calls of each function.", min=1, metavar="N")
    ] = 20,
    json_output: Annotated[
        bool, typer.Option("--json", help="Print every latency and its setting as JSON, schema 1.")
    ] = False,
) -> None:
    """Measure latency, peak memory and size.

    Call every function on each of its graphs with recorded inputs from the bundle's golden, on this host's
    runtimes. Print the median and the 95th percentile, next to PyTorch eager with --checkpoint. Each
    component runs in a process of its own, whose peak memory is shown beside the size of the files.

    Exit code 0 when something was measured and nothing failed; what this host has no runtime for is listed.
    1 when a component failed or its process died, 3 when this host can run nothing of it.
    """
    with ProgressPrinter() as progress:
        progress("bench", "", "hashing the bundle's files")
        from mobile_o_export.benching.bench import Request, bench_bundle
        from mobile_o_export.benching.calls import Repeats
        from mobile_o_export.benching.measured import Outcome
        from mobile_o_export.checkpoint import Checkpoint
        from mobile_o_export.errors import GateError, MissingToolError, UsageError

        if checkpoint is None and lora is not None:
            raise UsageError("--lora goes with --checkpoint; give the checkpoint too.")
        opened = None if checkpoint is None else Checkpoint.open(checkpoint, lora)
        request = Request(Repeats(warmup, runs), target or (), component or ())
        found = bench_bundle(bundle, request, opened, progress)
    if json_output:
        screen.result_json(_json(found))
    else:
        screen.result(_report(found))
    if checkpoint is None:
        screen.message(NO_EAGER)
    everything = (*found.runs, *found.torch.values())
    if failed := [run for run in everything if run.outcome is Outcome.FAILED]:
        raise GateError(
            f"{len(failed)} of {len(everything)} components failed, the first: {failed[0].target} "
            f"{failed[0].component}: {failed[0].reason}"
        )
    if all(run.outcome is Outcome.NOT_RUN for run in found.runs):
        raise MissingToolError(
            "nothing of it could be run on this machine; 'mobile-o-export doctor' says what to install."
        )


def _json(found: Benched) -> dict[str, Any]:
    """Everything that was measured, with what it was measured on."""
    return {
        "schema": 1,
        "version": __version__,
        "bundle": {"id": _identity(found), "version": found.bundle_version},
        "machine": asdict(found.machine),
        "warmup": found.repeats.warmup,
        "runs": found.repeats.runs,
        "components": [_component(run, found) for run in (*found.runs, *found.torch.values())],
        "notes": list(found.notes),
    }


def _component(run: ComponentRun, found: Benched) -> dict[str, Any]:
    return {
        "target": run.target,
        "component": run.component,
        "outcome": str(run.outcome),
        "reason": run.reason,
        "runtime": run.runtime,
        "threads": run.threads,
        "size_bytes": run.size_bytes,
        "peak_bytes": run.peak_bytes,
        "functions": [
            {
                "function": latency.call.function,
                "graph": latency.call.graph,
                "case": latency.call.case,
                "positions": latency.call.positions,
                "cached": latency.call.cached,
                "median_ms": latency.median_ms,
                "p95_ms": latency.p95_ms,
                "speedup": _speedup(latency, found.eager(run.component, latency.call)),
                "latencies_ms": list(latency.latencies_ms),
            }
            for latency in run.functions
        ],
    }


def _speedup(latency: Latency, eager: Latency | None) -> float | None:
    """PyTorch's median over this one."""
    return None if eager is None else eager.median_ms / latency.median_ms


def _report(found: Benched) -> str:
    """The functions, the components, what could not be measured, and what all of it was measured on."""
    parts = [_functions(found), _components(found), *found.notes, _setting(found)]
    return "\n\n".join(part for part in parts if part)


def _functions(found: Benched) -> str:
    """A line a function on a graph."""
    header = ["target", "component", "function", "graph", "positions", "median", "p95"]
    lines = []
    for run in found.runs:
        for latency in run.functions:
            call, eager = latency.call, found.eager(run.component, latency.call)
            line = [run.target, run.component, call.function, call.graph, _positions(latency)]
            line += [_milliseconds(latency.median_ms), _milliseconds(latency.p95_ms)]
            if found.torch:
                speedup = _speedup(latency, eager)
                line += (
                    ["-", "-", "-"]
                    if eager is None or speedup is None
                    else [
                        _milliseconds(eager.median_ms),
                        _milliseconds(eager.p95_ms),
                        f"{speedup:.2f}",
                    ]
                )
            lines.append(line)
    if found.torch:
        header += ["torch", "torch p95", "×"]
    return table(header, lines, right=range(4, len(header))) if lines else ""


def _components(found: Benched) -> str:
    """A line a component on a target, then PyTorch's, those without numbers with their reason."""
    lines = []
    for run in (*found.runs, *found.torch.values()):
        numbers = ["-" if size is None else megabytes(size) for size in (run.size_bytes, run.peak_bytes)]
        if run.reason:
            lines.append([run.target, run.component, *numbers, "-", f"{run.outcome}: {run.reason}"])
        else:
            threads = "its own choice" if run.threads is None else str(run.threads)
            lines.append([run.target, run.component, *numbers, threads, run.runtime])
    return table(["target", "component", "size", "peak memory", "threads", "runtime"], lines, right=(2, 3, 4))


def _positions(latency: Latency) -> str:
    call = latency.call
    if call.positions is None:
        return "-"
    return f"{call.positions} after {call.cached}" if call.cached else str(call.positions)


def _milliseconds(value: float) -> str:
    return f"{value:.2f} ms"


def _setting(found: Benched) -> str:
    """What the numbers hold for."""
    machine, repeats = found.machine, found.repeats
    version = f" ({found.bundle_version})" if found.bundle_version else ""
    return "\n".join(
        [
            f"calls of each function: {repeats.warmup} to warm up, then {repeats.runs} timed",
            f"machine: {machine.cpu}, {machine.cores} cores, {megabytes(machine.memory_bytes)} of memory, "
            f"load {machine.load:.1f}, {machine.system}, Python {machine.python}",
            f"bundle: {_identity(found)}{version}, measured by mobile-o-export {__version__}",
        ]
    )


def _identity(found: Benched) -> str:
    from mobile_o_export.bundle.manifest import ID_PREFIX

    return f"{ID_PREFIX}{found.bundle}"
