"""Paths as users give them."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

from mobile_o_export.errors import UsageError


def expanded(path: Path | None) -> Path | None:
    """``~`` as the home folder: the shell leaves it alone in ``--out=~/bundle``."""
    if path is None:
        return None
    try:
        return path.expanduser()
    except RuntimeError:
        # No such user: then it is a name like any other.
        return path


def expanded_name(name: str) -> str:
    """The same for a name that may be a path."""
    return str(expanded(Path(name))) if name.startswith("~") else name


def expanded_all(names: list[str] | None) -> list[str]:
    """The same for several."""
    return [expanded_name(name) for name in names or []]


def require_output_file(option: str, path: Path, bundle: Path | None) -> None:
    """Raises UsageError where a file cannot be written, or would be one too many in the bundle."""
    if path.is_dir():
        raise UsageError(f"{option} {path}: is a folder. Give the path of a file.")
    if not path.parent.is_dir():
        raise UsageError(f"{option} {path}: its folder does not exist. Make it first.")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise UsageError(f"{option} {path}: cannot be written. Choose a place that you may write to.")
    if bundle is not None:
        require_outside_bundle(option, path, bundle)


def require_replaceable(option: str, path: Path, overwrite: bool) -> None:
    """Raises UsageError where a file is in the way and may not be replaced."""
    if path.exists() and not overwrite:
        raise UsageError(f"{option} {path}: exists already. Choose another name, or --overwrite it.")


def require_outside_bundle(option: str, path: Path, bundle: Path) -> None:
    """Raises UsageError where ``path`` would be one file too many in the bundle."""
    from mobile_o_export.bundle.manifest import MANIFEST

    if (bundle / MANIFEST).is_file() and path.resolve().is_relative_to(bundle.resolve()):
        raise UsageError(
            f"{option} {path}: lies in the bundle, which would then hold a file too many. Write it elsewhere."
        )


def file_typed(typed: str, option: str) -> str:
    """The one file that ``typed`` names: as it stands where there is such a file, else as a shell reads it.

    Terminals quote or escape the path of a file that is dragged into them.

    Raises:
        UsageError: it is several words, or a quotation mark is left open.
    """
    try:
        if Path(typed).is_file():
            return typed
        words = shlex.split(typed)
    # A name that no file can have; a quotation mark that is not closed.
    except (OSError, ValueError) as error:
        raise UsageError(f"{option}: {typed} cannot be read as a file's name ({error}).") from error
    if len(words) > 1:
        raise UsageError(
            f"{option}: {typed} is {len(words)} words. Put quotation marks around a name with spaces."
        )
    return words[0] if words else ""
