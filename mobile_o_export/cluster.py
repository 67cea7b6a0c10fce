"""Jobs on the nodes of a Ray cluster, each in a process of its own.

Ray decides where and when: it is told a job's cores and memory. A job whose node is lost is done again
elsewhere. Checkpoint, goldens and cache have to be where every node finds them under the same name.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from multiprocessing import Pipe
from pathlib import Path
from types import ModuleType
from typing import Any, Generic, TypeVar, cast

from mobile_o_export.errors import MissingToolError, UnsupportedError, UsageError
from mobile_o_export.jobs import Job, Pool
from mobile_o_export.progress import Say, silent
from mobile_o_export.workers import Outcome, ProcessDiedError, ProcessKilledError, run_alone

RETRIES = 3
"""How often a job is done again whose node or process was lost."""

MOST_AT_ONCE = 1000
"""Jobs that are handed to Ray at once; it keeps those waiting for which there is no room."""

EXTRA = "pip install 'mobile-o-export[ray]'"

ResultT = TypeVar("ResultT")


@contextmanager
def ray_pool(cores: int, variables: Mapping[str, str], say: Say) -> Iterator[Pool]:
    """A pool whose jobs run on the cluster at ``RAY_ADDRESS``, on the one that this machine is a node of, or
    on one of this machine alone.

    Args:
        cores: what each job computes with.
        variables: of the environment, which each job gets; Ray sets some of them by itself.
        say: told what the cluster has.

    Raises:
        MissingToolError: Ray is not installed.
        UsageError: the cluster cannot be reached.
    """
    silence()
    try:
        import ray
    except ImportError as error:
        raise MissingToolError(f"--executor ray needs Ray: {EXTRA}.") from error
    try:
        ray.init(log_to_driver=False, logging_level="error", include_dashboard=False)
    # ConnectionError, RuntimeError, ValueError, by how the address is wrong.
    except Exception as error:
        raise UsageError(
            f"the Ray cluster cannot be reached ({error}). Set RAY_ADDRESS to one that runs this version of "
            "Ray, or unset it."
        ) from error
    try:
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        total = {name: sum(node.get(name, 0) for node in nodes) for name in ("CPU", "memory")}
        say(f"{len(nodes)} nodes, {total['CPU']:.0f} cores, {total['memory'] / 1e9:.1f} GB")

        def start(job: Job[Any]) -> _RayJob[Any]:
            return _RayJob(ray, job, cores, variables, nodes)

        yield Pool(
            MOST_AT_ONCE, 2**63, say, start, "Add nodes with more memory, or close other programs there."
        )
    finally:
        ray.shutdown()


def computing() -> tuple[int, Mapping[str, str]]:
    """How many cores this process computes with, and what in its environment says how: as nodes have to."""
    import torch

    from mobile_o_export.cache.keys import surroundings

    return torch.get_num_threads(), surroundings()["machine"]["variables"]


def silence() -> None:
    """Has Ray, which is not imported yet, say nothing: where a node is lost, it would say it by the page."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", ".*")


class _RayJob(Generic[ResultT]):
    """A job that Ray runs; see ``jobs.Pool``."""

    def __init__(
        self,
        ray: Any,
        job: Job[ResultT],
        cores: int,
        variables: Mapping[str, str],
        nodes: Sequence[Mapping[str, float]],
    ) -> None:
        """Hands the job to Ray.

        Raises:
            UnsupportedError: no node could ever run it, on which Ray would wait for one.
        """
        if not any(
            node.get("CPU", 0) >= cores and node.get("memory", 0) >= job.memory_bytes for node in nodes
        ):
            raise UnsupportedError(
                f"{job.name}: no node of the Ray cluster has {cores} cores and "
                f"{job.memory_bytes / 1e9:.1f} GB of memory. Add a larger one, or set OMP_NUM_THREADS to "
                "fewer cores."
            )
        self._ray = ray
        self._outcome: list[Outcome[ResultT]] = []
        self.connection, self._done = Pipe(duplex=False)
        remote = ray.remote(
            num_cpus=cores,
            memory=job.memory_bytes,
            max_retries=RETRIES,
            retry_exceptions=[ProcessDiedError],
        )(_on_a_node)
        self._running = remote.options(name=job.name).remote(job.work, job.task, dict(variables))
        threading.Thread(target=self._wait, daemon=True).start()

    @property
    def result(self) -> ResultT:
        """What the work came to, once :meth:`heard` was true."""
        return self._outcome[0].result()

    def heard(self) -> bool:
        """True, once it has a result.

        Raises:
            ProcessKilledError: its node or process was lost, again and again.
            Exception: what the work raised.
        """
        self.connection.recv()
        self.result  # noqa: B018 - raises what the work raised
        return True

    def close(self) -> None:
        """Stops waiting for it; Ray ends those that still run when the pool is left."""
        self.connection.close()

    def _wait(self) -> None:
        exceptions = self._ray.exceptions
        try:
            found = cast(Outcome[ResultT], self._ray.get(self._running))
        except exceptions.RayTaskError as error:
            cause = getattr(error, "cause", None)
            found = Outcome(None, cause if isinstance(cause, ProcessDiedError) else RuntimeError(str(error)))
        except exceptions.RayError as error:
            reason = str(error).strip().split("\n", 1)[0] or type(error).__name__
            found = Outcome(None, ProcessKilledError(f"Ray lost it {RETRIES + 1} times ({reason})"))
        self._outcome.append(found)
        with suppress(OSError):
            self._done.send(None)


def _on_a_node(
    work: Callable[[Any, Say], ResultT], task: object, variables: Mapping[str, str]
) -> Outcome[ResultT]:
    """What Ray's process on a node does: the work in a process of its own, as an export on one machine would.

    Not with what Ray adds to its own process: a number of threads, by which libraries would add up in another
    order, and a folder of packages in front of those that are installed.

    Raises:
        ProcessDiedError: the process was lost; Ray does it again, wherever there is room.
    """
    import ray

    os.environ.pop("OMP_NUM_THREADS", None)
    os.environ.update(variables)
    own = Path(ray.__file__).parent
    sys.path[:] = [place for place in sys.path if not Path(place).is_relative_to(own)]
    # A spawned process would import the program of this one, and by it Ray.
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        return Outcome(run_alone(work, task, silent))
    except ProcessDiedError:
        raise
    except Exception as error:  # noqa: BLE001 - whatever it is, who asked for it raises it
        return Outcome(None, error)
