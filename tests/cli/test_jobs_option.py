"""``export --jobs`` and ``--max-memory``: the same bytes, and every way in which a worker can end."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from cli_harness import REPOSITORY, Cli, finish, start
from shared_exports import tree

from mobile_o_export import memory
from mobile_o_export.backends.coreml import backend as coreml
from mobile_o_export.errors import GateError, LoweringError, UnsupportedError
from mobile_o_export.exporting import lowering
from mobile_o_export.progress import Say

ONE = ("--target", "tensorrt-orin", "--component", "mcp")
TWO = (*ONE, "--target", "onnx-cpu")
TARGETS = ("--component", "mcp", "--target", "onnx-cpu", "--target", "tensorrt-orin")
UNCOMPRESSED = ("--precision", "uncompressed")


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Where bundles go, and nothing else."""
    folder = tmp_path / "bundles"
    folder.mkdir()
    return folder


# --- the same bytes ---


@pytest.mark.slow
def test_the_bundle_is_the_same_whatever_is_done_at_once(
    cli: Cli, reference_folder: Path, golden: Path, place: Path, tmp_path: Path
) -> None:
    given = ("export", reference_folder, *TARGETS, *UNCOMPRESSED, "--golden", golden)
    alone = cli(*given, "--no-cache", "--out", place / "alone")
    assert alone.code == 0, alone.err
    # So little that each waits for the one before; and what is made is kept.
    cache = ("--cache", tmp_path / "cache", "--jobs", 3)
    kept = cli(*given, *cache, "--max-memory", "1GB", "--out", place / "kept")
    assert kept.code == 0, kept.err
    # Once while they are lowered, and once while they are verified.
    assert kept.err.count("jobs: 1 at once instead of 3: tensorrt-orin, mcp waits for memory") == 2
    assert tree(place / "alone") == tree(place / "kept")
    # The table of costs, then that of verdicts.
    rows = [line.split()[0] for line in kept.out.splitlines() if line.split()[1:2] == ["mcp"]]
    assert rows == ["onnx-cpu", "tensorrt-orin"] * 2


# --- workers that fail ---


def killed_after_the_first(task: lowering.LowerTask, say: Say) -> Any:
    if task.target == "tensorrt-orin":
        return lowering.lower_in_worker(task, say)
    say("exporting project")
    task.place.mkdir()
    (task.place / "half.onnx").write_bytes(b"half")
    while not (task.place.parents[1] / "tensorrt-orin" / "mcp").exists():
        time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("killed")


