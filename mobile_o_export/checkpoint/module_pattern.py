r"""PEFT's patterns of module names, matched in bounded time.

PEFT looks a module up by ``re.match(rf"(.*\.)?({pattern})$", module)``. An adapter comes from anybody, and a
pattern such as ``(a+)+b`` keeps Python's backtracking matcher busy for ever. Here the same syntax tree is
walked over sets of positions instead: at most (nodes × positions²) steps, whatever the pattern.
"""

from __future__ import annotations

import importlib
import re
import warnings
from collections.abc import Iterable, Mapping
from functools import reduce
from operator import or_
from typing import Any

LONGEST_PATTERN = 256
"""Characters; a module's whole name has about 60."""

MOST_PATTERNS = 2048
"""A name for every module of the largest model is fewer than a thousand."""

MOST_STEPS = 5_000_000
"""Of walking for one adapter, a few seconds; ten patterns on three hundred modules take a fifth of it."""

_PARSER: Any = importlib.import_module("re._parser")
"""Python's own, so that every pattern means what it means to PEFT; 3.11 made its name private."""

_CATEGORIES = {
    "CATEGORY_DIGIT": re.compile(r"\d"),
    "CATEGORY_NOT_DIGIT": re.compile(r"\D"),
    "CATEGORY_SPACE": re.compile(r"\s"),
    "CATEGORY_NOT_SPACE": re.compile(r"\S"),
    "CATEGORY_WORD": re.compile(r"\w"),
    "CATEGORY_NOT_WORD": re.compile(r"\W"),
}


Node = tuple[str, Any]
"""An operation of the tree by its name, and its arguments."""


class ModulePatterns:
    """What ``rank_pattern`` or ``alpha_pattern`` says of modules: the value of the first pattern that fits.

    A pattern that fits no module changes nothing, as in PEFT: it changed nothing in the training either.

    Args:
        values: by pattern.

    Raises:
        ValueError: there are too many; or one is too long, no regular expression, or uses what names of
            modules do not need: look-around, back-references, flags.
    """

    def __init__(self, values: Mapping[str, float]) -> None:
        if len(values) > MOST_PATTERNS:
            raise ValueError(f"it holds {len(values)} patterns, and {MOST_PATTERNS} are read")
        self._values = tuple((_compiled(pattern), value) for pattern, value in values.items())
        self._steps = 0

    def value(self, module: str, default: float) -> float:
        """That of ``module``, or ``default`` where no pattern fits it.

        Raises:
            ValueError: matching takes longer than names of modules can.
        """
        for pattern, value in self._values:
            if isinstance(pattern, re.Pattern):
                found = pattern.match(module) is not None
            else:
                walk = _Walk(module)
                found = walk.finds(pattern)
                self._steps += walk.steps
            if self._steps > MOST_STEPS:
                raise ValueError("its patterns take too long to match")
            if found:
                return value
        return default


def _compiled(pattern: str) -> re.Pattern[str] | Node:
    """What decides whether a module's name fits ``pattern``."""
    if len(pattern) > LONGEST_PATTERN:
        raise ValueError(f"a pattern has {len(pattern)} characters, and {LONGEST_PATTERN} are read")
    try:
        with warnings.catch_warnings():
            # Of constructs that a later Python may read in another way.
            warnings.simplefilter("ignore")
            tree = _PARSER.parse(pattern)
            # Inside of PEFT's expression flags for the whole are an error.
            whole = re.compile(rf"(.*\.)?({pattern})$")
        node = _sequence(tree)
    except (re.error, OverflowError, RecursionError) as error:
        raise ValueError(f"{pattern[:60]!r} is not a regular expression: {error}") from error
    except ValueError as error:
        raise ValueError(f"{pattern[:60]!r} {error}") from error
    # Nothing can be taken in two ways: the plain names that most adapters have, by the hundred.
    return whole if all(kind not in ("REPEAT", "BRANCH", "SEQUENCE") for kind, _ in node[1]) else node


