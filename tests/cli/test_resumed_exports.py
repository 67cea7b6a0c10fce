"""Exports that are killed go on where they were, and exports at the same time share a cache."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
from cli_harness import start
from shared_exports import tree

from mobile_o_export.cache.store import Store

PARTS = ("--component", "mcp", "--target", "tensorrt-orin", "--target", "onnx-cpu")
ENTRIES = 4
"""Two lowered components, and two verdicts."""

KILLS = int(os.environ.get("MOBILE_O_KILLS", "1"))
"""How many exports are killed."""

LONGEST_WAIT_SECONDS = 2.0


@pytest.mark.slow
def test_killed_exports_go_on_where_they_were(reference_folder: Path, golden: Path, tmp_path: Path) -> None:
    """And two that go on at the same time share the cache."""
    cache, made = tmp_path / "cache", tmp_path / "made"
    arguments = ("export", reference_folder, *PARTS, "--golden", golden)
    chance = random.Random()
    longest, kills = LONGEST_WAIT_SECONDS, 0
    while kills < KILLS:
        process = start(*arguments, "--cache", cache, "--out", made / "one")
        # A little further each time, into whatever is then at work.
        further = (kills + 1) * ENTRIES // (KILLS + 1)
        begun = "*.partial/tensorrt-orin"
        while process.poll() is None and not (kept(cache) >= further and list(made.glob(begun))):
            time.sleep(0.01)
        time.sleep(chance.uniform(0, longest))
        process.send_signal(signal.SIGKILL)
        _, err = process.communicate()
        assert process.returncode in (0, -signal.SIGKILL), err
        if (made / "one").exists():
            # The kill came too late, as may be on a fast machine.
            shutil.rmtree(made / "one")
            longest /= 2
        else:
            kills += 1
    before = kept(cache)
    assert before >= KILLS * ENTRIES // (KILLS + 1)
    both = [start(*arguments, "--cache", cache, "--out", made / name) for name in ("one", "other")]
    errors = ""
    for process in both:
        code, err = finished(process)
        assert code == 0, err
        assert err.count("from the cache") >= before
        assert "cache:" not in err
        errors += err
    assert "killed process had left unfinished" in errors
    assert sorted(path.name for path in made.iterdir()) == ["one", "other"]
    code, err = finished(start(*arguments, "--no-cache", "--out", tmp_path / "fresh"))
    assert code == 0, err
    assert tree(made / "one") == tree(made / "other") == tree(tmp_path / "fresh")
    store = Store.open(cache)
    store.prune(None)
    assert [entry.problem for entry in store.kept()] == [""] * ENTRIES
    assert not list(cache.rglob("*.partial"))


def kept(cache: Path) -> int:
    """How many entries are in the cache."""
    return len(list(Store.open(cache).kept()))


def finished(process: subprocess.Popen[str]) -> tuple[int, str]:
    """The exit code and stderr; several exports may take long on a busy machine."""
    with process:
        _, err = process.communicate()
    return process.returncode, err
