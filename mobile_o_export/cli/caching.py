"""Which cache a command uses: an option, an environment variable, or the user's own folder for caches."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mobile_o_export.cli.paths import expanded
from mobile_o_export.cli.quantities import size_bytes
from mobile_o_export.errors import UsageError
from mobile_o_export.progress import Say

if TYPE_CHECKING:
    from mobile_o_export.cache.store import Store

FOLDER_VARIABLE = "MOBILE_O_EXPORT_CACHE"
LIMIT_VARIABLE = "MOBILE_O_EXPORT_CACHE_LIMIT"
OFF = "off"
"""Instead of a folder: no cache."""

DEFAULT_LIMIT = "20GB"

NAME = "mobile-o-export"

CacheFolder = Annotated[
    Path | None,
    typer.Option(
        "--cache",
        help=f"Another folder for the cache than {FOLDER_VARIABLE}, or the user's own for caches.",
        metavar="DIR",
        callback=expanded,
    ),
]


def cache_folder(given: Path | None) -> Path | None:
    """The folder of the cache; None where the user wants none.

    Raises:
        UsageError: this host has no folder for caches.
    """
    if given is not None:
        return given
    chosen = os.environ.get(FOLDER_VARIABLE, "")
    if chosen == OFF:
        return None
    if chosen:
        return expanded(Path(chosen))
    try:
        if sys.platform == "darwin":
            return Path.home() / "Library" / "Caches" / NAME
        base = os.environ.get("XDG_CACHE_HOME", "")
        # Relative ones are invalid by the XDG Base Directory Specification, and to be ignored.
        return (Path(base) if Path(base).is_absolute() else Path.home() / ".cache") / NAME
    except RuntimeError as error:
        raise UsageError(
            f"this user has no home folder to keep a cache in. Set {FOLDER_VARIABLE} to a folder, or to "
            f"{OFF}."
        ) from error


def limit_bytes() -> int:
    """What the cache may take after an export.

    Raises:
        UsageError: the variable holds no size.
    """
    return size_bytes(f"{LIMIT_VARIABLE}:", os.environ.get(LIMIT_VARIABLE) or DEFAULT_LIMIT)


def export_store(given: Path | None, off: bool, out: Path, say: Say) -> Store | None:
    """The cache for an export to ``out``; None where the user wants none, or where a message says why not.

    Raises:
        UsageError: the options contradict each other, or the folder is no cache and something else.
    """
    if given is not None and off:
        raise UsageError("--cache and --no-cache contradict each other; give one of them.")
    folder = None if off else cache_folder(given)
    if folder is None:
        return None
    if not out.exists() and folder.resolve().is_relative_to(out.resolve()):
        raise UsageError(f"{folder}: the cache would lie in the bundle. Choose another folder for it.")
    from mobile_o_export.cache.store import CacheError, Store

    try:
        return Store.open(folder, say)
    except CacheError as error:
        say(f"{error} This export goes on without it")
        return None
