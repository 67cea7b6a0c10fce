"""Paths as users give them."""

from __future__ import annotations

import os
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
