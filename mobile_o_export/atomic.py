"""Folders and files that appear whole or not at all.

What is written lies beside them first, under a name that ends in ``.partial``, and is locked for as long as
its process lives. A killed process leaves it there; the next one that writes beside it finds no lock, and
removes it.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import secrets
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from mobile_o_export.errors import OutOfSpaceError, UsageError
from mobile_o_export.progress import Say, silent

_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)

_MARK = "mobile-o"
TRIES = 16
"""Of making something that nobody removes before it is locked; one is enough but for a race."""

_PARTIAL = re.compile(rf".*\.{_MARK}-[0-9a-f]{{8}}\.partial")
"""What names of unfinished folders and files look like; nobody else's do."""

_NO_SPACE_TEXT = "No space left on device"
"""What libraries that swallow ``errno`` (safetensors, onnx, protobuf) leave of it."""


@contextmanager
def staged_folder(final: Path, required_bytes: int, say: Say = silent) -> Iterator[Path]:
    """A new folder beside ``final`` to write into; it becomes ``final`` when the block ends well.

    Whatever ends the block otherwise, Ctrl-C included, removes it, with the parent folders that had to be
    made. Only a killed process leaves one behind, called ``<final>.mobile-o-<random>.partial``; those that
    lie beside ``final`` are removed.

    Args:
        final: the folder to make; its parents are made as well.
        required_bytes: a bound on what will be written, compared with the free space before the block runs.
        say: told of each unfinished folder or file that was found and removed.

    Raises:
        UsageError: ``final`` is there already, or its parent cannot be written.
        OutOfSpaceError: the disk has less room than ``required_bytes``, or fills up during the block.
    """
    final = Path(final)
    require_new(final)
    missing_parents = [parent for parent in final.parents if not parent.exists()]
    nearest = next(parent for parent in final.parents if parent.exists())
    remove_abandoned(final.parent, say)
    _require_space(nearest, final, required_bytes)
    partial, lock = None, -1
    try:
        try:
            partial, lock = _begun(final.parent, final.name, lambda path: path.mkdir(parents=True))
        except OSError as error:
            if error.errno in _NO_SPACE:
                raise
            raise UsageError(
                f"{final}: cannot be made ({error.strerror}). Choose a folder that you may write to."
            ) from error
        yield partial
        _make_readable(partial)
        try:
            partial.rename(final)
        except OSError as error:
            # Another process made it meanwhile; rename replaces only an empty folder.
            if final.exists():
                raise _exists(final) from error
            raise
    except BaseException as error:
        if partial is not None:
            shutil.rmtree(partial, ignore_errors=True)
        for parent in missing_parents:
            try:
                parent.rmdir()
            except OSError:
                break
        if _is_out_of_space(error) and not isinstance(error, OutOfSpaceError):
            raise _filled(final) from error
        raise
    finally:
        _unlock(lock)


@contextmanager
def working_folder(parent: Path, required_bytes: int, say: Say = silent) -> Iterator[Path]:
    """A new folder in ``parent`` that is there for as long as the block runs.

    A killed process leaves it behind; the next one that works in ``parent`` removes it.

    Args:
        parent: is made where it is missing.
        required_bytes: a bound on what will be written, compared with the free space before the block runs.
        say: told of each unfinished folder or file that was found and removed.

    Raises:
        UsageError: ``parent`` cannot be written.
        OutOfSpaceError: the disk has less room than ``required_bytes``, or fills up during the block.
    """
    remove_abandoned(parent, say)
    try:
        parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        _require_space(parent, parent, required_bytes)
        work, lock = _begun(parent, "work", lambda path: path.mkdir())
    except OSError as error:
        if error.errno in _NO_SPACE:
            raise _filled(parent) from error
        raise UsageError(
            f"{parent}: nothing can be made there ({error.strerror}). Choose a folder that you may write to."
        ) from error
    try:
        yield work
    except BaseException as error:
        if _is_out_of_space(error) and not isinstance(error, OutOfSpaceError):
            raise _filled(parent) from error
        raise
    finally:
        shutil.rmtree(work, ignore_errors=True)
        _unlock(lock)


