"""``bench``: what it reports, of which calls, and what becomes of processes that cannot finish."""

from __future__ import annotations

import json
import os
import re
import signal
import time
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from cli_harness import REPOSITORY, Cli, finish, start

from mobile_o_export.benching import bench
from mobile_o_export.benching.calls import calls_to_time, repeated
from mobile_o_export.benching.measured import Call, ComponentRun, Latency
from mobile_o_export.bundle.manifest import manifest_digest, read_manifest
from mobile_o_export.bundle.runners import BundleRunners
from mobile_o_export.errors import MissingToolError, UsageError
from mobile_o_export.golden import Golden
from mobile_o_export.parity.judge import Judge, Status
from mobile_o_export.progress import Say
from mobile_o_export.workers import ProcessDiedError, run_alone

BRIEF = ("--warmup", "1", "--runs", "3")
TARGET, COMPONENT = "tensorrt-orin", "mcp"


def keys(value: Any) -> set[str]:
    """Every key of the objects in a JSON value."""
    if isinstance(value, dict):
        return set(value).union(*map(keys, value.values()))
    return set().union(*map(keys, value)) if isinstance(value, list) else set()


def documented_keys() -> set[str]:
    """The keys in the README's JSON of ``bench``."""
    readme = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    return set(re.findall(r'"(\w+)"', readme.partition("`bench --json` prints `")[2].partition("}]}`")[0]))


# --- what is reported ---


def test_json_is_what_the_readme_says(cli: Cli, small_bundle: Path, reference_folder: Path) -> None:
    done = cli("bench", small_bundle, "--checkpoint", reference_folder, *BRIEF, "--json")
    assert done.code == 0, done.err
    assert "note:" not in done.err
    found = json.loads(done.out)
    assert keys(found) == documented_keys()
    assert (found["schema"], found["warmup"], found["runs"]) == (1, 1, 3)
    assert found["bundle"] == {"id": f"sha256:{manifest_digest(small_bundle)}", "version": "1.2.3"}
    assert found["machine"]["cores"] >= 1
    assert found["machine"]["memory_bytes"] > 1 << 30
    ours, torch = found["components"]
    assert (ours["target"], ours["component"], ours["outcome"]) == (TARGET, COMPONENT, "measured")
    assert ours["runtime"].startswith("onnxruntime")
    assert ours["size_bytes"] == read_manifest(small_bundle).targets[TARGET].components[COMPONENT].size_bytes
    assert (torch["target"], torch["size_bytes"]) == ("torch", None)
    assert torch["runtime"].startswith("PyTorch")
    assert torch["threads"] >= 1
    # PyTorch's process holds PyTorch.
    assert torch["peak_bytes"] > ours["peak_bytes"] > 1 << 24
    (ran,), (eager,) = ours["functions"], torch["functions"]
    for function in (ran, eager):
        latencies = function["latencies_ms"]
        assert len(latencies) == 3
        assert min(latencies) > 0
        assert function["median_ms"] == sorted(latencies)[1]
        assert function["p95_ms"] == max(latencies)
        assert function["function"] == "project"
        assert function["case"] == "long-conditional"
        assert function["positions"] > 64
    assert (ran["graph"], eager["graph"]) == ("project", "")
    assert ran["speedup"] == eager["median_ms"] / ran["median_ms"]


def test_tables_without_a_checkpoint(cli: Cli, small_bundle: Path) -> None:
    done = cli("bench", small_bundle, *BRIEF)
    assert done.code == 0, done.err
    functions, components, *_, setting = done.out.split("\n\n")
    assert functions.split("\n")[0].split() == [
        "target", "component", "function", "graph", "positions", "median", "p95"
    ]  # fmt: skip
    assert functions.split("\n")[2].split()[:4] == [TARGET, COMPONENT, "project", "project"]
    assert "its own choice" in components
    assert "onnxruntime" in components
    assert "torch" not in done.out.replace("torch-", "")
    assert "calls of each function: 1 to warm up, then 3 timed" in setting
    assert f"bundle: sha256:{manifest_digest(small_bundle)} (1.2.3)" in setting
    assert "--checkpoint CKPT" in done.err


def test_tables_with_one(cli: Cli, small_bundle: Path, reference_folder: Path) -> None:
    done = cli("bench", small_bundle, "--checkpoint", reference_folder, *BRIEF)
    assert done.code == 0, done.err
    header, _, line = done.out.split("\n\n")[0].split("\n")
    assert header.split()[-4:] == ["torch", "torch", "p95", "×"]
    median, eager, speedup = float(line.split()[5]), float(line.split()[9]), float(line.split()[-1])
    assert speedup == pytest.approx(eager / median, abs=0.02, rel=0.02)


def test_percentiles_are_latencies_that_were_measured() -> None:
    call = Call("f", "g", "c", 0, None, 0)
    twenty = Latency(call, tuple(float(number) for number in range(20, 0, -1)))
    assert (twenty.median_ms, twenty.p95_ms) == (10.5, 19.0)
    assert Latency(call, (7.0,)).p95_ms == 7.0
    assert Latency(call, tuple(map(float, range(1, 22)))).p95_ms == 20.0


