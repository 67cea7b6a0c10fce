"""Whole commands in processes of their own: clean streams, on a terminal and in a log, and interrupted."""

from __future__ import annotations

import json
import os
import re
import signal
import time
from pathlib import Path

import pytest
from cli_harness import Outcome, TargetFile, finish, shown_on, start

NOISE = ("Warning", "WARNING", "[W", "[I", "Traceback", "it/s", "%|", "INFO:", "torch.onnx", "scikit", "TF ")


def clean(outcome: Outcome) -> None:
    """Asserts that stderr holds progress lines of ours and nothing else, and stdout no such noise."""
    for line in outcome.err.splitlines():
        assert line.startswith("["), outcome.err
        assert " s] " in line, outcome.err
    for noise in NOISE:
        assert noise not in outcome.out


def on_a_terminal(*arguments: object, columns: int = 60) -> tuple[int, str]:
    """The exit code and everything that a terminal gets from both streams."""
    import fcntl
    import pty
    import struct
    import termios

    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "TERM": "xterm"}
    process = start(*arguments, stdout=theirs, stderr=theirs, env=environment)
    os.close(theirs)
    received = shown_on(ours)
    return process.wait(), received


@pytest.fixture
def two_targets(target_file: TargetFile) -> list[object]:
    """One cheap component on two backends; one target leaves the others out, with its reason."""
    own = target_file(
        name="only-mcp",
        backend="onnx",
        sequence="max_length = 400\ncontext = 512",
        mcp='precision = "fp32"',
        others='skip = "done elsewhere"',
    )
    names = ("litert-cpu", own)
    return [item for name in names for item in ("--target", name)]


def test_export_and_verify(
    reference_folder: Path, golden: Path, tmp_path: Path, two_targets: list[object]
) -> None:
    folder = tmp_path / "a folder — Größe"
    folder.mkdir()
    arguments = ("--component", "mcp", "--golden", os.path.relpath(golden, folder), "--out", "new/bundle/")
    exported = finish(start("export", reference_folder, *two_targets, *arguments, cwd=folder))
    assert exported.code == 0, exported.err
    clean(exported)
    assert exported.out.endswith("\npassed: 10 outputs compared\nbundle: new/bundle\n")
    for target in ("litert-cpu", "only-mcp"):
        assert f"{target} mcp: lowered, " in exported.err
        assert f"{target} mcp: verified, passed" in exported.err
    assert [path.name for path in (folder / "new").iterdir()] == ["bundle"]

    code, received = on_a_terminal("verify", folder / "new" / "bundle")
    assert code == 0
    progress, table, rest = received.partition("files and records  passed")
    assert table
    ended = (
        r"\r\npassed: 10 outputs compared, 24 checks of files and records\r\nbundle: sha256:[0-9a-f]{64}\r\n$"
    )
    assert re.search(ended, rest)
    assert re.search(r"only-mcp mcp: verified, passed( \([\d.]+ s\))?\r\n$", progress)
    for line in progress.replace("\r\n", "\r\033[K").split("\r\033[K"):
        assert len(line) < 60 or "verified, passed" in line
        assert line.startswith("[") or not line


@pytest.mark.slow
def test_inspect_and_doctor_are_clean(reference_folder: Path) -> None:
    inspected = finish(start("inspect", reference_folder, "--json"))
    assert inspected.code == 0
    clean(inspected)
    assert json.loads(inspected.out)
    doctor = finish(start("doctor", "--json"))
    assert doctor.code in (0, 3)
    assert doctor.code == 3 or doctor.err == ""
    assert json.loads(doctor.out)["schema"] == 1


def test_an_error_on_a_terminal_stands_alone(tmp_path: Path) -> None:
    code, received = on_a_terminal("inspect", tmp_path)
    assert code == 2
    assert received.rpartition("\r\033[K")[2].startswith(f"error: {tmp_path}/config.json: no such file.")


@pytest.mark.parametrize(
    ("target", "signals", "code", "delay"),
    [
        ("litert-cpu", [signal.SIGINT, signal.SIGINT, signal.SIGINT], 130, 0.3),
        ("coreml-ane", [signal.SIGTERM], 143, 0.3),
    ],
    ids=["impatient Ctrl-C", "SIGTERM"],
)
def test_interrupts_while_lowering(
    reference_folder: Path,
    golden: Path,
    tmp_path: Path,
    target: str,
    signals: list[signal.Signals],
    code: int,
    delay: float,
) -> None:
    arguments = ("--component", "mcp", "--target", target, "--golden", golden)
    out = tmp_path / "new" / "bundle"
    process = start("export", reference_folder, *arguments, "--out", out)
    while not list(tmp_path.glob(f"new/bundle.*.partial/{target}/.mcp")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    time.sleep(delay)  # into the vendor's code, wherever that may be
    for number in signals:
        process.send_signal(number)
        time.sleep(0.02)
    outcome = finish(process)
    assert (outcome.code, outcome.out) == (code, "")
    *progress, last = outcome.err.splitlines()
    assert last == "interrupted; nothing half-written was left behind"
    clean(Outcome(code, "", "\n".join(progress)))
    assert list(tmp_path.iterdir()) == []
