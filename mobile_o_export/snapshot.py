"""Whether files are still what they were when they were read.

Hashing and computing take minutes, and both read the same files: what is written in between would go under
the digest of what was there before. So a snapshot is taken first, and compared last.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from mobile_o_export.errors import ExportError

SHOWN = 5


@dataclass(frozen=True)
class Change:
    """One file that is not what it was, and how it differs."""

    path: Path
    reason: str


@dataclass(frozen=True)
class _State:
    """What a file system says of a file; any write to it changes one of these.

    The time of the last change cannot be set back, as that of the last write can.
    """

    device: int
    inode: int
    size_bytes: int
    written_ns: int
    changed_ns: int
    links: int

    def is_still(self, other: _State) -> bool:
        """Whether the file is the same one with the same content.

        Linking to it from elsewhere also sets the time of the last change, and changes nothing.
        """
        linked = replace(self, changed_ns=other.changed_ns, links=other.links)
        return self == other or (self.links != other.links and linked == other)


@dataclass(frozen=True)
class Snapshot:
    """The state of files, links followed; of those that may yet appear too."""

    places: tuple[Path, ...]
    states: Mapping[Path, _State]

    @classmethod
    def of(cls, *places: Path) -> Snapshot:
        """What lies at ``places`` now: a file, everything below a folder, or nothing yet."""
        return cls(places, dict(_states(places)))

    def changes(self) -> tuple[Change, ...]:
        """What was changed, has appeared or is gone since; empty if all is as it was."""
        now = dict(_states(self.places))
        reasons = dict.fromkeys(self.states.keys() - now.keys(), "is gone")
        reasons |= dict.fromkeys(now.keys() - self.states.keys(), "has appeared")
        reasons |= {
            path: "was changed"
            for path in now.keys() & self.states.keys()
            if not self.states[path].is_still(now[path])
        }
        return tuple(Change(path, reasons[path]) for path in sorted(reasons))

    def require_unchanged(self, failure: type[ExportError], remedy: str) -> None:
        """Raises a ``failure`` that names what has changed meanwhile, if anything has."""
        if changes := self.changes():
            shown = "; ".join(f"{change.path} {change.reason}" for change in changes[:SHOWN])
            more = f"; and {len(changes) - SHOWN} more" if len(changes) > SHOWN else ""
            raise failure(f"changed while it was read: {shown}{more}. {remedy}")


def _states(places: Iterable[Path]) -> Iterator[tuple[Path, _State]]:
    for place in places:
        if place.is_dir():
            for folder, _, names in os.walk(place):
                yield from _states_of(Path(folder, name) for name in names)
        else:
            yield from _states_of([place])


def _states_of(paths: Iterable[Path]) -> Iterator[tuple[Path, _State]]:
    for path in paths:
        try:
            found = path.stat()
        except OSError:
            continue
        if not stat.S_ISDIR(found.st_mode):
            yield (
                path,
                _State(
                    found.st_dev,
                    found.st_ino,
                    found.st_size,
                    found.st_mtime_ns,
                    found.st_ctime_ns,
                    found.st_nlink,
                ),
            )
