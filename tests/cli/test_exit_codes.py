"""What main() makes of every ending: the exit code, a message, a traceback only for bugs of ours."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from cli_harness import Cli, Outcome, finish, start

from mobile_o_export import __version__, errors
from mobile_o_export.cli import main as cli_main

FORMER = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}


def ends_with(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    def work(*_: object) -> None:
        raise error

    monkeypatch.setattr("mobile_o_export.checkpoint.Checkpoint.open", work)


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (errors.UsageError("odd"), 2, "error: odd\n"),
        (errors.ConfigError("odd"), 2, "error: odd\n"),
        (errors.CheckpointError("odd"), 2, "error: odd\n"),
        (errors.GoldenError("odd"), 2, "error: odd\n"),
        (errors.BundleError("odd"), 2, "error: odd\n"),
        (errors.OutOfSpaceError("odd"), 2, "error: odd\n"),
        (errors.OutOfMemoryError("odd"), 2, "error: odd\n"),
        (errors.UnsupportedError("odd"), 2, "error: odd\n"),
        (errors.GateError("odd"), 1, "error: odd\n"),
        (errors.MissingToolError("odd"), 3, "error: odd\n"),
        (errors.LoweringError("odd"), 70, "error: odd\n"),
        (MemoryError(), 2, "error: out of memory. 'mobile-o-export plan' estimates"),
        (PermissionError(errno.EACCES, "Permission denied", "/x"), 2, "error: /x: Permission denied. Check"),
        (OSError(errno.EIO, "Input/output error"), 2, "error: Input/output error. Check"),
        (KeyboardInterrupt(), 130, "interrupted; nothing half-written was left behind\n"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else "",
)
def test_endings(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int, message: str
) -> None:
    ends_with(monkeypatch, error)
    outcome = cli("inspect", "x")
    assert (outcome.code, outcome.out) == (code, "")
    assert outcome.err.startswith(message)
    assert "Traceback" not in outcome.err


@pytest.mark.parametrize("error", [KeyError("odd"), FileNotFoundError(errno.ENOENT, "No such file", "/x")])
def test_a_bug_has_its_traceback(cli: Cli, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    ends_with(monkeypatch, error)
    outcome = cli("inspect", "x")
    assert (outcome.code, outcome.out) == (70, "")
    assert "Traceback" in outcome.err
    assert "error: this is a bug of mobile-o-export; please report it" in outcome.err


def test_a_failed_lowering_has_the_vendors_traceback(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    error = errors.LoweringError("mcp for t: coremltools failed")
    error.__cause__ = ZeroDivisionError("deep inside")
    ends_with(monkeypatch, error)
    outcome = cli("inspect", "x")
    assert outcome.code == 70
    assert outcome.err.startswith("error: mcp for t: coremltools failed\n")
    assert outcome.err.endswith("ZeroDivisionError: deep inside\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["inspct"], "No such command 'inspct'. Did you mean 'inspect'?"),
        (["export"], "Missing argument 'CKPT'"),
        (["export", "x", "--out", "y"], "Missing option '--target'"),
        (["export", "x", "--target", "litert-cpu"], "Missing option '--out'"),
        (["export", "x", "--target"], "Option '--target' requires an argument"),
        (["plan", "x", "y", "--target", "litert-cpu"], "unexpected extra argument"),
        (["verify"], "Missing argument 'BUNDLE'"),
        (["verify", "x", "--jsn"], "No such option: --jsn"),
        (["golden", "recrd"], "No such command 'recrd'. Did you mean 'record'?"),
        (["init-checkpoint", "x", "--size", "3b"], "'3b' is not one of 'tiny', '0.5b', '1.5b'"),
        (["init-checkpoint", "x", "--dtype", "int8"], "'int8' is not one of"),
        (["init-checkpoint", "x", "--seed", "one"], "valid integer"),
        (["init-checkpoint", "x", "--seed", "-1"], "seed -1 is negative. Choose 0 or more."),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_usage(cli: Cli, arguments: list[str], message: str) -> None:
    cli(*arguments).refused(message)


@pytest.mark.parametrize("arguments", [[], ["golden"]])
def test_no_command_shows_the_help(cli: Cli, arguments: list[str]) -> None:
    outcome = cli(*arguments)
    assert (outcome.code, outcome.out) == (2, "")
    assert outcome.err.startswith("Usage: mobile-o-export")


def test_version(cli: Cli) -> None:
    assert cli("--version") == Outcome(0, f"mobile-o-export {__version__}\n", "")


def test_help_lists_every_command_whole(cli: Cli) -> None:
    outcome = cli("--help")
    assert (outcome.code, outcome.err) == (0, "")
    for command in (
        "doctor",
        "inspect",
        "init-checkpoint",
        "plan",
        "golden",
        "export",
        "cache",
        "verify",
        "bench",
        "evaluate",
        "report",
    ):
        assert f"\n  {command} " in outcome.out
    assert "..." not in outcome.out.split("Commands:")[1]
    assert "0 done; 1 a gate failed; 2 bad input; 3 a tool is missing; 70 a" in outcome.out


@pytest.mark.parametrize(
    "command", [[], ["export"], ["golden", "record"], ["cache", "show"], ["verify"], ["doctor"]]
)
def test_help_imports_nothing_heavy(command: list[str]) -> None:
    code = (
        "import sys\nfrom mobile_o_export.cli.main import main\n"
        f"sys.argv = ['mobile-o-export', *{command}, '--help']\n"
        "try:\n    main()\nexcept SystemExit as ended:\n    assert ended.code == 0\n"
        "heavy = {'torch', 'transformers', 'diffusers', 'coremltools', 'onnx', 'onnxruntime',\n"
        "         'litert_torch', 'ai_edge_litert', 'tensorflow', 'jax', 'safetensors', 'PIL'}\n"
        "print(sorted(heavy & set(sys.modules)), file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("Usage: ")
    assert done.stderr == "[]\n"


def test_a_reader_that_goes_away_is_no_success() -> None:
    process = start("--help", stdout=subprocess.PIPE)
    process.stdout.close()
    process.stdout = None
    outcome = finish(process)
    assert (outcome.code, outcome.err) == (cli_main.BROKEN_PIPE, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_results_that_cannot_be_written() -> None:
    with Path("/dev/full").open("w") as full:
        outcome = finish(start("--version", stdout=full))
    assert outcome.code == 2
    assert outcome.err.startswith("error: ")
    assert "No space left on device" in outcome.err


@pytest.mark.skipif(os.name == "nt", reason="POSIX shells close streams")
@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_streams(tmp_path: Path, closed: str) -> None:
    command = f'"{sys.executable}" -m mobile_o_export verify "{tmp_path}" {closed}'
    repository = str(Path(cli_main.__file__).parents[2])
    done = subprocess.run(
        ["sh", "-c", command], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": repository}
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "" if "2>&-" in closed else "is not a bundle" in done.stderr


def test_locales_that_lack_characters(small_bundle: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(cli_main.__file__).parents[2])}
    environment["PYTHONIOENCODING"] = "ascii"
    outcome = finish(start("verify", small_bundle, env=environment))
    assert outcome.code == 0
    assert "? 40 dB" in outcome.out


def test_signals_of_a_parent_that_ignores_them_stay_ignored() -> None:
    from mobile_o_export.cli.interrupts import interruptible

    former = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with interruptible() as interruption:
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
            assert signal.getsignal(signal.SIGTERM) not in (signal.SIG_DFL, signal.SIG_IGN)
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
        assert interruption.exit_code == 130
    finally:
        signal.signal(signal.SIGHUP, former)


def test_an_interrupt_that_a_vendor_swallows_comes_back(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, small_bundle: Path
) -> None:
    """Stopping is refused once, by a bare ``except`` such as vendors write; the next phrase stops."""
    from mobile_o_export.backends.onnx.backend import OnnxBackend

    ignored = []

    def open_and_swallow(*_: object) -> None:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(5)
        except KeyboardInterrupt:
            ignored.append(True)
        raise errors.GateError("and then it went on")

    monkeypatch.setattr(OnnxBackend, "open", open_and_swallow)
    try:
        outcome = cli("verify", small_bundle)
    finally:
        for number, handler in FORMER.items():
            signal.signal(number, handler)
    assert ignored
    assert outcome == Outcome(143, "", "interrupted; nothing half-written was left behind\n")
