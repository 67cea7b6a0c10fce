"""What a session shares: made once, by whichever process comes first, and never half."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest
from shared_exports import SharedExports

MAKES_SLOWLY = """
import sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from shared_exports import SharedExports

def make(folder):
    (Path(sys.argv[2]) / "started").touch()
    time.sleep(0.5)
    (folder / "file").write_text("theirs")

SharedExports(Path(sys.argv[2])).once("thing", [1], make)
"""


def write(content: str):
    return lambda folder: (folder / "file").write_text(content)


def test_it_is_made_once_for_each_key(tmp_path: Path) -> None:
    exports = SharedExports(tmp_path)
    first = exports.once("thing", {"a": 1, "b": 2}, write("first"))
    assert exports.once("thing", {"b": 2, "a": 1}, write("again")) == first
    assert (first / "file").read_text() == "first"
    assert (exports.once("thing", {"a": 1, "b": 3}, write("other")) / "file").read_text() == "other"
    assert (exports.once("another", {"a": 1, "b": 2}, write("kind")) / "file").read_text() == "kind"


def test_what_fails_half_way_is_made_anew(tmp_path: Path) -> None:
    exports = SharedExports(tmp_path)

    def fail(folder: Path) -> None:
        (folder / "half").touch()
        raise ValueError("half way")

    with pytest.raises(ValueError, match="half way"):
        exports.once("thing", [1], fail)
    place = exports.once("thing", [1], write("whole"))
    assert [path.name for path in place.iterdir()] == ["file"]


def test_others_wait_for_who_is_making_it(tmp_path: Path) -> None:
    arguments = [sys.executable, "-c", MAKES_SLOWLY, str(Path(__file__).parent), str(tmp_path)]
    with subprocess.Popen(arguments) as process:
        while not (tmp_path / "started").exists():
            assert process.poll() is None
            time.sleep(0.01)
        place = SharedExports(tmp_path).once("thing", [1], write("ours"))
    assert process.returncode == 0
    assert (place / "file").read_text() == "theirs"


def test_who_uses_what_is_shared_is_slow(request: pytest.FixtureRequest, shared: SharedExports) -> None:
    assert request.node.get_closest_marker("slow") is not None


def test_who_does_not_is_not(request: pytest.FixtureRequest) -> None:
    assert request.node.get_closest_marker("slow") is None
