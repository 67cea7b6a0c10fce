"""Signals that wait for native code, and those that do not."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator

import pytest

from mobile_o_export import signals
from mobile_o_export.signals import held_back


@pytest.fixture
def heard() -> Iterator[list[int]]:
    """What a handler of SIGTERM was called with."""
    numbers: list[int] = []
    former = signal.signal(signal.SIGTERM, lambda number, _frame: numbers.append(number))
    yield numbers
    signal.signal(signal.SIGTERM, former)


def test_a_signal_comes_when_the_body_has_ended_and_once(heard: list[int]) -> None:
    with held_back():
        for _ in range(3):
            os.kill(os.getpid(), signal.SIGTERM)
        assert heard == []
    assert heard == [signal.SIGTERM]
    os.kill(os.getpid(), signal.SIGTERM)
    assert heard == [signal.SIGTERM] * 2


def test_ctrl_c_is_raised_after_the_body() -> None:
    ended: list[bool] = []

    @held_back()
    def interrupted() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        ended.append(True)

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert ended == [True]


def test_a_body_that_fails_does_not_lose_the_signal(heard: list[int]) -> None:
    @held_back()
    def failing() -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        failing()
    assert heard == [signal.SIGTERM]


def test_who_insists_is_heard_at_once(heard: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signals, "PATIENCE_SECONDS", 0.0)
    with held_back():
        os.kill(os.getpid(), signal.SIGTERM)
        assert heard == []
        os.kill(os.getpid(), signal.SIGTERM)
        assert heard == [signal.SIGTERM]


def test_what_is_ignored_stays_ignored() -> None:
    former = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with held_back():
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
            os.kill(os.getpid(), signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, former)


def test_another_thread_has_nothing_to_hold() -> None:
    failures: list[BaseException] = []

    def work() -> None:
        try:
            with held_back():
                pass
        except BaseException as error:  # noqa: BLE001 - the test reports it
            failures.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert failures == []
