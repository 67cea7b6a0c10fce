"""A copy of a cache where several machines reach it: an object store, or whatever else fsspec opens by a URL.

An entry's files are written under the names that they have in the folder, ``entry.json`` last: an object
store has no renaming, and whoever reads looks for that one first. What a killed process left without it is
nothing to anybody; a bucket's own lifecycle rules remove it, and old entries.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from mobile_o_export.atomic import staged_folder
from mobile_o_export.cache.entry import INDEX, Entry, EntryError
from mobile_o_export.cache.layout import MARKER, CacheError, marker, require_known
from mobile_o_export.errors import MissingToolError, OutOfSpaceError, UsageError
from mobile_o_export.strict import Versioned, parse_json

if TYPE_CHECKING:
    from collections.abc import Iterator


class MirrorError(CacheError):
    """A copy that cannot be reached, read or written."""


class Mirror:
    """The copy below a URL; nothing is asked of it yet.

    Attributes:
        url: as the user gave it.
    """

    def __init__(self, url: str) -> None:
        """Finds what opens ``url``.

        Raises:
            UsageError: fsspec knows no such protocol, or the URL lacks something.
            MissingToolError: the package that opens it is not installed.
        """
        import fsspec

        self.url = url
        parts = urlsplit(url)
        # A user's name and password are in front of the host.
        self._shown = parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
        try:
            # Others write meanwhile: listings must not be remembered.
            self._system, base = fsspec.core.url_to_fs(url, use_listings_cache=False)
        except ImportError as error:
            raise MissingToolError(
                f"{self}: {error}. For s3:// addresses: pip install 'mobile-o-export[s3]'."
            ) from error
        except ValueError as error:
            raise UsageError(f"{self}: cannot be a cache ({error}).") from error
        self._base = base.rstrip("/")
        if not self._base:
            raise UsageError(f"{self}: names no folder or bucket. Give one for the cache.")

    def __str__(self) -> str:
        return self._shown

    def require_layout(self) -> None:
        """Raises CacheError where a newer version wrote it, MirrorError where it cannot be reached."""
        content = self._read(MARKER)
        if content is None:
            return
        try:
            version = Versioned.model_validate(parse_json(content)).schema_version
        except ValueError as error:
            raise MirrorError(f"{self}: its {MARKER} is not one of a cache. Choose another place.") from error
        require_known(str(self), version)

    def has(self, name: str) -> bool:
        """Whether the entry ``name``, ``kind/short/key``, is there."""
        with self._asked("looked up"):
            return bool(self._system.exists(self._path(f"{name}/{INDEX}")))

    def fetch(self, folder: Path, name: str, spare_bytes: int) -> bool:
        """Makes ``folder``, the entry ``name``; False where it is not there, or a newer version wrote it.

        Its files are compared with their digests when they are read, as any entry's. ``spare_bytes`` are left
        free on the disk.
        """
        content = self._read(f"{name}/{INDEX}")
        if content is None:
            return False
        try:
            with staged_folder(folder, spare_bytes) as place:
                (place / INDEX).write_bytes(content)
                entry = Entry.open(place)
                if entry is None:
                    raise _NotOursError
                for inner in entry.index.files:
                    (place / inner).parent.mkdir(parents=True, exist_ok=True)
                    with self._asked("read"):
                        self._system.get_file(self._path(f"{name}/{inner}"), str(place / inner))
        except (_NotOursError, EntryError):
            return False
        except (UsageError, OutOfSpaceError) as error:
            # Another process may have fetched it meanwhile.
            if folder.exists():
                return True
            raise MirrorError(str(error)) from error
        return True

    def send(self, folder: Path, name: str) -> None:
        """Writes the entry in ``folder`` as ``name``, over what is there."""
        if self._read(MARKER) is None:
            self._write(MARKER, lambda path: self._system.pipe_file(path, marker()))
        entry = Entry.open(folder)
        for inner in (*(entry.index.files if entry else ()), INDEX):
            self._write(f"{name}/{inner}", partial(self._system.put_file, str(folder / inner)))

    def _read(self, name: str) -> bytes | None:
        """The content of a small file; None where it is not there."""
        with self._asked("read"):
            try:
                content: bytes = self._system.cat_file(self._path(name))
            except FileNotFoundError:
                return None
        return content

    def _write(self, name: str, write: Callable[[str], object]) -> None:
        path = self._path(name)
        with self._asked("written"):
            try:
                write(path)
            except FileNotFoundError:
                # A file system, unlike an object store, has folders. Whose first part is missing is a bucket,
                # which would be made here, and charged to the user.
                if not self._system.exists(path.partition("/")[0] or "/"):
                    raise
                self._system.makedirs(path.rpartition("/")[0], exist_ok=True)
                write(path)

    def _path(self, name: str) -> str:
        return f"{self._base}/{name}"

    @contextmanager
    def _asked(self, what: str) -> Iterator[None]:
        try:
            yield
        # Whatever the client of a service raises: OSError, its own classes, those of what it is made with.
        except Exception as error:
            reason = str(error) or type(error).__name__
            raise MirrorError(f"{self}: cannot be {what} ({reason}).") from error


class _NotOursError(Exception):
    """An entry of a newer version."""
