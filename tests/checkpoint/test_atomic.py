from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mobile_o_export.atomic import remove_abandoned, staged_file, staged_folder
from mobile_o_export.errors import OutOfSpaceError, UsageError

REPOSITORY = Path(__file__).parents[2]


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


KILLED = """
import os, signal, sys
from pathlib import Path
from mobile_o_export.atomic import staged_file, staged_folder
place = Path(sys.argv[1])
with staged_folder(place / "out", 0) as folder, staged_file(place / "page.html") as page:
    (folder / "inner").mkdir()
    (folder / "inner" / "file").write_text("half")
    page.write_text("half")
    print("written", flush=True)
    sys.stdin.read()
"""


def writing(folder: Path) -> subprocess.Popen[str]:
    """A process in the middle of writing a folder and a file into ``folder``."""
    streams = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    process = subprocess.Popen([sys.executable, "-c", KILLED, str(folder)], cwd=REPOSITORY, **streams)
    assert process.stdout.readline() == "written\n"
    return process


def partials(folder: Path) -> list[Path]:
    return sorted(folder.glob(".mobile-o-*.partial")) + sorted(folder.glob("out.mobile-o-*.partial"))


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_what_a_killed_process_left_is_removed_and_named(tmp_path: Path, kind: str) -> None:
    with writing(tmp_path) as process:
        left = partials(tmp_path)
        assert len(left) == 2
        said: list[str] = []
        staged = staged_folder(tmp_path / "other", 0, said.append) if kind == "folder" else None
        with staged or staged_file(tmp_path / "other", said.append):
            # It is alive: both are still its own.
            assert [path for path in left if path.exists()] == left
        assert said == []
        process.kill()
        process.wait()
        process.stdin.close()
    assert partials(tmp_path) == left
    staged = staged_folder(tmp_path / "out", 0, said.append) if kind == "folder" else None
    with staged or staged_file(tmp_path / "out", said.append):
        pass
    assert said == [f"removed {path}, which a killed process had left unfinished" for path in sorted(left)]
    assert partials(tmp_path) == []
    assert {path.name for path in tmp_path.iterdir()} == {"other", "out"}


def test_nothing_else_is_removed(tmp_path: Path) -> None:
    kept = ["out.partial", "out.0123abcd.partial", "out.mobile-o-0123abcd.part", "mobile-o-0123abcd.partial"]
    for name in kept:
        (tmp_path / name).mkdir()
    # A link of such a name is no work of ours, nor is what it leads to.
    (tmp_path / "a.mobile-o-0123abcd.partial").symlink_to("out.partial")
    os.mkfifo(tmp_path / "b.mobile-o-0123abcd.partial")
    before = {path.name for path in tmp_path.iterdir()}
    said: list[str] = []
    remove_abandoned(tmp_path, said.append)
    assert {path.name for path in tmp_path.iterdir()} == before
    assert said == []


def test_an_abandoned_folder_is_removed_without_what_it_links_to(tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "file").touch()
    left = tmp_path / "out.mobile-o-0123abcd.partial"
    left.mkdir()
    (left / "link").symlink_to(tmp_path / "kept")
    remove_abandoned(tmp_path, lambda _: None)
    assert not left.exists()
    assert (tmp_path / "kept" / "file").exists()


def test_a_file_that_cannot_be_written_leaves_the_old_one(tmp_path: Path) -> None:
    final = tmp_path / "report.xml"
    final.write_text("old")

    def fill() -> None:
        with staged_file(final) as partial:
            partial.write_text("new")
            raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OutOfSpaceError, match=r"report\.xml: the disk filled up"):
        fill()
    assert final.read_text() == "old"
    assert list(tmp_path.iterdir()) == [final]


def test_a_file_is_written_through_a_link_and_into_a_pipe(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("old")
    (tmp_path / "link").symlink_to("file")
    with staged_file(tmp_path / "link") as partial:
        partial.write_text("new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "file").read_text() == "new"
    os.mkfifo(tmp_path / "pipe")
    with staged_file(tmp_path / "pipe") as partial:
        assert partial == tmp_path / "pipe"
    with staged_file(Path("/dev/stdout")) as partial:
        assert partial == Path("/dev/stdout")