@pytest.mark.slow
def test_a_killed_worker_is_told_and_the_next_export_goes_on(
    cli: Cli,
    reference_folder: Path,
    golden: Path,
    place: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given = ("export", reference_folder, *TWO, "--golden", golden, "--out", place / "bundle")
    given = (*given, "--cache", tmp_path / "cache", "--jobs", 2)
    with monkeypatch.context() as patch:
        patch.setattr(lowering, "lower_in_worker", killed_after_the_first)
        cli(*given).refused(
            "onnx-cpu, mcp: its process was killed by SIGKILL (out of memory?)",
            "while exporting project",
            "fewer --jobs",
            "goes on from there",
        )
    assert list(place.iterdir()) == []
    done = cli(*given)
    assert done.code == 0, done.err
    assert "tensorrt-orin mcp: lowered, from the cache" in done.err


def crashes(task: lowering.LowerTask, say: Say) -> Any:
    os.abort()


def lacks(task: lowering.LowerTask, say: Say) -> Any:
    raise UnsupportedError(f"{task.component}: not this")


def drifts(task: lowering.LowerTask, say: Say) -> Any:
    raise GateError(f"{task.component}: drifted")


def fails(task: lowering.LowerTask, say: Say) -> Any:
    raise LoweringError(f"{task.component}: no converter") from ZeroDivisionError("deep inside")


def exhausts(task: lowering.LowerTask, say: Say) -> Any:
    raise MemoryError


def fills_the_disk(task: lowering.LowerTask, say: Say) -> Any:
    raise OSError(28, "No space left on device", "/x")


def is_wrong(task: lowering.LowerTask, say: Say) -> Any:
    raise ZeroDivisionError("of a test")


@pytest.mark.parametrize(
    ("work", "code", "message"),
    [
        (lacks, 2, "error: mcp: not this\n"),
        (drifts, 1, "error: mcp: drifted\n"),
        (exhausts, 2, "error: tensorrt-orin, mcp: its process ran out of memory. Give fewer --jobs"),
        (fills_the_disk, 2, "the disk filled up while it was written"),
        (crashes, 70, "error: tensorrt-orin, mcp: its process was killed by SIGABRT while starting. Run"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_errors_of_workers_are_those_of_this_process(
    cli: Cli,
    reference_folder: Path,
    golden: Path,
    place: Path,
    monkeypatch: pytest.MonkeyPatch,
    work: Any,
    code: int,
    message: str,
) -> None:
    monkeypatch.setattr(lowering, "lower_in_worker", work)
    given = ("export", reference_folder, *ONE, "--golden", golden, "--out", place / "bundle", "--no-cache")
    cli(*given, "--jobs", 2).refused(message, code=code)
    assert list(place.iterdir()) == []


@pytest.mark.parametrize(
    ("work", "phrases"),
    [
        (fails, ("error: mcp: no converter\n", "ZeroDivisionError: deep inside")),
        (is_wrong, ("this is a bug of mobile-o-export", "ZeroDivisionError: of a test", "in is_wrong")),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_bugs_in_workers_have_their_traceback(
    cli: Cli,
    reference_folder: Path,
    golden: Path,
    place: Path,
    monkeypatch: pytest.MonkeyPatch,
    work: Any,
    phrases: tuple[str, ...],
) -> None:
    monkeypatch.setattr(lowering, "lower_in_worker", work)
    given = ("export", reference_folder, *ONE, "--golden", golden, "--out", place / "bundle", "--no-cache")
    done = cli(*given, "--jobs", 2)
    assert (done.code, done.out) == (70, "")
    for phrase in phrases:
        assert phrase in done.err
    assert list(place.iterdir()) == []


# --- exports that are stopped ---


@pytest.fixture
def working(
    reference_folder: Path, golden: Path, place: Path, tmp_path: Path
) -> Iterator[tuple[subprocess.Popen[str], list[Path]]]:
    """An export with two workers that lower, and the workers' places in /proc."""
    if not Path("/proc/self/task").exists():
        pytest.skip("no /proc here to see processes in")
    (tmp_path / "temporary").mkdir()
    given = ("export", reference_folder, *TWO, "--golden", golden, "--no-cache", "--jobs", 2)
    process = start(
        *given,
        "--out",
        place / "bundle",
        start_new_session=True,
        env={**os.environ, "TMPDIR": str(tmp_path / "temporary"), "PYTHONPATH": str(REPOSITORY)},
    )
    while len(list(place.glob("*.partial/*/.mcp"))) < 2:
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    # multiprocessing's tracker of resources is one as well.
    assert len(children) == 3
    yield process, [Path("/proc") / number for number in children]
    process.kill()
    process.wait()


def ended(children: list[Path]) -> None:
    deadline = time.monotonic() + 30
    while alive := [child for child in children if child.exists()]:
        assert time.monotonic() < deadline, alive
        time.sleep(0.01)


@pytest.mark.slow
def test_an_interrupted_export_ends_its_workers_and_leaves_nothing(
    working: tuple[subprocess.Popen[str], list[Path]], place: Path, tmp_path: Path
) -> None:
    process, children = working
    # As a terminal does: to every process of the command.
    os.killpg(process.pid, signal.SIGINT)
    outcome = finish(process)
    assert (outcome.code, outcome.out) == (130, "")
    *progress, last = outcome.err.splitlines()
    assert last == "interrupted; nothing half-written was left behind"
    assert all(line.startswith("[") for line in progress), outcome.err
    ended(children)
    assert list(place.iterdir()) == []
    assert list((tmp_path / "temporary").iterdir()) == []


@pytest.mark.slow
def test_workers_end_with_an_export_that_is_killed(
    working: tuple[subprocess.Popen[str], list[Path]],
) -> None:
    process, children = working
    process.kill()
    outcome = finish(process)
    assert "Traceback" not in outcome.err
    ended(children)


# --- what is refused ---


def test_what_needs_more_memory_is_refused_before_any_work(
    cli: Cli, reference_folder: Path, golden: Path, place: Path
) -> None:
    phrases = ("tensorrt-orin, mcp: needs about 0.70 GB of memory, and --max-memory allows 0.50 GB",)
    limit = ("--max-memory", "500MB")
    given = ("export", reference_folder, *ONE, "--golden", golden, "--out", place / "bundle")
    for jobs in (1, 2):
        outcome = cli(*given, *limit, "--jobs", jobs)
        outcome.refused(*phrases)
        assert "computing the digest" not in outcome.err
    assert list(place.iterdir()) == []
    planned = cli("plan", reference_folder, *ONE, *limit)
    assert planned.code == 2
    assert phrases[0].removeprefix("tensorrt-orin, mcp: ") in planned.out
    assert phrases[0] in planned.err
    assert cli("plan", reference_folder, *ONE, "--max-memory", "2GB").code == 0


def test_too_little_memory_and_the_room_on_disk_are_said_beforehand(
    cli: Cli, reference_folder: Path, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = ("plan", reference_folder, *ONE)
    enough = cli(*asked, "--json")
    assert enough.err == ""
    needs = json.loads(enough.out)
    (row,) = needs["rows"]
    assert needs["memory_bytes"] == row["memory_bytes"] < needs["available_memory_bytes"]
    # A golden, and the files beside the parts that they are merged from.
    assert needs["room_bytes"] == 2**28 + 2.5 * row["size_bytes"]
    monkeypatch.setattr(memory, "available_bytes", lambda: 500_000_000)
    short = "1 of 1 need more memory than the 0.5 GB that are available here, most tensorrt-orin, mcp: 0.7 GB"
    planned = cli(*asked)
    assert planned.code == 0
    assert short in planned.err
    assert "its peak memory: 700" in planned.out
    assert "available here: 500.0 MB" in planned.out
    disk = SimpleNamespace(total=0, used=0, free=2**28)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: disk)
    outcome = cli("export", reference_folder, *ONE, "--out", place / "bundle")
    outcome.refused("needs 0.27 GB and its disk has 0.27 GB free")
    assert f"memory: {short}" in outcome.err


def test_a_package_too_large_for_the_neural_engine_is_told_beforehand(
    cli: Cli, reference_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = ("plan", reference_folder, "--component", "mcp", "--target")
    assert cli(*asked, "coreml-ane").err == ""
    monkeypatch.setattr(coreml, "NEURAL_ENGINE_BYTES", 1000)
    told = cli(*asked, "coreml-ane")
    assert told.code == 0
    assert (
        "coreml-ane, mcp: a package of 0.00 GB: above 1 GB, devices may leave the Neural Engine" in told.err
    )
    (row,) = json.loads(cli(*asked, "coreml-ane", "--json").out)["rows"]
    assert "fewer bits" in row["caution"]
    # The GPU takes any, and what is refused anyway is not made.
    assert cli(*asked, "coreml-gpu").err == ""
    refused = cli(*asked, "coreml-ane", "--precision", "w8_b32_dyn")
    assert "above 1 GB" not in refused.err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--jobs", "0"), "--jobs"),
        (("--jobs", "-1"), "--jobs"),
        (("--jobs", "two"), "valid integer"),
        (("--max-memory", "lots"), "--max-memory 'lots' is no size. Write 900MB"),
        (("--max-memory", "0"), "--max-memory '0' is no size"),
    ],
)
def test_nonsense_is_refused(
    cli: Cli, reference_folder: Path, place: Path, options: tuple[str, ...], message: str
) -> None:
    cli("export", reference_folder, *ONE, "--out", place / "bundle", *options).refused(message)
    assert list(place.iterdir()) == []
