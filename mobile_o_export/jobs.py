"""Independent jobs: one after the other here, or several at once in workers, as memory allows."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any, Generic, Protocol, TypeVar, cast

from mobile_o_export import memory
from mobile_o_export.errors import LoweringError, OutOfMemoryError
from mobile_o_export.progress import Begun, Say
from mobile_o_export.workers import ProcessDiedError, ProcessKilledError, Worker

LESS_AT_ONCE = (
    "Give fewer --jobs, or a smaller --max-memory, so that less is done at once; or close other programs."
)

ResultT = TypeVar("ResultT")
ResultT_co = TypeVar("ResultT_co", covariant=True)


@dataclass(frozen=True)
class Measured(Generic[ResultT]):
    """A result, and what it took; the peak is of the whole process that worked on it."""

    result: ResultT
    seconds: float
    peak_bytes: int


def measured(work: Callable[[], ResultT]) -> Measured[ResultT]:
    """What ``work`` gives in this process, with its time and peak memory."""
    memory.reset_peak()
    started = time.monotonic()
    result = work()
    return Measured(result, time.monotonic() - started, memory.peak_bytes())


@dataclass(frozen=True)
class Job(Generic[ResultT]):
    """One piece of work that needs the result of no other.

    Attributes:
        name: what messages call it.
        memory_bytes: estimated peak memory.
        here: does it in this process.
        work: does it in another one, given ``task``: a module's function.
        task: can be pickled, as can the result.
        say: told what the work says in either process.
        done: called in this process with the result, as soon as it is there.
    """

    name: str
    memory_bytes: int
    here: Callable[[], ResultT]
    work: Callable[[Any, Say], ResultT]
    task: object
    say: Say
    done: Callable[[ResultT], None]


class _Working(Protocol[ResultT_co]):
    """What runs a job elsewhere; see :class:`Worker`."""

    @property
    def connection(self) -> Connection: ...
    @property
    def result(self) -> ResultT_co: ...
    def heard(self) -> bool: ...
    def close(self) -> None: ...


@dataclass(frozen=True)
class Pool:
    """How many jobs may run at once.

    Attributes:
        workers: that many processes at most; with one, everything is done in this process.
        memory_bytes: what the estimates of the jobs that run at once may add up to. A job whose own estimate
            is above it runs when no other does.
        say: told, once a run, that memory keeps jobs waiting.
        start: starts a job in a process of its own.
        remedy: what to do where the system killed one.
    """

    workers: int
    memory_bytes: int
    say: Say
    start: Callable[[Job[Any]], _Working[Any]] = lambda job: Worker(job.work, job.task, job.say)
    remedy: str = LESS_AT_ONCE

    def run(self, jobs: Iterable[Job[ResultT]]) -> None:
        """Runs ``jobs`` and tells each its result; they are started in their order.

        One is taken from ``jobs`` only when there is room for another process. When one fails, the others
        are ended.

        Raises:
            OutOfMemoryError: a process was killed, or ran out of memory.
            LoweringError: a process crashed.
            Exception: what a job raised.
        """
        if self.workers == 1:
            for job in jobs:
                job.done(job.here())
            return
        running: dict[Connection, tuple[Job[ResultT], _Working[ResultT]]] = {}
        waiting = iter(jobs)
        following: Job[ResultT] | None = None
        told = False
        try:
            while True:
                while len(running) < self.workers:
                    following = following or next(waiting, None)
                    if following is None:
                        break
                    used = sum(job.memory_bytes for job, _ in running.values())
                    if running and used + following.memory_bytes > self.memory_bytes:
                        if not told:
                            self.say(self._memory_is_short(len(running), following))
                            told = True
                        break
                    following.say(Begun("starting"))
                    worker: _Working[ResultT] = self.start(following)
                    running[worker.connection] = following, worker
                    following = None
                if not running:
                    return
                for connection in cast(list[Connection], wait(list(running))):
                    job, worker = running[connection]
                    if self._heard(job, worker):
                        del running[connection]
                        worker.close()
                        job.done(worker.result)
        finally:
            for _, worker in running.values():
                worker.close()

    def _heard(self, job: Job[ResultT], worker: _Working[ResultT]) -> bool:
        """Whether the worker of ``job`` has its result; a process that died is said to be of that job."""
        try:
            return worker.heard()
        except ProcessKilledError as error:
            raise OutOfMemoryError(
                f"{job.name}: {error}. {self.remedy} Unless --no-cache was given, what was finished is kept: "
                "the same command goes on from there."
            ) from None
        except ProcessDiedError as error:
            raise LoweringError(
                f"{job.name}: {error}. Run the command again in one process (--jobs 1, and no cluster); if "
                "that fails too, please report it."
            ) from None

    def _memory_is_short(self, running: int, following: Job[Any]) -> str:
        return (
            f"{running} at once instead of {self.workers}: {following.name} waits for memory (it takes about "
            f"{following.memory_bytes / 1e9:.1f} GB, and all may take {self.memory_bytes / 1e9:.1f} GB)"
        )