@contextmanager
def staged_file(final: Path, say: Say = silent) -> Iterator[Path]:
    """An empty file beside ``final`` to write to; it becomes ``final``, or replaces it, if all goes well.

    A link is written through. What is no regular file, such as ``/dev/stdout``, is written to as it is.
    ``say`` as in :func:`staged_folder`.

    Raises:
        OutOfSpaceError: the disk fills up while it is written; what was there before is still there.
    """
    if str(final).startswith(("/dev/", "/proc/")) or (final.exists() and not final.is_file()):
        yield final
        return
    final = final.resolve()
    remove_abandoned(final.parent, say)
    partial, lock = None, -1
    try:
        partial, lock = _begun(final.parent, "", lambda path: path.touch(exist_ok=False))
        yield partial
        partial.replace(final)
    except OSError as error:
        if not _is_out_of_space(error):
            raise
        raise OutOfSpaceError(
            f"{final}: the disk filled up while it was written. Free some space or choose another disk, then "
            "run the command again."
        ) from error
    finally:
        if partial is not None:
            partial.unlink(missing_ok=True)
        _unlock(lock)


def require_new(final: Path) -> None:
    """Raises UsageError where something lies at ``final``."""
    if final.exists() or final.is_symlink():
        raise _exists(final)


def remove_abandoned(parent: Path, say: Say) -> None:
    """Removes what killed processes left unfinished in the folder ``parent``, and says so.

    Nothing that a process still writes, nothing of another user, and nothing on file systems without locks.
    """
    try:
        names = [name for name in os.listdir(parent) if _PARTIAL.fullmatch(name)]  # noqa: PTH208 - names only
    except OSError:
        return
    for name in sorted(names):
        path = parent / name
        lock = -1
        try:
            found = path.lstat()
            is_folder = stat.S_ISDIR(found.st_mode)
            if found.st_uid != os.geteuid() or not (is_folder or stat.S_ISREG(found.st_mode)):
                continue
            lock = _locked(path, required=True)
            if is_folder:
                shutil.rmtree(path)
            else:
                path.unlink()
        except OSError:
            continue
        finally:
            _unlock(lock)
        say(f"removed {path}, which a killed process had left unfinished")


def remove_folder(folder: Path) -> None:
    """Removes a folder at once for whoever looks for it by its name, however long its files take.

    Raises:
        OSError: it cannot be removed, or is gone.
    """
    partial = folder.with_name(f"{folder.name}{_suffix()}")
    folder.rename(partial)
    shutil.rmtree(partial)


def _begun(parent: Path, name: str, make: Callable[[Path], object]) -> tuple[Path, int]:
    """What ``make`` made below ``parent`` under a new unfinished name, and the lock on it.

    Another process that looks for abandoned ones may remove it in the moment before it is locked: then it is
    made once more.
    """
    for _ in range(TRIES):
        partial = parent / f"{name}{_suffix()}"
        make(partial)
        with suppress(FileNotFoundError, BlockingIOError):
            return partial, _locked(partial)
    raise BlockingIOError(errno.EAGAIN, "other processes keep removing what is made there", str(parent))


def _suffix() -> str:
    return f".{_MARK}-{secrets.token_hex(4)}.partial"


def _locked(path: Path, *, required: bool = False) -> int:
    """A descriptor that holds the lock on ``path`` until it is closed, at the latest by the process's end.

    -1 on a file system without locks, unless it is ``required``.

    Raises:
        OSError: it is gone, or somebody else has it.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Who looked for abandoned ones may have removed it before it was locked.
        path.lstat()
    except OSError as error:
        os.close(descriptor)
        if required or isinstance(error, BlockingIOError | FileNotFoundError):
            raise
        return -1
    return descriptor


def _unlock(descriptor: int) -> None:
    with suppress(OSError):
        os.close(descriptor)


def _make_readable(folder: Path) -> None:
    """Gives every file the permissions of any other of the user's: some libraries keep theirs to the user."""
    own = stat.S_IMODE(folder.stat().st_mode) & 0o666
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink():
            path.chmod(path.stat().st_mode | own)


def _require_space(disk: Path, final: Path, required_bytes: int) -> None:
    free_bytes = shutil.disk_usage(disk).free
    if free_bytes < required_bytes:
        raise OutOfSpaceError(
            f"{final}: needs {required_bytes / 1e9:.2f} GB and its disk has {free_bytes / 1e9:.2f} GB free. "
            "Free some space or choose another disk."
        )


def _filled(final: Path) -> OutOfSpaceError:
    return OutOfSpaceError(
        f"{final}: the disk filled up while it was written; what was written is removed. "
        "Free some space or choose another disk, then run the command again."
    )


def _exists(final: Path) -> UsageError:
    return UsageError(f"{final}: exists already. Choose another folder, or delete this one first.")


def _is_out_of_space(error: BaseException | None) -> bool:
    """Whether a full disk is at the root of ``error``, however far up the chain."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        if isinstance(error, OSError) and error.errno in _NO_SPACE:
            return True
        if _NO_SPACE_TEXT in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False
