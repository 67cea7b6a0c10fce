"""Which cache a command uses: an option, an environment variable, or the user's own folder for caches."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mobile_o_export.cli.paths import expanded_name
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

CachePlace = Annotated[
    str | None,
    typer.Option(
        "--cache",
        help=f"Another folder for the cache than {FOLDER_VARIABLE}, or the user's own for caches; or the "
        "URL of a copy for several machines, such as s3://bucket/cache.",
        metavar="DIR|URL",
    ),
]


@dataclass(frozen=True)
class Chosen:
    """Which cache it is.

    Attributes:
        folder: where it lies.
        url: of its copy for several machines, if any.
    """

    folder: Path
    url: str | None = None

    def open(self, say: Say) -> Store:
        """The cache.

        Raises:
            UsageError: the folder is no cache and something else, or the URL is none for one.
            MissingToolError: a package is needed to open the URL.
            CacheError: it cannot be used.
        """
        from mobile_o_export.cache.mirror import Mirror
        from mobile_o_export.cache.store import Store

        return Store.open(self.folder, say, None if self.url is None else Mirror(self.url))


def chosen_cache(given: str | None) -> Chosen | None:
    """The cache that the user means; None where the user wants none.

    Raises:
        UsageError: this host has no folder for caches.
    """
    chosen = given if given is not None else os.environ.get(FOLDER_VARIABLE, "")
    if given is None and chosen == OFF:
        return None
    if "://" in chosen:
        return Chosen(own_folder(), chosen)
    if given is None and not chosen:
        return Chosen(own_folder())
    return Chosen(Path(expanded_name(chosen)))


def own_folder() -> Path:
    """The user's own folder for caches of this tool.

    Raises:
        UsageError: this host has none.
    """
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


def export_store(given: str | None, off: bool, out: Path, say: Say) -> Store | None:
    """The cache for an export to ``out``; None where the user wants none, or where a message says why not.

    Raises:
        UsageError: the options contradict each other, or the folder is no cache and something else.
        MissingToolError: a package is needed to open the URL.
    """
    if given is not None and off:
        raise UsageError("--cache and --no-cache contradict each other; give one of them.")
    chosen = None if off else chosen_cache(given)
    if chosen is None:
        return None
    if not out.exists() and chosen.folder.resolve().is_relative_to(out.resolve()):
        raise UsageError(f"{chosen.folder}: the cache would lie in the bundle. Choose another folder for it.")
    from mobile_o_export.cache.layout import CacheError

    try:
        return chosen.open(say)
    except CacheError as error:
        say(f"{error} This export goes on without it")
        return None


def shared_store(given: str | None, off: bool, option: str, say: Say) -> Store:
    """The cache by which ``option`` hands results from one process to another.

    Raises:
        UsageError: the user wants none, or the folder is no cache and something else.
        MissingToolError: a package is needed to open the URL.
        CacheError: it cannot be used.
    """
    chosen = None if off else chosen_cache(given)
    if chosen is None:
        raise UsageError(f"{option} keeps what it makes in the cache; leave out --no-cache, or give --cache.")
    return chosen.open(say)
