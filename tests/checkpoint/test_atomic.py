from __future__ import annotations

import errno
from pathlib import Path

import pytest

from mobile_o_export.atomic import staged_folder
from mobile_o_export.errors import OutOfSpaceError, UsageError


def test_appears_whole(tmp_path: Path) -> None:
    final = tmp_path / "new" / "deep" / "out"
    with staged_folder(final, 0) as folder:
        assert folder.parent == final.parent
        assert folder.name.endswith(".partial")
        (folder / "file").write_text("content")
        assert not final.exists()
    assert (final / "file").read_text() == "content"
    assert list(final.parent.iterdir()) == [final]


def _fail_inside(final: Path, error: BaseException) -> None:
    with staged_folder(final, 0) as folder:
        (folder / "file").write_text("half")
        raise error


def test_files_that_a_library_keeps_to_the_user_are_as_readable_as_others(tmp_path: Path) -> None:
    with staged_folder(tmp_path / "out", 0) as partial:
        (partial / "deep").mkdir()
        for name in ("deep/usual", "deep/private"):
            (partial / name).touch()
        (partial / "deep/private").chmod(0o600)
    modes = [(tmp_path / "out" / "deep" / name).stat().st_mode for name in ("usual", "private")]
    assert modes[0] == modes[1]


@pytest.mark.parametrize(
    "error", [KeyboardInterrupt(), SystemExit(2), ValueError("bug"), OSError(errno.EIO, "disk")]
)
def test_nothing_is_left_of_a_failure(tmp_path: Path, error: BaseException) -> None:
    with pytest.raises(type(error)) as caught:
        _fail_inside(tmp_path / "new" / "out", error)
    assert caught.value is error
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["folder", "file", "dangling link"])
def test_existing_output_is_refused(tmp_path: Path, kind: str) -> None:
    final = tmp_path / "out"
    {"folder": final.mkdir, "file": final.touch, "dangling link": lambda: final.symlink_to("nowhere")}[kind]()
    with pytest.raises(UsageError, match=r"exists already.*delete"), staged_folder(final, 0):
        pytest.fail("the block must not run")
    assert list(tmp_path.iterdir()) == [final]


def test_output_made_meanwhile_is_kept(tmp_path: Path) -> None:
    final = tmp_path / "out"

    def write() -> None:
        with staged_folder(final, 0):
            final.mkdir()
            (final / "theirs").touch()

    with pytest.raises(UsageError, match="exists already"):
        write()
    assert list(tmp_path.iterdir()) == [final]
    assert list(final.iterdir()) == [final / "theirs"]


def test_parent_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="cannot be made"), staged_folder(tmp_path / "file" / "out", 0):
        pytest.fail("the block must not run")


def test_too_little_space_is_found_before_any_work(tmp_path: Path) -> None:
    with (
        pytest.raises(OutOfSpaceError, match=r"needs 1000000000\.00 GB"),
        staged_folder(tmp_path / "out", 10**18),
    ):
        pytest.fail("the block must not run")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        RuntimeError("I/O error: No space left on device (os error 28)"),
    ],
)
@pytest.mark.parametrize("wrapped", [False, True])
def test_disk_that_fills_up(tmp_path: Path, error: Exception, wrapped: bool) -> None:
    if wrapped:
        cause, error = error, ValueError("converter failed")
        error.__cause__ = cause
    with pytest.raises(OutOfSpaceError, match="filled up"):
        _fail_inside(tmp_path / "out", error)
    assert list(tmp_path.iterdir()) == []
