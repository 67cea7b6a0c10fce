"""Files that are named by other files: what such a name may be, and the one way to open what it names.

A bundle's digests say that its files belong together, not that whoever made them meant well. So a name out of
a file is relative and normalised, which :class:`MemberName` sees to, and what it names is a regular file of
that folder, which :class:`Members` sees to at the moment of reading: no link on the way leads out of it, and
no pipe or device keeps the reader waiting. ``tests/test_members.py`` sees that nothing else opens such files.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, BinaryIO, Self

from pydantic import AfterValidator, GetCoreSchemaHandler
from pydantic_core import CoreSchema, core_schema

from mobile_o_export.errors import ExportError
from mobile_o_export.legible import is_legible
from mobile_o_export.strict import ModelT, read_json

MOST_CHARACTERS = 1024
MOST_PART_BYTES = 255
"""Longer parts no file system of a host takes."""

_DRIVE = re.compile("[A-Za-z]:")

LINK = "is a link"
SPECIAL = "is not a regular file"
"""What is wrong with something that lies where a file should."""

_REGULAR, _FOLDER = "file", "folder"

_MAY_BLOCK = getattr(os, "O_NONBLOCK", 0)
"""With it, opening a pipe that nobody writes to returns at once."""


class MemberName(str):
    """The name of a file below a folder: relative, normalised, parts separated by ``/``.

    Raises:
        ValueError: it is another kind of name.
    """

    __slots__ = ()

    def __new__(cls, name: str) -> Self:
        """``name``, checked."""
        if problem := cls._problem(name):
            raise ValueError(
                f"{name[:MOST_CHARACTERS]!r} is not a name of a file below the folder: {problem}"
            )
        return super().__new__(cls, name)

    @classmethod
    def _problem(cls, name: str) -> str:
        parts = name.split("/")
        if len(name) > MOST_CHARACTERS or any(
            len(part.encode(errors="surrogatepass")) > MOST_PART_BYTES for part in parts
        ):
            return "it is too long"
        if name.startswith("/") or _DRIVE.match(name):
            return "it is absolute"
        if not all(is_legible(character) for character in name):
            return "it holds control characters"
        if "\\" in name:
            return "it holds a backslash"
        if ".." in parts:
            return "it leads out of it"
        if "" in parts or "." in parts:
            return "it is empty, or not normalised"
        return ""

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        del source, handler
        return core_schema.no_info_after_validator_function(cls, core_schema.str_schema())


class PlainName(MemberName):
    """The name of a file or folder itself, without the folders it lies in."""

    __slots__ = ()

    @classmethod
    def _problem(cls, name: str) -> str:
        return super()._problem(name) or ("it names a folder too" if "/" in name else "")


MemberKey = Annotated[str, AfterValidator(MemberName)]
PlainKey = Annotated[str, AfterValidator(PlainName)]
"""The same as keys of a table that is read from a file."""


@dataclass(frozen=True)
class Members:
    """The files below ``folder``, by names that come out of files or are fixed.

    Attributes:
        folder: the user's own choice; it may itself be a link.
        failure: everything wrong with a file below it is one of these.
        remedy: what to do then, a sentence.
        links: whether files may be links: in folders of the user's own, as Hugging Face's cache lays out a
            checkpoint; never in a bundle. Their names are checked all the same.
    """

    folder: Path
    failure: type[ExportError]
    remedy: str = "Get the folder again."
    links: bool = False

    def has(self, name: str) -> bool:
        """Whether something lies there, of whatever kind."""
        return os.path.lexists(self.folder / self._checked(name))

    @contextmanager
    def open(self, name: str) -> Iterator[BinaryIO]:
        """The regular file ``name``, for reading."""
        with os.fdopen(self._descriptor(name), "rb") as stream:
            try:
                yield stream
            except OSError as error:
                raise self._failed(name, f"cannot be read ({error.strerror})") from error

    def read(self, name: str) -> bytes:
        """The bytes of the regular file ``name``."""
        with self.open(name) as stream:
            return stream.read()

    def text(self, name: str) -> str:
        """The regular file ``name`` as UTF-8 text."""
        try:
            return self.read(name).decode()
        except UnicodeDecodeError as error:
            raise self._failed(name, "is not UTF-8 text") from error

    def json(self, name: str, model: type[ModelT]) -> ModelT:
        """The JSON file ``name`` as a ``model``."""
        return read_json(self.file(name), model, self.failure)

    def file(self, name: str) -> Path:
        """The path of the regular file ``name``, for readers that open paths only."""
        os.close(self._descriptor(name))
        return self.folder / name

    def tree(self, name: str) -> Path:
        """The path of the file or folder ``name``, below which are regular files and folders only.

        For vendors' readers, which follow whatever lies in a folder.
        """
        place = self.folder / self._checked(name)
        kind = self._walked(name)
        if kind not in (_REGULAR, _FOLDER):
            raise self._failed(name, kind)
        if kind == _FOLDER:
            for inner, found in entries(place):
                if found != _REGULAR:
                    raise self._failed(f"{name}/{inner}", found)
        return place

    def _checked(self, name: str) -> MemberName:
        try:
            return MemberName(name)
        except ValueError as error:
            raise self.failure(f"{self.folder}: {error}. {self.remedy}") from error

    def _walked(self, name: str) -> str:
        """What ``name`` is, or ``LINK`` where it, or a folder on the way to it, is a link."""
        place = self.folder
        kind = _FOLDER
        for part in self._checked(name).split("/"):
            place = place / part
            try:
                kind = _kind(place.stat().st_mode if self.links else place.lstat().st_mode)
            except FileNotFoundError as error:
                raise self._failed(name, "is missing") from error
            except OSError as error:
                raise self._failed(name, f"cannot be read ({error.strerror})") from error
            if kind == LINK:
                break
        return kind

    def _descriptor(self, name: str) -> int:
        """An open file descriptor of the regular file ``name``; each folder on the way is opened in turn."""
        kind = self._walked(name)
        if kind != _REGULAR:
            raise self._failed(name, "is a folder" if kind == _FOLDER else kind)
        *folders, last = name.split("/")
        follow = 0 if self.links else os.O_NOFOLLOW
        opened: list[int] = []
        try:
            opened.append(os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY))
            for part in folders:
                opened.append(os.open(part, os.O_RDONLY | os.O_DIRECTORY | follow, dir_fd=opened[-1]))
            # What is no regular file was refused above; this is for what has changed since.
            found = os.open(last, os.O_RDONLY | _MAY_BLOCK | follow, dir_fd=opened[-1])
        except OSError as error:
            raise self._failed(name, f"cannot be read ({error.strerror})") from error
        finally:
            for descriptor in opened:
                os.close(descriptor)
        if not stat.S_ISREG(os.fstat(found).st_mode):
            os.close(found)
            raise self._failed(name, SPECIAL)
        return found

    def _failed(self, name: str, problem: str) -> ExportError:
        return self.failure(f"{self.folder / name}: {problem}. {self.remedy}")


def entries(folder: Path) -> Iterator[tuple[str, str]]:
    """Everything below ``folder`` but folders, sorted: its name, and ``"file"`` or what is wrong with it.

    No link is followed. A name is what the file system says, and may be no :class:`MemberName`.
    """
    found = []
    waiting = [""]
    while waiting:
        inside = waiting.pop()
        with os.scandir(folder / inside) as listing:
            for entry in listing:
                kind = _kind(entry.stat(follow_symlinks=False).st_mode)
                name = inside + entry.name
                if kind == _FOLDER:
                    waiting.append(f"{name}/")
                else:
                    found.append((name, kind))
    yield from sorted(found, key=lambda item: item[0].split("/"))


def require_no_special_file(path: Path, failure: type[ExportError]) -> None:
    """Raises a ``failure`` where ``path`` is a pipe or a device, which would keep a reader waiting.

    For files of the user's own: links are followed, and what is missing or a folder is for the reader to say.
    """
    try:
        special = path.exists() and not path.is_file() and not path.is_dir()
    except (OSError, ValueError) as error:
        # A name that the file system does not take, or a folder that may not be looked into.
        raise failure(
            f"{str(path)[:MOST_CHARACTERS]}: cannot be ({error.args[-1]}). Give another path."
        ) from error
    if special:
        raise failure(f"{path}: {SPECIAL}. Put the file itself there.")


def is_file(kind: str) -> bool:
    """Whether ``kind``, as :func:`entries` says it, is a regular file."""
    return kind == _REGULAR


def _kind(mode: int) -> str:
    if stat.S_ISREG(mode):
        return _REGULAR
    if stat.S_ISDIR(mode):
        return _FOLDER
    return LINK if stat.S_ISLNK(mode) else SPECIAL