SOME = ("--component", "llm", "--component", "mcp")
"""One with a KV cache, one without: on every target and in PyTorch each is a process of its own."""


@pytest.mark.slow
def test_every_function_of_every_target(cli: Cli, bundle: Path, reference_folder: Path) -> None:
    arguments = ("--checkpoint", reference_folder, "--warmup", "0", "--runs", "1", "--json")
    done = cli("bench", bundle, *SOME, *arguments)
    assert done.code == 0, done.err
    found = json.loads(done.out)
    manifest = read_manifest(bundle)
    places = [
        (target, component, function, graph.spec.name)
        for target, entry in manifest.targets.items()
        for component in entry.exported
        if component in SOME
        for graph in entry.components[component].graphs
        for function in graph.spec.functions
    ]
    measured = [
        (run["target"], run["component"], function["function"], function["graph"])
        for run in found["components"]
        if run["target"] != "torch"
        for function in run["functions"]
    ]
    assert sorted(measured) == sorted(places)
    assert {run["outcome"] for run in found["components"]} == {"measured"}
    assert [run["component"] for run in found["components"] if run["target"] == "torch"] == ["llm", "mcp"]
    ran = [f for run in found["components"] if run["target"] != "torch" for f in run["functions"]]
    assert all(function["speedup"] > 0 for function in ran)
    (interpreted,) = [note for note in found["notes"] if "coreml-ane" in note]
    assert "no measure of a phone's speed" in interpreted
    assert "litert-cpu" not in interpreted


# --- which calls are timed ---


@pytest.mark.parametrize("target", ["litert-cpu", "tensorrt-orin"])
def test_every_timed_call_computes_what_the_golden_recorded(bundle: Path, target: str) -> None:
    """A cache that is not the recorded one would be seen in what decode gives."""
    manifest, golden = read_manifest(bundle), Golden.open(bundle / "golden")
    entry = manifest.targets[target].components["llm"]
    functions = manifest.functions["llm"]
    specs = {(function.name, spec.name): spec for function in functions for spec in function.outputs}
    compared = set()
    with BundleRunners(bundle, manifest, target).open("llm") as session:
        judge = Judge(target, "llm", session.runtime, entry.gate)
        longest = manifest.targets[target].sequence.longest
        graphs = tuple(graph.spec for graph in entry.graphs)
        for call in calls_to_time(session, golden, "llm", functions, graphs, longest):
            (case,) = (case for case in golden.cases("llm") if case.name == call.case)
            # Further than the case goes: its last steps are followed by its first ones.
            for made in islice(repeated(session.run, golden, "llm", call), len(case.steps) + 1):
                assert made.step.function == call.function
                assert made.seconds > 0
                for output, key in made.step.outputs.items():
                    spec = specs[call.function, output]
                    row = judge.compare(
                        call.function, call.case, spec, golden.tensor(key), made.outputs[output]
                    )
                    assert row.status is Status.PASSED, row
                    compared.add((call.function, output))
    assert compared == set(specs)


def test_each_graph_gets_the_longest_call_that_it_takes(bundle: Path) -> None:
    manifest, golden = read_manifest(bundle), Golden.open(bundle / "golden")
    entry = manifest.targets["litert-cpu"]
    graphs = tuple(graph.spec for graph in entry.components["llm"].graphs)
    with BundleRunners(bundle, manifest, "litert-cpu").open("llm") as session:
        calls = calls_to_time(
            session, golden, "llm", manifest.functions["llm"], graphs, entry.sequence.longest
        )
    lengths = {
        case.name: golden.inputs(case.steps[0])["inputs_embeds"].shape[1]
        for case in golden.cases("llm")
        if case.steps[0].function == "prefill"
    }
    found = {call.graph: call for call in calls}
    assert found["prefill_64"].positions == max(length for length in lengths.values() if length <= 64)
    assert found["prefill_384"].positions == max(lengths.values())
    decode = found["decode"]
    assert (decode.first, decode.positions, decode.cached) == (1, 1, max(lengths.values()))
    assert found["embed_1"].positions == 1


# --- what is refused ---


def test_wrong_requests_are_refused(cli: Cli, small_bundle: Path, reference_folder: Path) -> None:
    cli("bench", small_bundle, "--target", "tensorrt").refused("has no target 'tensorrt'", TARGET)
    cli("bench", small_bundle, "--component", "mcq").refused("has no component 'mcq'", "mcp")
    cli("bench", small_bundle, "--runs", "0").refused("--runs")
    cli("bench", small_bundle, "--warmup", "-1").refused("--warmup")
    cli("bench", small_bundle, "--lora", reference_folder).refused("--lora goes with --checkpoint")
    cli("bench", reference_folder).refused("is not a bundle")


