"""Signals held back from native code that an exception in its middle would crash."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from time import monotonic
from types import FrameType

STOPPING = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
"""Every polite way to stop a process; not each host has all three."""

PATIENCE_SECONDS = 2.0
"""Who signals again after this does not want to wait, whatever happens then."""


@contextmanager
def held_back() -> Iterator[None]:
    """Runs the body and only then delivers the SIGINT, SIGTERM or SIGHUP that came meanwhile.

    A second one, after ``PATIENCE_SECONDS``, is delivered at once. Signals without a Python handler (ignored,
    or fatal) are left alone, and so is a body in another thread than the main one, where none arrive.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    former = {number: handler for number in STOPPING if callable(handler := signal.getsignal(number))}
    received: list[tuple[int, float]] = []

    def hold(number: int, frame: FrameType | None) -> None:
        now = monotonic()
        received.append((number, now))
        if now - received[0][1] > PATIENCE_SECONDS:
            former[signal.Signals(number)](number, frame)

    for number in former:
        signal.signal(number, hold)
    try:
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
        if received:
            first = received[0][0]
            former[signal.Signals(first)](first, None)
