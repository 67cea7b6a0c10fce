"""A Ray cluster of two nodes on this machine, and jobs on it; prints as JSON what became of them.

In a process of its own: Ray warns of what its own threads leave open.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from mobile_o_export.errors import ExportError, UsageError
from mobile_o_export.jobs import Job
from mobile_o_export.progress import Say

GB = 10**9


def where(task: Any, _say: Say) -> Any:
    """What the process has that does the work."""
    return {"threads": os.environ.get("OMP_NUM_THREADS"), "ray": "ray" in sys.modules, "task": task}


def unusable(task: Any, _say: Say) -> Any:
    raise UsageError(f"{task} is of no use")


def dies(_task: Any, _say: Say) -> Any:
    os.kill(os.getpid(), signal.SIGKILL)


def dies_once(task: str, _say: Say) -> Any:
    """Kills itself the first time."""
    try:
        Path(task).touch(exist_ok=False)
    except FileExistsError:
        return "done again"
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("killed")


def loses_its_node(task: str, _say: Say) -> Any:
    """The first time kills the node that it runs on, the parent of Ray's process, and that process."""
    place = Path(task)
    status = Path(f"/proc/{os.getppid()}/status").read_text()
    node = int(next(line.split()[1] for line in status.splitlines() if line.startswith("PPid:")))
    if not place.exists():
        place.write_text(str(node))
        os.kill(node, signal.SIGKILL)
        os.kill(os.getppid(), signal.SIGKILL)
        time.sleep(600)
    return {"elsewhere": int(place.read_text()) != node}


def main(folder: Path) -> None:
    """Starts the cluster, runs the jobs one by one and together, and prints what came of them."""
    from mobile_o_export.cluster import ray_pool, silence

    silence()
    from ray.cluster_utils import Cluster

    store = {"object_store_memory": 80 * 2**20}
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "memory": GB, **store})
    for _ in range(2):
        cluster.add_node(num_cpus=2, memory=4 * GB, **store)
    os.environ["RAY_ADDRESS"] = cluster.address
    told: dict[str, Any] = {"said": []}

    def job(name: str, work: Any, task: Any = None, size: int = GB) -> Job[Any]:
        return Job(name, size, lambda: None, work, task, lambda _: None, lambda r: told.update({name: r}))

    with ray_pool(2, {"OMP_NUM_THREADS": "7"}, told["said"].append) as pool:

        def alone(given: Job[Any]) -> None:
            try:
                pool.run([given])
            except ExportError as error:
                told[given.name] = [type(error).__name__, str(error)]

        pool.run([job(f"where {number}", where, number) for number in range(3)])
        alone(job("unusable", unusable, "this"))
        alone(job("large", where, size=5 * GB))
        alone(job("dies", dies))
        alone(job("dies once", dies_once, str(folder / "once")))
        alone(job("lost", loses_its_node, str(folder / "node")))
    cluster.shutdown()
    sys.stdout.write(json.dumps(told))


if __name__ == "__main__":
    # Nodes import the work by the module's name.
    import ray_work

    ray_work.main(Path(sys.argv[1]))
