"""Files that change while they are read are named at the end."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from mobile_o_export.errors import CheckpointError
from mobile_o_export.snapshot import Change, Snapshot


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "folder"
    (folder / "inner").mkdir(parents=True)
    (folder / "inner" / "a").write_text("a")
    (folder / "b").write_text("b")
    (tmp_path / "blob").write_text("c")
    (folder / "c").symlink_to("../blob")
    return folder


def rewritten_with_its_time(folder: Path) -> None:
    path = folder / "b"
    before = path.stat()
    path.write_text("B")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def replaced(folder: Path) -> None:
    (folder / "new").write_text("b")
    (folder / "new").replace(folder / "b")


CHANGES: dict[str, tuple[Callable[[Path], object], str, str]] = {
    "written": (lambda f: (f / "b").write_text("longer"), "b", "was changed"),
    "written, and its time set back": (rewritten_with_its_time, "b", "was changed"),
    "replaced by an equal one": (replaced, "b", "was changed"),
    "removed": (lambda f: (f / "b").unlink(), "b", "is gone"),
    "added": (lambda f: (f / "inner" / "d").touch(), "inner/d", "has appeared"),
    "what a link leads to": (lambda f: (f.parent / "blob").write_text("longer"), "c", "was changed"),
    "a link": (lambda f: ((f / "c").unlink(), (f / "c").symlink_to("b")), "c", "was changed"),
}


@pytest.mark.parametrize("case", CHANGES)
def test_a_change_is_named(folder: Path, case: str) -> None:
    change, name, reason = CHANGES[case]
    snapshot = Snapshot.of(folder)
    assert snapshot.changes() == ()
    change(folder)
    assert snapshot.changes() == (Change(folder / name, reason),)


def test_reading_changes_nothing(folder: Path) -> None:
    snapshot = Snapshot.of(folder)
    for path in folder.rglob("*"):
        if path.is_file():
            path.read_bytes()
    snapshot.require_unchanged(CheckpointError, "Run it again.")


def test_single_files_and_those_that_are_not_there_yet(folder: Path) -> None:
    snapshot = Snapshot.of(folder / "b", folder / "later")
    (folder / "other").touch()
    assert snapshot.changes() == ()
    (folder / "later").touch()
    assert snapshot.changes() == (Change(folder / "later", "has appeared"),)


def test_the_message_says_what_changed_and_what_to_do(folder: Path) -> None:
    snapshot = Snapshot.of(folder)
    for number in range(7):
        (folder / f"n{number}").touch()
    with pytest.raises(CheckpointError) as raised:
        snapshot.require_unchanged(CheckpointError, "Run it again.")
    assert str(raised.value).startswith(f"changed while it was read: {folder}/n0 has appeared; ")
    assert str(raised.value).endswith("; and 2 more. Run it again.")
