"""Every polite way to stop a process ends it like Ctrl-C: by an exception, so that cleaning up happens."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from time import monotonic
from types import FrameType

from mobile_o_export.signals import STOPPING

DEAF_SECONDS = 2.0
"""An impatient second Ctrl-C must not interrupt the cleaning up that the first one started."""


class Interruption:
    """The handler of the signals, and what it has received.

    Attributes:
        signal: the number of the signal that came; 0 if none did.
    """

    def __init__(self) -> None:
        self.signal = 0
        self._came = 0.0

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """Raises KeyboardInterrupt, but not twice in a moment."""
        del frame
        now = monotonic()
        if self.signal and now - self._came < DEAF_SECONDS:
            return
        self.signal, self._came = number, now
        raise KeyboardInterrupt

    @property
    def exit_code(self) -> int:
        """What shells expect: 128 and the signal's number."""
        return 128 + (self.signal or signal.SIGINT)


@contextmanager
def interruptible() -> Iterator[Interruption]:
    """While the body runs, SIGINT, SIGTERM and SIGHUP raise KeyboardInterrupt in it.

    Signals that the parent process ignores (``nohup``, a shell's ``&``) stay ignored.
    """
    interruption = Interruption()
    former = {number: signal.getsignal(number) for number in STOPPING}
    wanted = [number for number, handler in former.items() if handler not in (signal.SIG_IGN, None)]
    for number in wanted:
        signal.signal(number, interruption)
    try:
        yield interruption
    finally:
        for number in wanted:
            # Once stopping, the process is not to be killed by an impatient second signal on its last metres.
            signal.signal(number, signal.SIG_IGN if interruption.signal else former[number])


def require_no_interruption() -> None:
    """Raises KeyboardInterrupt if a signal came: vendors' bare ``except`` clauses may have swallowed it."""
    for number in STOPPING:
        handler = signal.getsignal(number)
        if isinstance(handler, Interruption) and handler.signal:
            raise KeyboardInterrupt
