"""Paths as users give them."""

from __future__ import annotations

from pathlib import Path


def expanded(path: Path | None) -> Path | None:
    """``~`` as the home folder: the shell leaves it alone in ``--out=~/bundle``."""
    if path is None:
        return None
    try:
        return path.expanduser()
    except RuntimeError:
        # No such user: then it is a name like any other.
        return path


def expanded_all(names: list[str]) -> list[str]:
    """The same for names that may be paths."""
    return [str(expanded(Path(name))) if name.startswith("~") else name for name in names]
