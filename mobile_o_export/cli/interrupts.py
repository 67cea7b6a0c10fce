"""Every polite way to stop a process ends it like Ctrl-C: by an exception, so that cleaning up happens."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

_SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))

DEAF_SECONDS = 2.0
"""An impatient second Ctrl-C must not interrupt the cleaning up that the first one started."""


@dataclass
class Interruption:
    """The signal that ended the work; 0 if none came.

    Attributes:
        signal: its number.
        at: when it came, on the monotonic clock.
    """

    signal: int = 0
    at: float = 0.0

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

    def stop(number: int, frame: FrameType | None) -> None:
        del frame
        now = time.monotonic()
        if interruption.signal and now - interruption.at < DEAF_SECONDS:
            return
        interruption.signal, interruption.at = number, now
        raise KeyboardInterrupt

    former = {number: signal.getsignal(number) for number in _SIGNALS}
    wanted = [number for number, handler in former.items() if handler not in (signal.SIG_IGN, None)]
    for number in wanted:
        signal.signal(number, stop)
    try:
        yield interruption
    finally:
        for number in wanted:
            # Once stopping, the process is not to be killed by an impatient second signal on its last metres.
            signal.signal(number, signal.SIG_IGN if interruption.signal else former[number])
