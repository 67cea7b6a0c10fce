"""Does a drawing show what was asked: GenEval's rules over what a detector saw.

GenEval: Ghosh et al. 2023, arXiv 2310.11513.
"""

from __future__ import annotations

import importlib
import math
import sys
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol

from mobile_o_export.errors import UsageError
from mobile_o_export.evaluation.tasks import DrawingTask, Wanted
from mobile_o_export.strict import nearest

if TYPE_CHECKING:
    from PIL import Image

UNKNOWN: Final = "unknown"

POSITIONS: Final = {"left of": (-1, 0), "right of": (1, 0), "above": (0, -1), "below": (0, 1)}
"""Where the one lies from the other; y points down."""

TOLERANCE = 0.1
"""Of both objects' extents together, along the axis: so much of an offset counts for nothing (GenEval's)."""

DISTINCT = 0.5
"""What remains of the offset along the axis has to be more than this part of the whole offset (GenEval's)."""


@dataclass(frozen=True)
class Detection:
    """An object seen in a picture.

    Attributes:
        name: its class, or ``"unknown"``.
        colour: its name, or ``"unknown"``.
        x: of the centre, as a fraction of the picture's width.
        y: of the centre, as a fraction of the picture's height, from the top.
        width: as a fraction of the picture's width.
        height: as a fraction of the picture's height.
    """

    name: str
    colour: str
    x: float
    y: float
    width: float
    height: float


class Detector(Protocol):
    """Finds objects in pictures; ``classes`` and ``colours`` are all the names that it can give."""

    name: str
    classes: Collection[str]
    colours: Collection[str]

    def detect(self, picture: Image.Image) -> list[Detection]:
        """Every object in ``picture``, once."""
        ...


def judge(task: DrawingTask, detections: Sequence[Detection]) -> tuple[bool, str]:
    """Whether ``detections`` are what ``task`` asks for, and what was missed, ``""`` where nothing was.

    Every entry of ``include`` has to be met: at least ``count`` objects of the class, and of the colour where
    it has one; where it has a position, one of them lies so to one that matches the other entry. No entry of
    ``exclude`` may be: fewer than ``count`` such objects. GenEval looks only at the objects that its detector
    is surest of; here all count.

    ``task`` has to be one that ``require_known`` lets pass.
    """
    missed = []
    matches = [[seen for seen in detections if _is(seen, wanted)] for wanted in task.include]
    for wanted, matching in zip(task.include, matches, strict=True):
        if len(matching) < wanted.count:
            missed.append(f"{_words(wanted)}: {wanted.count} wanted, {len(matching)} found")
        elif wanted.position is not None:
            relation, index = wanted.position
            if not any(lies(one, relation, other) for one in matching for other in matches[index]):
                missed.append(f"no {_words(wanted)} {relation} any {_words(task.include[index])}")
    for unwanted in task.exclude:
        found = sum(_is(seen, unwanted) for seen in detections)
        if found >= unwanted.count:
            missed.append(f"{_words(unwanted)}: fewer than {unwanted.count} wanted, {found} found")
    return not missed, f"{'; '.join(missed)}; seen: {_listed(detections)}" if missed else ""


def lies(one: Detection, relation: str, other: Detection) -> bool:
    """Whether ``one`` lies ``relation`` (of ``POSITIONS``) to ``other``.

    GenEval's rule for the centres, with its two constants, and one more condition: the axis is that of the
    larger offset. By GenEval's alone, what lies diagonally from an object is both beside and above it.
    """
    right, down = POSITIONS[relation]
    x, y = one.x - other.x, one.y - other.y
    offset = right * x + down * y
    extents = one.width + other.width if right else one.height + other.height
    return offset >= max(abs(x), abs(y)) and offset - TOLERANCE * extents > DISTINCT * math.hypot(x, y)


def _is(seen: Detection, wanted: Wanted) -> bool:
    return seen.name == wanted.name and wanted.color in (None, seen.colour)


def _words(wanted: Wanted) -> str:
    return wanted.name if wanted.color is None else f"{wanted.color} {wanted.name}"


def _listed(detections: Sequence[Detection]) -> str:
    """``"2 red circle, 1 blue unknown"``."""
    counts = Counter(f"{seen.colour} {seen.name}" for seen in detections)
    return ", ".join(f"{count} {words}" for words, count in counts.most_common()) or "nothing"


# --- before any drawing ---


