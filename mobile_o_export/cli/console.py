"""What commands print with: results on stdout, everything else on stderr."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence

MESSAGE_SECONDS = 0.2
"""On a terminal, a phrase replaces the one before no more often than this."""


class ProgressPrinter:
    """Prints what happens to which component of which target, with the elapsed time.

    On a terminal one line is rewritten; elsewhere each phrase is a line, so that a log tells the story.
    """

    def __init__(self) -> None:
        self._started = time.monotonic()
        self._subject = ("", "")
        self._subject_started = self._started
        self._terminal = sys.stderr.isatty()
        self._last = 0.0
        self._open = False

    def __call__(self, target: str, component: str, phrase: str) -> None:
        """A new phrase; components follow one another."""
        now = time.monotonic()
        if (target, component) != self._subject:
            self._subject, self._subject_started = (target, component), now
        elapsed = now - self._subject_started
        name = " ".join(part for part in (target, component) if part)
        line = f"[{now - self._started:6.1f} s] {name}: {phrase}" + (
            f" ({elapsed:.1f} s)" if elapsed > 0.05 else ""
        )
        if not self._terminal:
            print(line, file=sys.stderr, flush=True)
            return
        final = phrase.startswith(("lowered", "verified"))
        if not final and now - self._last < MESSAGE_SECONDS:
            return
        self._last = now
        print(f"\r\033[K{line[:110]}", end="\n" if final else "", file=sys.stderr, flush=True)
        self._open = not final

    def close(self) -> None:
        """Ends the line that is being rewritten."""
        if self._open:
            print("\r\033[K", end="", file=sys.stderr, flush=True)
            self._open = False


def table(header: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[int] = ()) -> str:
    """A plain table: columns two spaces apart, those in ``right`` aligned to the right."""
    widths = [max(len(str(row[i])) for row in [header, *rows]) for i in range(len(header))]
    lines = []
    for row in [header, ["-" * width for width in widths], *rows]:
        cells = [
            str(cell).rjust(width) if i in right else str(cell).ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def megabytes(size_bytes: float) -> str:
    """A size for people."""
    return f"{size_bytes / 1e9:.2f} GB" if size_bytes >= 1e9 else f"{size_bytes / 1e6:.1f} MB"
