"""The progress on stderr: one line that is rewritten on a terminal, few lines in a log."""

from __future__ import annotations

import io
import os
import time

import pytest

from mobile_o_export.cli import console
from mobile_o_export.cli.console import ProgressPrinter
from mobile_o_export.progress import Begun, Done
from mobile_o_export.quiet import captured


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0


class Stream(io.StringIO):
    """A stderr without a file descriptor."""

    encoding = "utf-8"
    terminal = False

    def isatty(self) -> bool:
        return self.terminal


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(console, "monotonic", lambda: clock.now)
    return clock


@pytest.fixture
def stream(monkeypatch: pytest.MonkeyPatch) -> Stream:
    stream = Stream()
    monkeypatch.setattr(console, "_own_stderr", lambda: (stream, False))
    monkeypatch.setenv("TERM", "xterm")
    return stream


@pytest.fixture
def terminal(stream: Stream, monkeypatch: pytest.MonkeyPatch) -> Stream:
    stream.terminal = True
    monkeypatch.setenv("COLUMNS", "40")
    return stream


def shown(stream: Stream) -> list[str]:
    """The rows that a terminal shows after all this."""
    rows = [""]
    for piece in stream.getvalue().replace("\r\033[K", "\r").replace("\n", "\n\n").split("\n\n"):
        rows[-1] = piece.rsplit("\r", 1)[-1]
        rows.append("")
    return rows[:-1]


def test_a_log_has_what_is_finished(clock: Clock, stream: Stream) -> None:
    printer = ProgressPrinter()
    for phrase in ("converting a", "converting b", Done("lowered, 1.0 MB")):
        printer("litert-cpu", "mcp", phrase)
        clock.now += 0.3
    assert stream.getvalue() == "[   0.6 s] litert-cpu mcp: lowered, 1.0 MB (0.6 s)\n"


def test_what_goes_on_beside_other_things_has_its_own_time(clock: Clock, stream: Stream) -> None:
    printer = ProgressPrinter()
    printer("litert-cpu", "mcp", Begun("starting"))
    clock.now += 0.5
    printer("litert-cpu", "dit", Begun("starting"))
    clock.now += 0.5
    printer("litert-cpu", "mcp", Done("lowered"))
    printer("litert-cpu", "dit", Done("lowered"))
    printer("litert-cpu", "mcp", "and once more")
    clock.now += 0.25
    printer("litert-cpu", "mcp", Done("verified"))
    assert [line.split(": ")[1] for line in stream.getvalue().splitlines()] == [
        "lowered (1.0 s)",
        "lowered (0.5 s)",
        "verified (0.2 s)",
    ]


def test_a_log_is_not_flooded(clock: Clock, stream: Stream) -> None:
    printer = ProgressPrinter()
    for number in range(100):
        printer("golden", "", f"case {number}")
        clock.now += 0.1
    assert [line.split(" ")[-3] for line in stream.getvalue().splitlines()] == ["20", "40", "60", "80"]


def test_a_log_tells_what_takes_long_while_it_does(clock: Clock, stream: Stream) -> None:
    printer = ProgressPrinter()
    printer("litert-cpu", "llm", "converting")
    clock.now += 1.9
    printer.tick()
    assert stream.getvalue() == ""
    for _ in range(10):
        clock.now += 0.2
        printer.tick()
    assert stream.getvalue() == "[   2.1 s] litert-cpu llm: converting (2.1 s)\n"


def test_the_thread_ticks_and_ends(stream: Stream, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console, "TICK_SECONDS", 0.005)
    monkeypatch.setattr(console, "LINE_SECONDS", 0.0)
    with ProgressPrinter() as printer:
        printer._pending = "still at it"
        while not stream.getvalue():
            time.sleep(0.001)
        thread = printer._ticker
    assert "still at it" in stream.getvalue()
    assert not thread.is_alive()


def test_a_terminal_shows_one_line(clock: Clock, terminal: Stream) -> None:
    printer = ProgressPrinter()
    printer("a", "b", "first, quite a bit longer")
    printer("a", "b", "second")
    clock.now += 0.5
    printer.tick()
    assert shown(terminal) == ["[   0.5 s] a b: second (0.5 s)"]


def test_a_terminal_keeps_what_is_finished(clock: Clock, terminal: Stream) -> None:
    printer = ProgressPrinter()
    printer("a", "b", "at work")
    printer("a", "b", Done("verified, passed"))
    printer.tick()
    assert shown(terminal) == ["[   0.0 s] a b: verified, passed", ""]


@pytest.mark.parametrize("ending", [None, KeyboardInterrupt, ValueError])
def test_nothing_remains_on_a_terminal(
    clock: Clock, terminal: Stream, ending: type[BaseException] | None
) -> None:
    try:
        with ProgressPrinter() as printer:
            printer("a", "b", "at work")
            if ending:
                raise ending
    except (KeyboardInterrupt, ValueError):
        pass
    assert shown(terminal) == [""]


@pytest.mark.parametrize("phrase", ["x" * 200, "図" * 200])
def test_a_line_fits_the_terminal(clock: Clock, terminal: Stream, phrase: str) -> None:
    ProgressPrinter()("a", "b", phrase)
    (line,) = shown(terminal)
    assert 36 <= sum(2 if character == "図" else 1 for character in line) < 40


@pytest.mark.parametrize("terminal_kind", ["dumb", "xterm"])
def test_names_cannot_move_the_cursor(
    clock: Clock, terminal: Stream, monkeypatch: pytest.MonkeyPatch, terminal_kind: str
) -> None:
    monkeypatch.setenv("TERM", terminal_kind)
    ProgressPrinter()("a", "b", Done("on \033[2J\nevil\r.png"))
    assert terminal.getvalue().removeprefix("\r\033[K") == "[   0.0 s] a b: on \\x1b[2J\\nevil\\r.png\n"


def test_a_reader_that_went_away_stops_nothing(clock: Clock, stream: Stream) -> None:
    printer = ProgressPrinter()
    stream.close()
    printer("a", "b", Done("lowered"))


def test_progress_gets_through_while_vendors_are_captured(
    clock: Clock, capfd: pytest.CaptureFixture[str]
) -> None:
    with ProgressPrinter() as progress, captured("a vendor"):
        os.write(2, b"vendor's noise\n")
        progress("a", "b", Done("lowered"))
    out, err = capfd.readouterr()
    assert (out, err) == ("", "[   0.0 s] a b: lowered\n")
