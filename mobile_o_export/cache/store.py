"""A folder of results, each under the digest of everything that it follows from.

::

    cache.json                          the version of this layout
    <kind>/<first two digits>/<key>/    an entry: entry.json, and the files of the result

An entry appears whole, is compared with its digests when it is read, and is never changed. So any number of
processes share the folder without waiting for one another: two that make the same result store it once. The
modification time of ``entry.json`` is that of the last use. Whatever is wrong with the folder, work goes on
without it.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, TypeVar

from mobile_o_export.atomic import remove_abandoned, remove_folder, staged_file, staged_folder
from mobile_o_export.bundle.manifest import FileEntry
from mobile_o_export.cache.entry import BLOCK_BYTES, INDEX, SCHEMA, Entry, EntryError, EntryIndex
from mobile_o_export.cache.layout import MARKER, CacheError, marker, require_known
from mobile_o_export.cache.mirror import Mirror, MirrorError
from mobile_o_export.digests import json_digest
from mobile_o_export.errors import ExportError, UsageError
from mobile_o_export.members import MemberName, Members
from mobile_o_export.progress import Say, silent
from mobile_o_export.strict import Versioned

SPARE_BYTES = 2**30
"""Left free on the cache's disk, which may be the one that the bundle is written to."""

_KIND, _SHORT, _KEY = "[a-z]+", "[0-9a-f]{2}", "[0-9a-f]{64}"
"""What the names of the three levels of folders look like; nothing else is ever removed."""

ResultT = TypeVar("ResultT")


@dataclass(frozen=True)
class Kept:
    """What is known of an entry without reading its files.

    Attributes:
        used: when it was last used, seconds since 1970.
        problem: why it cannot be read; empty where it can.
    """

    folder: Path
    kind: str
    size_bytes: int
    used: float
    problem: str = ""


