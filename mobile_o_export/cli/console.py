"""What commands print with: results on stdout, everything else on stderr."""

from __future__ import annotations

import os
import shutil
import sys
import threading
import unicodedata
from collections.abc import Mapping, Sequence
from time import monotonic
from types import TracebackType
from typing import Self, TextIO

from mobile_o_export.cli.interrupts import require_no_interruption
from mobile_o_export.legible import legible
from mobile_o_export.progress import Begun, Done

LINE_SECONDS = 2.0
"""Without a terminal: a phrase gets a line when the line before is as old as this."""

TICK_SECONDS = 0.5
"""On a terminal: how often the elapsed time moves on."""

_ERASE = "\r\033[K"


class ProgressPrinter:
    """Says on stderr what happens to which component of which target, with the elapsed time.

    On a terminal one line is rewritten. Elsewhere what is finished gets a line, and so does what has been
    going on for a while, so that a log tells the story and is not flooded. Use it in a ``with`` statement:
    a thread keeps the time while vendors' code runs.
    """

    def __init__(self) -> None:
        self._stream, self._owned = _own_stderr()
        self._terminal = self._stream.isatty() and os.environ.get("TERM") != "dumb"
        self._started = self._subject_started = self._last_line = monotonic()
        self._subject = ("", "")
        self._begun: dict[tuple[str, str], float] = {}
        self._pending = ""
        self._open = False
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._ticker = threading.Thread(target=self._keep_time, name="progress", daemon=True)

    def __enter__(self) -> Self:
        self._ticker.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Ends the line that is being rewritten, whatever ended the work."""
        self._closed.set()
        if self._ticker.is_alive():
            self._ticker.join()
        if self._open:
            self._write(_ERASE)
        if self._owned:
            self._stream.close()

    def __call__(self, target: str, component: str, phrase: str) -> None:
        """A new phrase; components follow one another, but for those that have said what they begin with.

        Raises:
            KeyboardInterrupt: the process was told to stop, and whoever heard it went on.
        """
        require_no_interruption()
        with self._lock:
            now = monotonic()
            subject = (target, component)
            if isinstance(phrase, Begun):
                self._begun[subject] = now
            if subject != self._subject:
                self._subject, self._subject_started = subject, self._begun.get(subject, now)
            self._pending = phrase
            if isinstance(phrase, Done):
                self._begun.pop(subject, None)
                self._show_finished(now)
            else:
                self._show(now)

    def done(self, target: str, component: str, phrase: str) -> None:
        """Says that something is finished, and how it went."""
        self(target, component, Done(phrase))

    def clear(self) -> None:
        """Erases the line that is being rewritten, for what is printed on stdout next."""
        with self._lock:
            if self._open:
                self._write(_ERASE)
            self._pending, self._open = "", False

    def tick(self) -> None:
        """Shows what has become due while the same phrase went on."""
        with self._lock:
            if self._pending:
                self._show(monotonic())

    def _keep_time(self) -> None:
        while not self._closed.wait(TICK_SECONDS):
            self.tick()

    def _show(self, now: float) -> None:
        if self._terminal:
            self._write(_ERASE + _fitted(self._line(now), _columns(self._stream)))
            self._open = True
        elif now - self._last_line >= LINE_SECONDS:
            self._write(self._line(now) + "\n")
            self._last_line, self._pending = now, ""

    def _show_finished(self, now: float) -> None:
        self._write((_ERASE if self._terminal else "") + self._line(now) + "\n")
        self._last_line, self._pending, self._open = now, "", False

    def _line(self, now: float) -> str:
        name = " ".join(part for part in self._subject if part)
        elapsed = now - self._subject_started
        # A name out of a file must not move the cursor, nor begin a line.
        line = f"[{now - self._started:6.1f} s] {legible(name)}: {legible(self._pending)}"
        if elapsed > 0.05:
            line += f" ({elapsed:.1f} s)"
        return line

    def _write(self, text: str) -> None:
        try:
            self._stream.write(text)
            self._stream.flush()
        except (OSError, ValueError):
            # Nobody reads the progress any more; that is no reason to stop working.
            return


def _own_stderr() -> tuple[TextIO, bool]:
    """A stream to stderr that stays when vendors' output is captured, and whether it must be closed."""
    try:
        copy = os.dup(sys.stderr.fileno())
    except (OSError, ValueError):
        return sys.stderr, False
    return os.fdopen(copy, "w", encoding=sys.stderr.encoding, errors="backslashreplace"), True


def _columns(stream: TextIO) -> int:
    """The width of the terminal behind ``stream``; stdout's may be a file."""
    try:
        columns = os.get_terminal_size(stream.fileno()).columns
    except (OSError, ValueError):
        columns = 0
    return columns or shutil.get_terminal_size().columns


def _fitted(line: str, columns: int) -> str:
    """As much of ``line`` as fits on one row, so that erasing the row erases all of it."""
    used = 0
    for index, character in enumerate(line):
        used += 2 if unicodedata.east_asian_width(character) in "WF" else 1
        if used >= columns:
            return line[:index]
    return line


def table(header: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[int] = ()) -> str:
    """A plain table: columns two spaces apart, those in ``right`` aligned to the right.

    What a cell holds stays in it: no line end or control character of a name gets out.
    """
    shown = [[legible(str(cell)) for cell in row] for row in [header, *rows]]
    widths = [max(len(row[i]) for row in shown) for i in range(len(header))]
    lines = []
    for row in [shown[0], ["-" * width for width in widths], *shown[1:]]:
        cells = [
            cell.rjust(width) if i in right else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def megabytes(size_bytes: float) -> str:
    """A size for people."""
    return f"{size_bytes / 1e9:.2f} GB" if size_bytes >= 1e9 else f"{size_bytes / 1e6:.1f} MB"


def seconds_by_stage(seconds: Mapping[str, float]) -> str:
    """What a task took, and where."""
    parts = ", ".join(f"{stage} {value:.1f}" for stage, value in seconds.items())
    return f"{sum(seconds.values()):.1f} s ({parts})"