def _sequence(items: Iterable[tuple[Any, Any]]) -> Node:
    return "SEQUENCE", tuple(_node(str(operation), argument) for operation, argument in items)


def _node(operation: str, argument: Any) -> Node:
    match operation:
        case "LITERAL" | "NOT_LITERAL":
            return operation, chr(argument)
        case "ANY":
            return operation, None
        case "IN":
            return operation, tuple((str(kind), value) for kind, value in argument)
        case "AT" if str(argument) in ("AT_BEGINNING", "AT_BEGINNING_STRING", "AT_END", "AT_END_STRING"):
            return operation, "END" in str(argument)
        case "BRANCH":
            return operation, tuple(_sequence(option) for option in argument[1])
        case "SUBPATTERN" if not argument[1] and not argument[2]:
            return _sequence(argument[3])
        case "MAX_REPEAT" | "MIN_REPEAT":
            least, most, item = argument
            return "REPEAT", (int(least), int(most), _sequence(item))
    raise ValueError(f"uses {operation.lower().replace('_', ' ')}, which is not read")


class _Walk:
    """Where parts of a pattern can end in one text; sets of positions are integers, a bit a position."""

    def __init__(self, text: str) -> None:
        self._text = text
        self.steps = 0
        self._kept: dict[tuple[int, int], int] = {}

    def finds(self, node: Node) -> bool:
        """Whether ``node`` takes the whole text, or all of it after one of its dots."""
        starts = 1 | sum(2 << place for place, character in enumerate(self._text) if character == ".")
        return bool(self._all(node, starts) >> len(self._text))

    def _all(self, node: Node, starts: int) -> int:
        """The positions at which ``node`` can end when it begins at one of ``starts``."""
        found = 0
        while starts:
            self.steps += 1
            start = starts.bit_length() - 1
            starts ^= 1 << start
            # The tree lives longer than the walk, so that a node's identity is its own.
            key = id(node), start
            if key not in self._kept:
                self._kept[key] = self._ends(node, start)
            found |= self._kept[key]
        return found

    def _ends(self, node: Node, start: int) -> int:
        operation, argument = node
        match operation:
            case "SEQUENCE":
                places = 1 << start
                for item in argument:
                    places = self._all(item, places)
                return places
            case "BRANCH":
                return reduce(or_, (self._all(option, 1 << start) for option in argument))
            case "REPEAT":
                least, most, item = argument
                return self._repeated(least, most, item, 1 << start)
            case "AT":
                return 1 << start if start == (len(self._text) if argument else 0) else 0
        fits = start < len(self._text) and _fits(operation, argument, self._text[start])
        return 2 << start if fits else 0

    def _repeated(self, least: int, most: int, item: Node, places: int) -> int:
        # An item that can be empty gives ever larger sets, any other ever later ones: both come to an end
        # within as many rounds as the text has positions.
        for _ in range(least):
            following = self._all(item, places)
            if following == places:
                break
            places = following
        found, fresh = places, places
        for _ in range(most - least):
            fresh = self._all(item, fresh) & ~found
            if not fresh:
                break
            found |= fresh
        return found


def _fits(operation: str, argument: Any, character: str) -> bool:
    """Whether one character is what an operation of a single character takes."""
    match operation:
        case "LITERAL":
            return bool(character == argument)
        case "NOT_LITERAL":
            return bool(character != argument)
        case "ANY":
            return character != "\n"
    negated = any(kind == "NEGATE" for kind, _ in argument)
    return negated != any(_is_in(kind, value, character) for kind, value in argument)


def _is_in(kind: str, value: Any, character: str) -> bool:
    match kind:
        case "LITERAL":
            return ord(character) == int(value)
        case "RANGE":
            return bool(value[0] <= ord(character) <= value[1])
        case "CATEGORY":
            return _CATEGORIES[str(value)].match(character) is not None
    return False