class Store:
    """The cache in one folder.

    Attributes:
        root: the folder.
        mirror: where others find what is in the folder, and it what they stored; None for nowhere.
        stored: how many entries were stored by this process.
        used: the names of all that it has found or stored, ``kind/short/key``.
    """

    def __init__(self, root: Path, say: Say = silent, mirror: Mirror | None = None) -> None:
        self.root = root
        self.mirror = mirror
        self.stored = 0
        self.used: set[str] = set()
        self._say = say
        self._stopped = False
        self._alone = False

    @property
    def keeps(self) -> bool:
        """Whether all that was to be kept has been, so far, here and in the mirror."""
        return not self._stopped and not self._alone

    @property
    def place(self) -> str:
        """Where it is, for messages."""
        return str(self.root) if self.mirror is None else str(self.mirror)

    @classmethod
    def open(cls, root: Path, say: Say = silent, mirror: Mirror | None = None) -> Store:
        """The cache in the folder ``root``, which is made when the first entry is stored.

        Args:
            root: the folder.
            say: told what is wrong with the cache, and what becomes of it.
            mirror: another place that has all entries too, for other machines.

        Raises:
            UsageError: something else lies there.
            CacheError: it was written by a newer version, or cannot be read.
        """
        if mirror is not None:
            mirror.require_layout()
        marked = Members(root, CacheError, "Remove that file, or the whole folder.")
        try:
            there = os.path.lexists(root)
            names = {entry.name for entry in os.scandir(root)} if there else set()
        except NotADirectoryError as error:
            raise UsageError(
                f"{root}: is no folder, and the cache would lie there. Choose another."
            ) from error
        except OSError as error:
            raise CacheError(f"{root}: the cache cannot be read ({error.strerror}).") from error
        if MARKER in names:
            require_known(str(root), marked.json(MARKER, Versioned).schema_version)
        elif others := [name for name in sorted(names) if not name.endswith(".partial")]:
            raise UsageError(
                f"{root}: holds {others[0]} and is no cache. Choose a folder that is empty or new for it."
            )
        return cls(root, say, mirror)

    def get(self, kind: str, parts: Mapping[str, Any], take: Callable[[Entry], ResultT]) -> ResultT | None:
        """What ``take`` makes of the result that follows from ``parts``; None where it is not here.

        An entry that is damaged is removed, which is said.

        Args:
            kind: what it is, one lowercase word.
            parts: everything that it follows from, as JSON.
            take: reads the entry's files; may be called and fail before None is returned.
        """
        folder = self._folder(kind, parts)
        fetched = not os.path.lexists(folder)
        if fetched and not self._mirrored(lambda mirror: self._fetched(mirror, folder)):
            return None
        try:
            entry = Entry.open(folder)
            if entry is None:
                self._say(f"{folder}: was written by a newer version and is not used")
                return None
            if (entry.index.kind, json_digest(entry.index.parts)) != (kind, json_digest(parts)):
                raise EntryError(f"{folder / INDEX}: is of another result.")
            found = take(entry)
        except EntryError as error:
            # Another process may have removed it while it was read.
            if folder.exists():
                self._say(f"{error} The entry is removed, and made again")
                self.remove(folder)
            return None
        with suppress(OSError):
            os.utime(folder / INDEX)
        self.used.add(self._name(folder))
        if not fetched:
            self._mirrored(lambda mirror: mirror.has(self._name(folder)) or self._sent(mirror, folder))
        return found

    def put(self, kind: str, parts: Mapping[str, Any], files: Mapping[str, Path | bytes]) -> None:
        """Stores a result; where that fails, nothing is stored from now on, which is said.

        Args:
            kind: as in :meth:`get`.
            parts: as in :meth:`get`.
            files: copies of files, or contents, by their names in the entry.
        """
        folder = self._folder(kind, parts)
        if self._stopped or os.path.lexists(folder):
            return
        size_bytes = sum(
            len(given) if isinstance(given, bytes) else given.stat().st_size for given in files.values()
        )
        try:
            self._mark()
            with staged_folder(folder, size_bytes + SPARE_BYTES) as partial:
                written = {MemberName(name): _written(given, partial / name) for name, given in files.items()}
                index = EntryIndex(kind=kind, parts=dict(parts), files=written)
                text = json.dumps(index.model_dump(mode="json"), indent=1, ensure_ascii=False)
                (partial / INDEX).write_text(text + "\n", encoding="utf-8")
        except (ExportError, OSError) as error:
            # Another process may have stored it meanwhile.
            if not folder.exists():
                self._stopped = True
                self._say(f"nothing more is kept: {error}")
            return
        self.stored += 1
        self.used.add(self._name(folder))
        self._mirrored(lambda mirror: self._sent(mirror, folder))

    def has(self, name: str) -> bool:
        """Whether the entry ``name``, ``kind/short/key``, is here or in the mirror."""
        return os.path.lexists(self.root / name) or self._mirrored(lambda mirror: mirror.has(name))

    def kept(self) -> Iterator[Kept]:
        """Every entry, in order of its name."""
        for folder in _below(self.root, _KIND, _SHORT, _KEY):
            kind = folder.parents[1].name
            with suppress(FileNotFoundError):
                used = (folder / INDEX if (folder / INDEX).exists() else folder).stat().st_mtime
                try:
                    entry = Entry.open(folder)
                except EntryError as error:
                    yield Kept(folder, kind, _size_bytes(folder), used, str(error))
                    continue
                newer = "was written by a newer version"
                yield Kept(folder, kind, _size_bytes(folder), used, newer if entry is None else "")

    def prune(self, most_bytes: int | None, used_since: float | None = None) -> list[Kept]:
        """Removes what killed processes left, and entries: those last used before ``used_since``, and those
        least recently used until the others take no more than ``most_bytes``.

        Returns:
            The entries that were removed.
        """
        for parent in (self.root, *_below(self.root, _KIND, _SHORT)):
            remove_abandoned(parent, self._say)
        found = sorted(self.kept(), key=lambda kept: kept.used, reverse=True)
        total, removed = 0, []
        for kept in found:
            total += kept.size_bytes
            old = used_since is not None and kept.used < used_since
            if (old or (most_bytes is not None and total > most_bytes)) and self.remove(kept.folder):
                total -= kept.size_bytes
                removed.append(kept)
        return removed

    def remove(self, folder: Path) -> bool:
        """Removes the entry in ``folder``; whether it could be."""
        try:
            remove_folder(folder)
        except FileNotFoundError:
            return True
        except OSError as error:
            self._say(f"{folder}: cannot be removed ({error.strerror})")
            return False
        return True

    def _mirrored(self, use: Callable[[Mirror], bool]) -> bool:
        """What ``use`` says of the mirror; False without one. Where it fails, it is not used any more."""
        if self.mirror is None or self._alone:
            return False
        try:
            return use(self.mirror)
        except MirrorError as error:
            self._alone = True
            self._say(f"{error} Only {self.root} is used from now on")
            return False

    def _fetched(self, mirror: Mirror, folder: Path) -> bool:
        try:
            self._mark()
        except OSError as error:
            raise MirrorError(f"{self.root}: cannot be written ({error.strerror}).") from error
        return mirror.fetch(folder, self._name(folder), SPARE_BYTES)

    def _sent(self, mirror: Mirror, folder: Path) -> bool:
        mirror.send(folder, self._name(folder))
        return True

    def _name(self, folder: Path) -> str:
        return folder.relative_to(self.root).as_posix()

    def _folder(self, kind: str, parts: Mapping[str, Any]) -> Path:
        key = json_digest({"kind": kind, "schema": SCHEMA, "parts": parts})
        return self.root / kind / key[:2] / key

    def _mark(self) -> None:
        """Makes the folder, and says in it what it is."""
        self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not (self.root / MARKER).exists():
            with staged_file(self.root / MARKER) as partial:
                partial.write_bytes(marker())


def _written(given: Path | bytes, place: Path) -> FileEntry:
    """Writes a copy or a content to ``place``: its size and digest."""
    place.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(given, bytes):
        place.write_bytes(given)
        return FileEntry(size_bytes=len(given), sha256=sha256(given).hexdigest())
    digest, size_bytes = sha256(), 0
    with given.open("rb") as source, place.open("wb") as copy:
        while block := source.read(BLOCK_BYTES):
            digest.update(block)
            size_bytes += copy.write(block)
    return FileEntry(size_bytes=size_bytes, sha256=digest.hexdigest())


def _below(root: Path, *patterns: str) -> Iterator[Path]:
    """The folders below ``root`` whose path's parts match the ``patterns``, sorted; no link is followed."""
    if not patterns:
        yield root
        return
    with suppress(OSError), os.scandir(root) as listing:
        for entry in sorted(listing, key=lambda entry: entry.name):
            if re.fullmatch(patterns[0], entry.name) and entry.is_dir(follow_symlinks=False):
                yield from _below(Path(entry.path), *patterns[1:])


def _size_bytes(folder: Path) -> int:
    """What the files below ``folder`` take."""
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            with suppress(OSError):
                total += Path(place, name).lstat().st_size
    return total
