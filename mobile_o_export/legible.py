"""Text of others as it may be shown: what would move the cursor, colour, hide or reorder is written out.

Names, reasons, messages and answers come out of files that anybody may have made. A terminal obeys control
characters (ECMA-48), and a bidirectional override (Unicode's UAX 9) shows ``gpj.exe`` as ``exe.jpg``.
"""

from __future__ import annotations

import unicodedata

_JOINERS = "\u200c\u200d"
"""Between letters of some scripts, and within emoji: they reorder nothing."""

_MARKS = "\u200e\u200f\u061c"
"""Implicit directional marks: text in several directions needs them, a name does not."""

_TAGS = range(0xE0020, 0xE0080)
"""Tags: the flags of England, Scotland and Wales are spelt with them."""

CONTINUED = "  | "
"""How a line begins that belongs to the one above it."""

_SPELT_OUT = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
"""Categories of characters that are shown by their numbers: controls, formats, surrogates, line ends."""


def is_legible(character: str) -> bool:
    """Whether ``character`` is shown in a line as it is."""
    return character in _JOINERS or unicodedata.category(character) not in _SPELT_OUT


def legible(text: str) -> str:
    r"""``text`` on one line: escapes such as ``\x1b``, ``\n`` and ``\u202e`` stand for what is not shown."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(c if is_legible(c) else _escaped(c) for c in text)


def legible_lines(text: str) -> str:
    """``text`` of several lines, each :func:`legible`: for tables and messages.

    What comes out of a file goes through :func:`legible` before it becomes part of a table: here its line
    ends would be lines.
    """
    return "\n".join(legible(line) for line in text.split("\n"))


def legible_message(text: str) -> str:
    """``text`` as one message: each line after the first is marked as a part of it.

    So a line end in what a file says cannot begin a line that looks like one of ours.
    """
    first, *others = text.split("\n")
    lines = (line if line.startswith(CONTINUED) else f"{CONTINUED}{line}" for line in others)
    return "\n".join(legible(line) for line in (first, *lines))


def prose(text: str) -> str:
    """A model's answer: as :func:`legible`, but with its lines, tabs, directional marks and flags."""
    return "".join(
        c if c in "\n\t" or c in _MARKS or ord(c) in _TAGS or is_legible(c) else _escaped(c) for c in text
    )


def _escaped(character: str) -> str:
    return {"\n": "\\n", "\r": "\\r", "\t": "\\t"}.get(character) or (
        f"\\x{ord(character):02x}"
        if ord(character) <= 0xFF
        else f"\\u{ord(character):04x}"
        if ord(character) <= 0xFFFF
        else f"\\U{ord(character):08x}"
    )
