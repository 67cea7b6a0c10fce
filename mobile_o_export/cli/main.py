"""The entry point: subcommands, exit codes, errors without tracebacks."""

from __future__ import annotations

import errno
import os
import sys
import tempfile
import traceback
from io import TextIOWrapper
from typing import NoReturn

import typer

from mobile_o_export import __version__
from mobile_o_export.cli import (
    bench,
    cache,
    compare,
    describe,
    doctor,
    draw,
    evaluate,
    export,
    golden,
    init_checkpoint,
    inspect,
    mil,
    plan,
    report,
    screen,
    tune,
    verify,
)
from mobile_o_export.cli.interrupts import Interruption, interruptible
from mobile_o_export.errors import ExportError

PROGRAM = "mobile-o-export"

BAD_INPUT = 2
BUG = 70
INTERRUPTED = 130
BROKEN_PIPE = 141
"""What a shell reports of a program whose reader went away; 0 would call an unread report a success."""

_OF_THE_HOST = {
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.EIO,
    errno.ENOSPC,
    errno.EDQUOT,
    errno.ENAMETOOLONG,
    errno.ELOOP,
    errno.EMFILE,
    errno.ENFILE,
    errno.ESTALE,
}
"""Errors that a file system gives of itself; any other OSError that gets this far is ours."""

app = typer.Typer(
    name=PROGRAM,
    help="Turns Mobile-O checkpoints into verified bundles for Core ML, LiteRT and TensorRT.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    # Plain lines: a box of 80 columns would break the paths in messages.
    rich_markup_mode=None,
    epilog="Exit codes: 0 done; 1 a gate failed; 2 bad input; 3 a tool is missing; 70 a bug of ours.",
)


def _version(wanted: bool) -> None:
    if wanted:
        screen.result(f"mobile-o-export {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: bool = typer.Option(
        False, "--version", callback=_version, is_eager=True, help="Print the version and stop."
    ),
) -> None:
    del version


app.command("doctor")(doctor.doctor)
app.command("inspect")(inspect.inspect)
app.command("init-checkpoint")(init_checkpoint.init_checkpoint)
app.command("plan")(plan.plan)
app.add_typer(golden.app, name="golden")
app.command("export")(export.export)
app.add_typer(cache.app, name="cache")
app.add_typer(mil.app, name="mil")
app.command("tune")(tune.tune)
app.command("verify")(verify.verify)
app.command("bench")(bench.bench)
app.command("compare")(compare.compare)
app.command("evaluate")(evaluate.evaluate)
app.command("report")(report.report)
app.command("generate")(draw.generate)
app.command("edit")(draw.edit)
app.command("describe")(describe.describe)
app.command("chat")(describe.chat)


def main() -> NoReturn:
    """Runs the command line and exits with its code."""
    _open_streams()
    # Vendor banners that are printed while importing; each would land in the user's terminal.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    # torch makes this folder when it is imported. Nothing here compiles, so that it would stay there, empty.
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", tempfile.gettempdir())
    try:
        with interruptible() as interruption:
            code = _run(interruption)
            code = _flush(code)
    except KeyboardInterrupt:
        code = interruption.exit_code
    sys.exit(code)


def _run(interruption: Interruption) -> int:
    """The exit code of the command line; every error is told on stderr."""
    try:
        app(prog_name=PROGRAM)
    except SystemExit as ended:
        # typer turns Ctrl-C into 130, and a closed pipe into 1, our code for a failed gate.
        if ended.code == INTERRUPTED:
            return _interrupted(interruption)
        if isinstance(ended.__context__, BrokenPipeError):
            return BROKEN_PIPE
        return ended.code if isinstance(ended.code, int) else 0
    except BaseException as error:  # noqa: BLE001 - the last resort, and it says so
        if interruption.signal or isinstance(error, KeyboardInterrupt):
            return _interrupted(interruption)
        return _told(error)
    return 0


def _told(error: BaseException) -> int:
    """Says what went wrong; the exit code that it means."""
    if isinstance(error, ExportError):
        screen.message(f"error: {error}")
        if error.exit_code == BUG and error.__cause__ is not None:
            screen.details("".join(traceback.format_exception(error.__cause__)))
        return error.exit_code
    if isinstance(error, MemoryError):
        screen.message(
            "error: out of memory. 'mobile-o-export plan' estimates what each component needs; close other "
            "programs, or export fewer components at a time with --component."
        )
        return BAD_INPUT
    if isinstance(error, OSError) and error.errno in _OF_THE_HOST:
        place = f"{error.filename}: " if error.filename else ""
        screen.message(f"error: {place}{error.strerror}. Check the path, its permissions and its disk.")
        return BAD_INPUT
    screen.details("".join(traceback.format_exception(error)))
    screen.message("error: this is a bug of mobile-o-export; please report it with the traceback above.")
    return BUG


def _interrupted(interruption: Interruption) -> int:
    screen.message("interrupted; nothing half-written was left behind")
    return interruption.exit_code


def _flush(code: int) -> int:
    """Writes out what stdout still holds, where an error can still be told; the exit code after that."""
    try:
        sys.stdout.flush()
    except OSError as error:
        # Else the interpreter tries again while it shuts down.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):
            return BROKEN_PIPE
        screen.message(f"error: the results could not be written to stdout: {error.strerror}.")
        return code or BAD_INPUT
    return code


def _open_streams() -> None:
    """Gives the process the streams that its parent closed, and lets stdout take every character."""
    for number, mode in ((0, os.O_RDONLY), (1, os.O_WRONLY), (2, os.O_WRONLY)):
        try:
            os.fstat(number)
        except OSError:
            # The next file to be opened would get the number, and be written to as if it were a stream.
            os.open(os.devnull, mode)
    if sys.stdout is None:
        sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115 - for as long as the process lives
    if sys.stderr is None:
        sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115
    if isinstance(sys.stdout, TextIOWrapper):
        # Tables hold ≈ and ≥, and file names anything: not every locale can write them.
        sys.stdout.reconfigure(errors="replace")
