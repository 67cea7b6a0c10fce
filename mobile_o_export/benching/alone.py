"""Work in a process of its own: its memory is its own, and so is its death."""

from __future__ import annotations

import multiprocessing
import signal
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import TypeVar, cast

from mobile_o_export.errors import ExportError, GateError
from mobile_o_export.progress import Say

TaskT = TypeVar("TaskT")
ResultT = TypeVar("ResultT")

_FROM_THE_TERMINAL = tuple(getattr(signal, name) for name in ("SIGINT", "SIGHUP") if hasattr(signal, name))
"""Signals that a terminal sends to every process of a command."""

ENDING_SECONDS = 10.0
"""For a process that has sent its result to end by itself; then it is killed."""


class ProcessDiedError(GateError):
    """A process that ended before it had a result: a runtime crashed, or the system killed it."""


def run_alone(work: Callable[[TaskT, Say], ResultT], task: TaskT, say: Say) -> ResultT:
    """What ``work`` makes of ``task`` in a new process, which imports what it needs and nothing else.

    Args:
        work: a module's function; gets the task and what it says its progress to.
        task: can be pickled, as can the result.
        say: told in this process what ``work`` says in the other.

    Raises:
        ProcessDiedError: the process ended without a result, or ran out of memory.
        ExportError: what ``work`` raised, of the same class and with the same message.
        RuntimeError: ``work`` raised anything else; the message is its traceback.
    """
    context = multiprocessing.get_context("spawn")
    receiving, sending = context.Pipe(duplex=False)
    process = context.Process(target=_report, args=(work, task, sending), daemon=True)
    with _signals_for_us_alone():
        process.start()
    sending.close()
    try:
        return cast(ResultT, _awaited(receiving, process, say))
    finally:
        process.kill()
        process.join()
        receiving.close()


def _report(work: Callable[[TaskT, Say], ResultT], task: TaskT, out: Connection) -> None:
    """Sends what ``work`` says and what it comes to: the new process's part."""

    def say(phrase: str) -> None:
        out.send(phrase)

    try:
        out.send((work(task, say), None))
    except ExportError as error:
        out.send((None, type(error)(str(error))))
    except MemoryError:
        out.send((None, ProcessDiedError("its process ran out of memory")))
    except Exception:  # noqa: BLE001 - whatever it is, the parent raises it
        out.send((None, RuntimeError(traceback.format_exc())))


def _awaited(receiving: Connection, process: BaseProcess, say: Say) -> object:
    """The result, after all that is said before it."""
    phrase = "starting"
    while True:
        try:
            found = receiving.recv()
        # OSError: it ended in the middle of a message.
        except (EOFError, OSError):
            process.join()
            raise ProcessDiedError(f"its process {_ended(process.exitcode)} while {phrase}") from None
        if isinstance(found, str):
            phrase = found
            say(phrase)
            continue
        result, error = found
        # Runtimes clean up when a process ends by itself: Core ML removes what it compiled.
        process.join(ENDING_SECONDS)
        if error is not None:
            raise error
        return cast(object, result)


def _ended(code: int | None) -> str:
    """How a process ended, by its exit code: below zero it is a signal's number."""
    if code is None or code >= 0:
        return f"ended with exit code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    return f"was killed by {name}" + (" (out of memory?)" if name == "SIGKILL" else "")


@contextmanager
def _signals_for_us_alone() -> Iterator[None]:
    """Keeps Ctrl-C from the process that the body starts: it would answer with a traceback of its own.

    A new process inherits which signals are blocked. Those that arrive meanwhile are delivered afterwards.
    """
    # Starting multiprocessing's tracker unblocks signals, so that it has to run already.
    resource_tracker.ensure_running()
    former = signal.pthread_sigmask(signal.SIG_BLOCK, _FROM_THE_TERMINAL)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, former)
