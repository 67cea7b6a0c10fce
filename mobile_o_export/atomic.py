"""Folders and files that appear whole or not at all."""

from __future__ import annotations

import errno
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mobile_o_export.errors import OutOfSpaceError, UsageError

_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)

_NO_SPACE_TEXT = "No space left on device"
"""What libraries that swallow ``errno`` (safetensors, onnx, protobuf) leave of it."""


@contextmanager
def staged_folder(final: Path, required_bytes: int) -> Iterator[Path]:
    """A new folder beside ``final`` to write into; it becomes ``final`` when the block ends well.

    Whatever ends the block otherwise, Ctrl-C included, removes it, with the parent folders that had to be
    made. Only a killed process leaves one behind, called ``<final>.<random>.partial``.

    Args:
        final: the folder to make; its parents are made as well.
        required_bytes: a bound on what will be written, compared with the free space before the block runs.

    Raises:
        UsageError: ``final`` is there already, or its parent cannot be written.
        OutOfSpaceError: the disk has less room than ``required_bytes``, or fills up during the block.
    """
    final = Path(final)
    if final.exists() or final.is_symlink():
        raise _exists(final)
    missing_parents = [parent for parent in final.parents if not parent.exists()]
    nearest = next(parent for parent in final.parents if parent.exists())
    _require_space(nearest, final, required_bytes)
    partial = final.with_name(f"{final.name}.{secrets.token_hex(4)}.partial")
    try:
        try:
            partial.mkdir(parents=True)
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
        shutil.rmtree(partial, ignore_errors=True)
        for parent in missing_parents:
            try:
                parent.rmdir()
            except OSError:
                break
        if _is_out_of_space(error) and not isinstance(error, OutOfSpaceError):
            raise OutOfSpaceError(
                f"{final}: the disk filled up while it was written; what was written is removed. "
                "Free some space or choose another disk, then run the command again."
            ) from error
        raise


@contextmanager
def staged_file(final: Path) -> Iterator[Path]:
    """A path beside ``final`` to write to; the file becomes ``final``, or replaces it, if all goes well."""
    partial = final.with_name(f".{secrets.token_hex(4)}.partial")
    try:
        yield partial
        partial.replace(final)
    finally:
        partial.unlink(missing_ok=True)


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
