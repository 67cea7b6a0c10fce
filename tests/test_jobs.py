"""Which jobs run at once: as many as memory and the number of workers allow, in the order they are given."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from mobile_o_export import jobs
from mobile_o_export.errors import LoweringError, OutOfMemoryError
from mobile_o_export.jobs import Job, Pool
from mobile_o_export.progress import Begun
from mobile_o_export.workers import ProcessDiedError, ProcessKilledError


class Fake:
    """A worker whose job finishes when ``Host`` has it chosen; it is its own connection."""

    def __init__(self, job: Job[str], closed: Callable[[Fake], None]) -> None:
        self.job = job
        self.connection: Any = self
        self.result = f"result of {job.name}"
        self.close = lambda: closed(self)

    def heard(self) -> bool:
        if isinstance(self.job.task, Exception):
            raise self.job.task
        return True


class Host:
    """Runs jobs without processes: when everything waits, ``choose`` says which one finishes.

    Attributes:
        started, done: names of jobs, in order.
        running: what runs now; those at the moments when everything waited are in ``together``.
        said: what the pool said.
    """

    def __init__(self, choose: Callable[[list[Fake]], Fake]) -> None:
        self.choose = choose
        self.started: list[str] = []
        self.done: list[str] = []
        self.running: list[Fake] = []
        self.together: list[list[Job[str]]] = []
        self.said: list[str] = []

    def job(
        self, name: str, size: int, task: object = None, here: Callable[[], str] | None = None
    ) -> Job[str]:
        return Job(
            name,
            size,
            here or (lambda: pytest.fail("in this process")),
            lambda *_: "",
            task,
            lambda phrase: self.said.append(f"{name} {phrase}") if not isinstance(phrase, Begun) else None,
            lambda result: self.done.append(result.removeprefix("result of ")),
        )

    def pool(self, workers: int, size: int) -> Pool:
        return Pool(workers, size, self.said.append, self.start)

    def start(self, job: Job[str]) -> Fake:
        self.started.append(job.name)
        self.running.append(Fake(job, self.running.remove))
        return self.running[-1]

    def wait(self, connections: list[Fake]) -> list[Fake]:
        assert connections == self.running
        self.together.append([fake.job for fake in connections])
        return [self.choose(connections)]


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Host:
    """Where the job that was started last finishes first."""
    found = Host(lambda running: running[-1])
    monkeypatch.setattr(jobs, "wait", lambda connections: found.wait(connections))
    return found


@pytest.mark.parametrize("seed", range(20))
def test_sums_of_memory_stay_within_the_limit(host: Host, seed: int) -> None:
    chance = random.Random(seed)
    host.choose = chance.choice
    workers, limit = chance.randint(2, 5), 100
    wanted = [host.job(str(number), chance.randint(1, 120)) for number in range(30)]
    host.pool(workers, limit).run(wanted)
    assert host.started == [job.name for job in wanted]
    assert sorted(host.done) == sorted(host.started)
    assert host.running == []
    for running in host.together:
        assert len(running) <= workers
        assert len(running) == 1 or sum(job.memory_bytes for job in running) <= limit
    assert max(map(len, host.together)) > 1


def test_as_many_run_as_fit(host: Host) -> None:
    host.pool(3, 100).run(
        [host.job(name, size) for name, size in (("a", 50), ("b", 50), ("c", 1), ("d", 99))]
    )
    names = [[job.name for job in running] for running in host.together]
    # d fits beside c; the one that was started last finishes first.
    assert names == [["a", "b"], ["a", "c"], ["a"], ["d"]]
    assert len(host.said) == 1
    assert "2 at once instead of 3: c waits for memory" in host.said[0]


def test_nothing_is_said_where_memory_keeps_nobody_waiting(host: Host) -> None:
    host.pool(2, 100).run([host.job(name, 50) for name in "abcd"])
    assert host.said == []
    assert max(map(len, host.together)) == 2


def test_one_that_never_fits_runs_alone(host: Host) -> None:
    host.pool(3, 100).run([host.job("a", 1), host.job("b", 1000), host.job("c", 1)])
    assert [[job.name for job in running] for running in host.together] == [["a"], ["b"], ["c"]]


def test_jobs_are_taken_when_there_is_room_for_them(host: Host) -> None:
    """What a job finds in the cache may have been put there by the one before."""
    taken = []

    def given() -> Iterator[Job[str]]:
        for name in "abcd":
            taken.append((name, len(host.done)))
            yield host.job(name, 1)

    host.pool(2, 100).run(given())
    assert taken == [("a", 0), ("b", 0), ("c", 1), ("d", 2)]


@pytest.mark.parametrize(
    ("death", "error", "phrases"),
    [
        (
            ProcessKilledError("its process was killed"),
            OutOfMemoryError,
            ("b: its process was killed.", "--jobs"),
        ),
        (ProcessDiedError("its process was lost"), LoweringError, ("b: its process was lost.", "--jobs 1")),
        (KeyError("odd"), KeyError, ("odd",)),
    ],
)
def test_a_failure_ends_the_others(
    host: Host, death: Exception, error: type[Exception], phrases: tuple[str, ...]
) -> None:
    with pytest.raises(error) as raised:
        host.pool(3, 100).run([host.job("a", 1), host.job("b", 1, death), host.job("c", 99)])
    assert all(phrase in str(raised.value) for phrase in phrases)
    assert (host.started, host.done, host.running) == (["a", "b"], [], [])


def test_one_worker_is_this_process(host: Host) -> None:
    host.pool(1, 0).run([host.job(name, 10, here=lambda name=name: name) for name in "ab"])
    assert (host.started, host.done) == ([], ["a", "b"])
