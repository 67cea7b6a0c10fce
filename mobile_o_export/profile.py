"""Where the time of a command went: the stages that its progress names, added up and as a trace."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from time import monotonic
from typing import Any

from mobile_o_export.progress import Done, Progress

_COUNTED = re.compile(r"(?<!\S)\d+(?: of \d+)?(?=[\s,:]|$)")
"""What differs between steps of one stage: "compressing weight 3 of 66"."""


@dataclass(frozen=True)
class Span:
    """One step.

    Attributes:
        target: that it was for, or what the whole command did meanwhile.
        component: empty for the whole command.
        phrase: what the progress said.
        begun: seconds since the profile began.
        seconds: that it took.
    """

    target: str
    component: str
    phrase: str
    begun: float
    seconds: float

    @property
    def stage(self) -> str:
        """The phrase without its numbers."""
        words = " ".join(_COUNTED.sub("", self.phrase).split())
        return re.sub(r" (?=[,:])", "", words)


@dataclass(frozen=True)
class Stage:
    """All steps of one kind for one component of one target."""

    target: str
    component: str
    name: str
    steps: int
    seconds: float


class Profile:
    """A progress that notes when each phrase came, and passes it on.

    A step ends with the next phrase of the same component, and one of the whole command with any phrase: jobs
    that run side by side have steps of their own.

    Args:
        follow: told every phrase.
        clock: gives the time in seconds.
    """

    def __init__(self, follow: Progress, clock: Callable[[], float] = monotonic) -> None:
        self._follow, self._clock = follow, clock
        self._began = clock()
        self._open: dict[tuple[str, str], tuple[str, float]] = {}
        self.spans: list[Span] = []

    def __call__(self, target: str, component: str, phrase: str) -> None:
        """A new phrase."""
        now = self._clock() - self._began
        self._close((target, component), now)
        for subject in [subject for subject in self._open if not subject[1]]:
            self._close(subject, now)
        if not isinstance(phrase, Done):
            self._open[target, component] = phrase, now
        self._follow(target, component, phrase)

    def end(self) -> None:
        """Ends every step that is still open."""
        now = self._clock() - self._began
        for subject in list(self._open):
            self._close(subject, now)

    def _close(self, subject: tuple[str, str], now: float) -> None:
        if subject in self._open:
            phrase, begun = self._open.pop(subject)
            self.spans.append(Span(*subject, phrase, begun, now - begun))

    def stages(self) -> list[Stage]:
        """The steps of each stage added up, the longest first."""
        found: dict[tuple[str, str, str], list[float]] = {}
        for span in self.spans:
            found.setdefault((span.target, span.component, span.stage), []).append(span.seconds)
        stages = [Stage(*name, len(seconds), sum(seconds)) for name, seconds in found.items()]
        return sorted(stages, key=lambda stage: stage.seconds, reverse=True)

    def trace(self) -> dict[str, Any]:
        """The steps in Chrome's Trace Event Format, which Perfetto and chrome://tracing show.

        A process there is a target, a thread a component.
        """
        targets = list(dict.fromkeys(span.target for span in self.spans))
        threads = list(dict.fromkeys((span.target, span.component) for span in self.spans))
        names = [_named("process_name", targets.index(target), 0, target) for target in targets]
        names += [
            _named(
                "thread_name", targets.index(target), threads.index((target, component)), component or target
            )
            for target, component in threads
        ]
        events = [
            {
                "name": span.phrase,
                "cat": span.stage,
                "ph": "X",
                "ts": round(span.begun * 1e6),
                "dur": round(span.seconds * 1e6),
                "pid": targets.index(span.target),
                "tid": threads.index((span.target, span.component)),
            }
            for span in self.spans
        ]
        return {"traceEvents": [*names, *events], "displayTimeUnit": "ms"}


def _named(kind: str, process: int, thread: int, name: str) -> dict[str, Any]:
    return {"name": kind, "ph": "M", "pid": process, "tid": thread, "args": {"name": name}}