def require_known(tasks: Sequence[DrawingTask], detector: Detector) -> None:
    """Refuses tasks that could only fail, or only pass, because of their words.

    Raises:
        UsageError: a task names a class or colour that ``detector`` never finds, or a position that ``judge``
            cannot judge.
    """
    for number, task in enumerate(tasks, 1):
        where = f"Prompt {number} ({task.prompt!r})"
        for entry in (*task.include, *task.exclude):
            _require(where, "class", entry.name, detector.classes, detector)
            if entry.color is not None:
                _require(where, "color", entry.color, detector.colours, detector)
        for index, wanted in enumerate(task.include):
            if wanted.position is None:
                continue
            relation, target = wanted.position
            if relation not in POSITIONS:
                raise UsageError(
                    f"{where}: position {relation!r} is unknown.{nearest(relation, POSITIONS)} The judge "
                    f"knows {', '.join(POSITIONS)}. Correct the prompt's tags, or use --judge none."
                )
            if not 0 <= target < index:
                raise UsageError(
                    f"{where}: position [{relation!r}, {target}] of entry {index} of 'include' refers to no "
                    f"earlier entry; the first is 0. Correct the prompt's tags, or use --judge none."
                )
        if any(unwanted.position is not None for unwanted in task.exclude):
            raise UsageError(
                f"{where}: an entry of 'exclude' has a position, and only those of 'include' are judged by "
                f"theirs. Correct the prompt's tags, or use --judge none."
            )


def _require(where: str, kind: str, word: str, known: Collection[str], detector: Detector) -> None:
    if word not in known:
        raise UsageError(
            f"{where}: {kind} {word!r} is unknown to detector {detector.name!r}.{nearest(word, known)} It "
            f"knows {', '.join(known)}. Correct the prompt's tags, use --judge none, or give another "
            f"detector as --judge module:attribute."
        )


# --- detectors by name ---


def load_detector(name: str) -> Detector | None:
    """The detector that ``--judge`` names; None for ``none``.

    ``module:attribute`` is an object that has what ``Detector`` has, or a class of such objects that takes no
    argument. The module may lie in the working directory, which stays on the path for what it imports later.

    Raises:
        UsageError: ``name`` is none of these, cannot be imported or made, or lacks a part of ``Detector``.
    """
    if name == "none":
        return None
    if name == "shapes":
        from mobile_o_export.evaluation.shapes import ShapeDetector

        return ShapeDetector()
    module, colon, attribute = name.partition(":")
    if not (module and colon and attribute):
        hint = nearest(name, ("shapes", "none"))
        raise UsageError(f"--judge {name!r} is unknown.{hint} Use 'shapes', 'none', or module:attribute.")
    return _checked(name, _imported(name, module, attribute))


def _imported(name: str, module: str, attribute: str) -> object:
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.append(here)
    try:
        namespace = importlib.import_module(module)
    except Exception as error:
        raise UsageError(
            f"--judge {name!r}: module {module!r} cannot be imported: {_first_line(error)}. Correct or "
            f"install it, or run in the folder that holds it."
        ) from error
    if not hasattr(namespace, attribute):
        hint = nearest(attribute, vars(namespace))
        raise UsageError(
            f"--judge {name!r}: module {module!r} has no {attribute!r}.{hint} Name a detector in it."
        )
    found: object = getattr(namespace, attribute)
    if not isinstance(found, type):
        return found
    try:
        made: object = found()
    except Exception as error:
        raise UsageError(
            f"--judge {name!r}: making one fails: {_first_line(error)}. Give a class that takes no "
            f"argument, or an object."
        ) from error
    return made


def _checked(name: str, found: object) -> Detector:
    """``found``, if it has all that ``Detector`` has."""
    if not callable(getattr(found, "detect", None)):
        raise UsageError(f"--judge {name!r}: has no method detect(picture). Give it one; see {_EXAMPLE}.")
    if not isinstance(getattr(found, "name", None), str):
        raise UsageError(f"--judge {name!r}: has no name, a string. Give it one; see {_EXAMPLE}.")
    for part in ("classes", "colours"):
        if not _are_words(getattr(found, part, None)):
            raise UsageError(
                f"--judge {name!r}: {part} is no collection of strings. List there what it can find; see "
                f"{_EXAMPLE}."
            )
    detector: Detector = found  # type: ignore[assignment]
    return detector


_EXAMPLE = "mobile_o_export.evaluation.shapes.ShapeDetector"


def _are_words(value: object) -> bool:
    return (
        isinstance(value, Collection)
        and not isinstance(value, str)
        and all(isinstance(word, str) for word in value)
    )


def _first_line(error: Exception) -> str:
    lines: Iterable[str] = str(error).splitlines()
    return next(iter(lines), type(error).__name__).removesuffix(".")
