"""What long work says while it goes on."""

from __future__ import annotations

from collections.abc import Callable

Say = Callable[[str], None]
"""Takes a short phrase of what is happening now."""


def silent(_phrase: str) -> None:
    """Says nothing."""


Progress = Callable[[str, str, str], None]
"""Takes target, component and what is happening now; a :class:`Done` where something is finished."""


def said_by(say: Say) -> Progress:
    """Says what happens, and not to which component: ``say`` is told by who knows."""
    return lambda _target, _component, phrase: say(phrase)


class Begun(str):
    """A phrase for the start of something that goes on until it is :class:`Done`, beside other things."""

    __slots__ = ()


class Done(str):
    """A phrase for something finished: a log keeps it, where other phrases may be left out."""

    __slots__ = ()
