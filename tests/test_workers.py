"""What crosses from a worker to the process that started it."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest

from mobile_o_export import memory, workers
from mobile_o_export.bundle.manifest import DamagedBundleError
from mobile_o_export.errors import GateError, LoweringError
from mobile_o_export.progress import Say, silent
from mobile_o_export.workers import WorkerTraceback, run_alone


def is_damaged(folder: Path, say: Say) -> None:
    raise DamagedBundleError(folder, [])


def fails(task: None, say: Say) -> None:
    raise LoweringError("no converter") from ZeroDivisionError("deep inside")


def leaves_a_file(task: None, say: Say) -> str:
    name = tempfile.mkdtemp()
    (Path(name) / "left").touch()
    return name


def test_errors_that_are_not_made_from_a_message_keep_it_and_their_exit_code() -> None:
    with pytest.raises(GateError, match=r"^bundle: is not what was exported") as raised:
        run_alone(is_damaged, Path("bundle"), silent)
    assert raised.value.exit_code == 1


def test_the_traceback_of_a_cause_comes_along() -> None:
    with pytest.raises(LoweringError, match=r"^no converter$") as raised:
        run_alone(fails, None, silent)
    assert isinstance(raised.value.__cause__, WorkerTraceback)
    assert "ZeroDivisionError: deep inside" in str(raised.value.__cause__)


def test_temporary_files_of_a_worker_go_with_it() -> None:
    left = run_alone(leaves_a_file, None, silent)
    assert Path(left).is_relative_to(tempfile.gettempdir())
    assert not Path(left).exists()


def test_a_worker_that_cannot_be_started_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers.tempfile, "tempdir", str(tmp_path))
    with pytest.raises(AttributeError, match="pickle"):
        run_alone(leaves_a_file, lambda: None, silent)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


def test_available_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine, container = tmp_path / "meminfo", tmp_path / "memory.max"
    monkeypatch.setattr(memory, "_MACHINE", machine)
    monkeypatch.setattr(memory, "_CONTAINER", container)
    everything = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert memory.available_bytes() == everything
    machine.write_text("MemTotal: 99999 kB\nMemAvailable:  3000 kB\n")
    assert memory.available_bytes() == 3_072_000
    container.write_text("max\n")
    assert memory.available_bytes() == 3_072_000
    container.write_text("2000000\n")
    assert memory.available_bytes() == 2_000_000
