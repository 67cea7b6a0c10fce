"""One result in the cache: its files, and what they follow from."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, Final, Literal

from mobile_o_export.bundle.manifest import FileEntry
from mobile_o_export.errors import ExportError
from mobile_o_export.members import MemberName, Members, entries
from mobile_o_export.strict import Strict, Versioned

SCHEMA: Final = 1
INDEX = "entry.json"

BLOCK_BYTES = 1 << 22


class EntryError(ExportError):
    """An entry whose files are not what was stored."""


class EntryIndex(Strict):
    """``entry.json``.

    Attributes:
        kind: what the result is.
        parts: everything that it follows from; the key is their digest.
        files: every other file of the entry, by its name.
    """

    schema_version: Literal[1] = SCHEMA
    kind: str
    parts: dict[str, Any]
    files: dict[MemberName, FileEntry]


@dataclass(frozen=True)
class Entry:
    """An entry that is there; its files are compared with their digests when they are read.

    Attributes:
        folder: where it lies.
        index: what it says of itself.
    """

    folder: Path
    index: EntryIndex

    @classmethod
    def open(cls, folder: Path) -> Entry | None:
        """The entry in ``folder``; None where a newer version wrote it.

        Raises:
            EntryError: its index is missing or damaged.
        """
        members = _members(folder)
        version = members.json(INDEX, Versioned).schema_version
        return None if version > SCHEMA else cls(folder, members.json(INDEX, EntryIndex))

    def read(self, name: str) -> bytes:
        """The bytes of the file ``name``.

        Raises:
            EntryError: it is not what was stored.
        """
        return b"".join(self._blocks(name))

    def copy(self, below: str, place: Path) -> dict[MemberName, FileEntry]:
        """Makes the folder ``place`` of the files below the entry's folder ``below``, by their names in it.

        Raises:
            EntryError: one is not what was stored; ``place`` is not there then.
        """
        copied = {}
        place.mkdir()
        try:
            for name, file in self.index.files.items():
                if name.startswith(f"{below}/"):
                    inner = MemberName(name.removeprefix(f"{below}/"))
                    (place / inner).parent.mkdir(parents=True, exist_ok=True)
                    with (place / inner).open("wb") as copy:
                        for block in self._blocks(name):
                            copy.write(block)
                    copied[inner] = file
        except EntryError:
            shutil.rmtree(place)
            raise
        return copied

    def check(self) -> None:
        """Reads every file.

        Raises:
            EntryError: one is not what was stored, or something else lies beside them.
        """
        for name in self.index.files:
            for _ in self._blocks(name):
                pass
        known = {INDEX, *self.index.files}
        if stray := [name for name, _ in entries(self.folder) if name not in known]:
            raise EntryError(f"{self.folder / stray[0]}: is no file of this entry of the cache.")

    def _blocks(self, name: str) -> Iterator[bytes]:
        """The bytes of a file in order; raises EntryError after the last if they are not the right ones."""
        found = sha256()
        with _members(self.folder).open(name) as stream:
            while block := stream.read(BLOCK_BYTES):
                found.update(block)
                yield block
        wanted = self.index.files.get(MemberName(name))
        if wanted is None or found.hexdigest() != wanted.sha256:
            raise EntryError(f"{self.folder / name}: is not what was stored in the cache.")


def _members(folder: Path) -> Members:
    return Members(folder, EntryError, "The cache is damaged there.")