def test_another_checkpoint_is_refused(cli: Cli, small_bundle: Path, checkpoint: Path) -> None:
    config = json.loads((checkpoint / "config.json").read_text())
    (checkpoint / "config.json").write_text(json.dumps({**config, "guidance_scale": 3.0}))
    cli("bench", small_bundle, "--checkpoint", checkpoint).refused("was made from another checkpoint")


def test_a_damaged_bundle_is_not_measured(cli: Cli, damaged: Path) -> None:
    place = damaged / TARGET / COMPONENT / "project.onnx"
    place.write_bytes(place.read_bytes() + b"\0")
    cli("bench", damaged).refused("is not what was exported", "project.onnx was changed", code=1)


# --- processes that cannot finish ---


def without_litert(task: Any, say: Say) -> ComponentRun:
    if task.target == "litert-cpu":
        raise MissingToolError(f"{task.component}: .tflite files need ai-edge-litert")
    return bench._run_target(task, say)


def killed(task: Any, say: Say) -> ComponentRun:
    if task.target == "litert-cpu":
        say("timing project on project_64")
        os.kill(os.getpid(), signal.SIGKILL)
    return bench._run_target(task, say)


def buggy(task: Any, say: Say) -> ComponentRun:
    raise ZeroDivisionError("of a test")


TWO = ("--target", "litert-cpu", "--target", TARGET, "--component", COMPONENT)


def test_what_has_no_runtime_here_is_listed(
    cli: Cli, bundle: Path, small_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench, "_run_target", without_litert)
    done = cli("bench", bundle, *TWO, *BRIEF)
    assert done.code == 0, done.err
    assert "not_run: mcp: .tflite files need ai-edge-litert" in done.out
    assert f"{TARGET}  mcp        project" in done.out
    alone = cli("bench", bundle, "--target", "litert-cpu", "--component", COMPONENT, *BRIEF, "--json")
    assert alone.code == 3
    assert "'mobile-o-export doctor'" in alone.err
    (run,) = json.loads(alone.out)["components"]
    assert (run["outcome"], run["functions"], run["peak_bytes"]) == ("not_run", [], None)
    assert run["reason"] == "mcp: .tflite files need ai-edge-litert"
    assert run["size_bytes"] > 0


def test_a_process_that_dies_fails_and_the_others_are_measured(
    cli: Cli, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench, "_run_target", killed)
    done = cli("bench", bundle, *TWO, *BRIEF, "--json")
    assert done.code == 1
    assert "error: 1 of 2 components failed, the first: litert-cpu mcp: its process was killed" in done.err
    assert "Traceback" not in done.err
    dead, alive = json.loads(done.out)["components"]
    assert dead["outcome"] == "failed"
    said = "its process was killed by SIGKILL (out of memory?) while timing project on project_64"
    assert dead["reason"] == said
    assert (alive["target"], alive["outcome"]) == (TARGET, "measured")


def test_a_bug_in_a_process_is_a_bug_of_ours(
    cli: Cli, small_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench, "_run_target", buggy)
    done = cli("bench", small_bundle)
    assert (done.code, done.out) == (70, "")
    assert "ZeroDivisionError: of a test" in done.err
    assert "in buggy" in done.err


def exits(task: int, say: Say) -> None:
    os._exit(task)


def refuses(task: str, say: Say) -> None:
    raise UsageError(task)


def exhausts(task: None, say: Say) -> None:
    raise MemoryError


def doubles(task: int, say: Say) -> int:
    say("doubling")
    return 2 * task


@pytest.mark.slow
def test_a_process_of_its_own() -> None:
    said: list[str] = []
    assert run_alone(doubles, 21, said.append) == 42
    assert said == ["doubling"]
    with pytest.raises(UsageError, match=r"^do not$"):
        run_alone(refuses, "do not", said.append)
    with pytest.raises(ProcessDiedError, match="ran out of memory"):
        run_alone(exhausts, None, said.append)
    with pytest.raises(ProcessDiedError, match="its process ended with exit code 5 while starting"):
        run_alone(exits, 5, said.append)


@pytest.mark.skipif(not Path("/proc").exists(), reason="no /proc here to see processes in")
def test_ctrl_c_ends_both_processes_and_only_one_speaks(small_bundle: Path) -> None:
    process = start("bench", small_bundle, "--runs", "100000000", start_new_session=True)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    while not children.read_text().split():
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    # As a terminal does: to every process of the command, in the middle of whatever it does.
    time.sleep(2.0)
    started = children.read_text().split()
    os.killpg(process.pid, signal.SIGINT)
    outcome = finish(process)
    assert (outcome.code, outcome.out) == (130, "")
    *progress, last = outcome.err.splitlines()
    assert last == "interrupted; nothing half-written was left behind"
    assert all(line.startswith("[") for line in progress), outcome.err
    deadline = time.monotonic() + 30
    while any(Path(f"/proc/{number}").exists() for number in started):
        assert time.monotonic() < deadline, started
        time.sleep(0.01)
