"""The one way out: whatever commands print goes through here, and shows text of others as it is.

File names, reasons, vendors' messages and answers come out of files that anybody may have made; what would
colour, overwrite or reorder the terminal's text is written out. ``tests/test_structure.py`` sees that nothing
else prints. Progress has a stream of its own, in ``console``.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from mobile_o_export.legible import legible_lines, legible_message, prose


def result(text: object = "") -> None:
    """Prints a result on stdout, of one or several lines."""
    print(legible_lines(str(text)))


def result_json(content: Any, *, one_line: bool = False) -> None:
    """Prints a result as JSON, in ASCII: escapes stand for every other character."""
    text = json.dumps(content, indent=None if one_line else 1)
    # The one control character that JSON may hold as it is.
    print(text.replace("\x7f", "\\u007f"), flush=one_line)


def answer(piece: str) -> None:
    """Prints the next piece of a model's answer on stdout, at once."""
    print(prose(piece), end="", flush=True)


def message(text: object) -> None:
    """Prints what went wrong on stderr."""
    _tell(legible_message(str(text)))


def details(text: str) -> None:
    """Prints several lines on stderr: a traceback."""
    _tell(legible_lines(text.rstrip("\n")))


def _tell(text: str) -> None:
    try:
        print(text, file=sys.stderr, flush=True)
    except OSError:
        # Nobody is there to be told.
        return


def prompt(text: str) -> None:
    """Asks on stderr for a line of stdin: on stdout are the answers, for a file perhaps."""
    print(text, end="", file=sys.stderr, flush=True)
