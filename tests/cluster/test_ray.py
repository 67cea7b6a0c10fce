"""Jobs on a real Ray cluster: what they get, what they give, and what becomes of those whose node is lost."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from mobile_o_export.cluster import ray_pool
from mobile_o_export.errors import MissingToolError

REPOSITORY = Path(__file__).parents[2]
WORK = Path(__file__).with_name("ray_work.py")


def run(folder: Path, own: str) -> subprocess.CompletedProcess[str]:
    """The jobs, on a cluster whose files lie in the folder ``own``."""
    paths = os.pathsep.join([str(REPOSITORY), str(WORK.parent)])
    return subprocess.run(
        [sys.executable, WORK, folder],
        env={**os.environ, "PYTHONPATH": paths, "RAY_TMPDIR": own},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.mark.slow
def test_jobs_on_two_nodes_of_which_one_is_lost(tmp_path: Path) -> None:
    # Not among the files of a cluster that runs here; and a short path, for the names of sockets.
    with tempfile.TemporaryDirectory(prefix="ray") as own:
        done = run(tmp_path, own)
    assert done.returncode == 0, done.stderr
    # Nothing of what Ray says about nodes.
    assert done.stderr == ""
    told = json.loads(done.stdout)
    assert told["said"] == ["3 nodes, 4 cores, 9.0 GB"]
    for number in range(3):
        # As in an export on one machine: the threads of the command, and no Ray.
        assert told[f"where {number}"] == {"threads": "7", "ray": False, "task": number}
    assert told["unusable"] == ["UsageError", "this is of no use"]
    assert told["large"][0] == "UnsupportedError"
    assert "large: no node of the Ray cluster has 2 cores and 5.0 GB of memory" in told["large"][1]
    assert told["dies"][0] == "OutOfMemoryError"
    assert "dies: its process was killed by SIGKILL" in told["dies"][1]
    assert told["dies once"] == "done again"
    assert told["lost"] == {"elsewhere": True}


def test_ray_is_asked_for_where_it_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with (
        pytest.raises(MissingToolError, match=r"needs Ray: pip install 'mobile-o-export\[ray\]'"),
        ray_pool(1, {}, lambda _: None),
    ):
        pass
