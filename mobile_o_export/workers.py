"""Work in processes of their own: the memory of each is its own, and so is its death."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import tempfile
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from typing import Generic, TypeVar, cast

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


class ProcessKilledError(ProcessDiedError):
    """A process that was killed, or that ran out of memory: nothing in its own code is known to be wrong."""


class WorkerTraceback(Exception):  # noqa: N818 - the cause of an error, which carries the name
    """Where in a worker an error was raised; the message is the traceback."""


@dataclass(frozen=True)
class Outcome(Generic[ResultT]):
    """What work in another process came to: something that can be pickled.

    Attributes:
        value: the result, or None with an error.
        error: as this process raises it.
        cause: the traceback of the error's cause, if any.
    """

    value: ResultT | None
    error: Exception | None = None
    cause: str | None = None

    @classmethod
    def of(cls, work: Callable[[TaskT, Say], ResultT], task: TaskT, say: Say) -> Outcome[ResultT]:
        """What ``work`` makes of ``task``, in the process that does it."""
        try:
            return Outcome(work(task, say))
        except ExportError as error:
            cause = None if error.__cause__ is None else "".join(traceback.format_exception(error.__cause__))
            return Outcome(None, _plain(error)(str(error)), cause)
        except MemoryError:
            return Outcome(None, ProcessKilledError("its process ran out of memory"))
        except Exception as error:  # noqa: BLE001 - whatever it is, the parent raises it
            trace = traceback.format_exc()
            if isinstance(error, OSError) and error.errno is not None:
                return Outcome(None, OSError(error.errno, error.strerror, error.filename), trace)
            return Outcome(None, RuntimeError(trace))

    def result(self) -> ResultT:
        """The result, in the process that asked for it.

        Raises:
            ExportError: what the work raised, of the same class and with the same message.
            ProcessKilledError: it ran out of memory.
            OSError: as the work raised it, with its number and file.
            RuntimeError: the work raised anything else; the message is its traceback.
        """
        if self.error is not None:
            raise self.error from (None if self.cause is None else WorkerTraceback(self.cause))
        return cast(ResultT, self.value)


class Worker(Generic[ResultT]):
    """A new process at work on one task; it imports what the work needs and nothing else.

    It ends with this process, however this one ends, and its temporary files are removed by :meth:`close`.

    Attributes:
        connection: can be read from when :meth:`heard` has something to hear.
    """

    def __init__(self, work: Callable[[TaskT, Say], ResultT], task: TaskT, say: Say) -> None:
        """Starts the process.

        Args:
            work: a module's function; gets the task and what it says its progress to.
            task: can be pickled, as can the result.
            say: told in this process what ``work`` says in the other.
        """
        self._say = say
        self._phrase = "starting"
        self._result: list[ResultT] = []
        # A process that is killed cannot remove what its libraries left among the temporary files.
        self._temporary = tempfile.TemporaryDirectory(prefix="mobile-o-", ignore_cleanup_errors=True)
        context = multiprocessing.get_context("spawn")
        self.connection, sending = context.Pipe(duplex=False)
        arguments = (work, task, self._temporary.name, sending)
        self._process = context.Process(target=_report, args=arguments, daemon=True)
        try:
            with _signals_for_us_alone():
                self._process.start()
        except BaseException:
            self.connection.close()
            self._temporary.cleanup()
            raise
        finally:
            sending.close()

    @property
    def result(self) -> ResultT:
        """What the work came to, once :meth:`heard` was true."""
        return self._result[0]

    def heard(self) -> bool:
        """Waits for the next message and passes on what is said; true when it was the result.

        Raises:
            ProcessKilledError: the process was killed, or ran out of memory.
            ProcessDiedError: it ended otherwise without a result.
            ExportError: what the work raised, of the same class and with the same message.
            OSError: the same, with its number and file.
            RuntimeError: the work raised anything else; the message is its traceback.
        """
        try:
            found = self.connection.recv()
        # OSError: it ended in the middle of a message.
        except (EOFError, OSError):
            self._process.join()
            raise _death(self._process.exitcode, self._phrase) from None
        if isinstance(found, str):
            self._phrase = found
            self._say(found)
            return False
        # Runtimes clean up when a process ends by itself: Core ML removes what it compiled.
        self._process.join(ENDING_SECONDS)
        self._result.append(cast(Outcome[ResultT], found).result())
        return True

    def close(self) -> None:
        """Ends the process, if it has not ended, and removes its temporary files."""
        self._process.kill()
        self._process.join()
        self.connection.close()
        self._temporary.cleanup()


def run_alone(work: Callable[[TaskT, Say], ResultT], task: TaskT, say: Say) -> ResultT:
    """What ``work`` makes of ``task`` in a new process; arguments and errors as for :class:`Worker`."""
    worker = Worker(work, task, say)
    try:
        while not worker.heard():
            pass
        return worker.result
    finally:
        worker.close()


def _report(work: Callable[[TaskT, Say], ResultT], task: TaskT, temporary: str, out: Connection) -> None:
    """Sends what ``work`` says and what it comes to, last its :class:`Outcome`: the new process's part."""
    threading.Thread(target=_end_with_the_parent, args=(temporary,), daemon=True).start()
    os.environ["TMPDIR"] = tempfile.tempdir = temporary

    def say(phrase: str) -> None:
        out.send(phrase)

    out.send(Outcome.of(work, task, say))


def _end_with_the_parent(temporary: str) -> None:
    """Ends this process, and removes its temporary files, when its parent was killed and cannot do so."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    shutil.rmtree(temporary, ignore_errors=True)
    os._exit(1)


def _plain(error: ExportError) -> type[ExportError]:
    """The nearest class of ``error`` that is made from its message alone, and so can be pickled."""
    kinds = [kind for kind in type(error).__mro__ if issubclass(kind, ExportError)]
    special = [index for index, kind in enumerate(kinds) if "__init__" in vars(kind)]
    return kinds[special[-1] + 1 if special else 0]


def _death(code: int | None, phrase: str) -> ProcessDiedError:
    """How a process ended while it did what ``phrase`` says; below zero, ``code`` is a signal's number."""
    if code is None or code >= 0:
        return ProcessDiedError(f"its process ended with exit code {code} while {phrase}")
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    guess = " (out of memory?)" if name == "SIGKILL" else ""
    kind = ProcessKilledError if name in ("SIGKILL", "SIGTERM") else ProcessDiedError
    return kind(f"its process was killed by {name}{guess} while {phrase}")


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
