"""GenEval's rules entry by entry, what is refused before any drawing, and detectors by name."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from mobile_o_export.errors import UsageError
from mobile_o_export.evaluation.judge import Detection, judge, lies, load_detector, require_known
from mobile_o_export.evaluation.shapes import ShapeDetector
from mobile_o_export.evaluation.tasks import DrawingTask


def seen(name: str, colour: str = "red", x: float = 0.5, y: float = 0.5, size: float = 0.2) -> Detection:
    return Detection(name, colour, x, y, size, size)


def task(*include: dict[str, Any], exclude: tuple[dict[str, Any], ...] = ()) -> DrawingTask:
    return DrawingTask.model_validate(
        {"tag": "here", "prompt": "a drawing", "include": include, "exclude": exclude}
    )


def wanted(name: str, count: int = 1, color: str | None = None, **more: Any) -> dict[str, Any]:
    return {"class": name, "count": count, "color": color, **more}


CIRCLE = seen("circle")


def test_an_object_of_the_class_is_enough() -> None:
    assert judge(task(wanted("circle")), [CIRCLE]) == (True, "")
    assert judge(task(wanted("circle")), [seen("square", "blue"), CIRCLE]) == (True, "")


def test_what_is_missing_is_said_with_what_was_seen() -> None:
    found = [seen("square", "blue"), seen("square", "blue"), seen("unknown", "green")]
    assert judge(task(wanted("circle")), found) == (
        False,
        "circle: 1 wanted, 0 found; seen: 2 blue square, 1 green unknown",
    )
    assert judge(task(wanted("circle")), []) == (False, "circle: 1 wanted, 0 found; seen: nothing")


def test_an_unknown_thing_counts_as_nothing() -> None:
    assert not judge(task(wanted("circle")), [seen("unknown")])[0]
    assert not judge(task(wanted("circle", color="red")), [seen("circle", "unknown")])[0]


def test_the_count_is_the_least_that_is_enough() -> None:
    three = task(wanted("circle", 3))
    assert judge(three, [CIRCLE] * 2) == (False, "circle: 3 wanted, 2 found; seen: 2 red circle")
    assert judge(three, [CIRCLE] * 3)[0]
    assert judge(three, [CIRCLE] * 4)[0]


def test_every_one_that_counts_has_the_colour() -> None:
    two = task(wanted("circle", 2, "red"))
    assert judge(two, [CIRCLE, seen("circle", "blue")]) == (
        False,
        "red circle: 2 wanted, 1 found; seen: 1 red circle, 1 blue circle",
    )
    assert judge(two, [CIRCLE, CIRCLE, seen("circle", "blue")])[0]


def test_every_entry_has_to_be_met() -> None:
    both = task(wanted("circle", color="red"), wanted("square", color="blue"))
    assert judge(both, [CIRCLE, seen("square", "blue")])[0]
    assert not judge(both, [CIRCLE])[0]
    # The colours belong to their shapes.
    passed, reason = judge(both, [seen("circle", "blue"), seen("square", "red")])
    assert not passed
    assert reason.startswith("red circle: 1 wanted, 0 found; blue square: 1 wanted, 0 found; seen:")


def test_an_excluded_count_fails_the_drawing() -> None:
    exactly_three = task(wanted("circle", 3), exclude=(wanted("circle", 4),))
    assert judge(exactly_three, [CIRCLE] * 3)[0]
    assert judge(exactly_three, [CIRCLE] * 4) == (
        False,
        "circle: fewer than 4 wanted, 4 found; seen: 4 red circle",
    )
    assert not judge(exactly_three, [CIRCLE] * 5)[0]
    assert not judge(exactly_three, [CIRCLE] * 2)[0]


def test_an_excluded_colour_is_of_that_class_only() -> None:
    no_red_square = task(wanted("circle"), exclude=(wanted("square", color="red"),))
    assert judge(no_red_square, [CIRCLE, seen("square", "blue")])[0]
    assert not judge(no_red_square, [CIRCLE, seen("square", "red")])[0]


def test_any_excluded_entry_fails_the_drawing() -> None:
    alone = task(wanted("circle"), exclude=(wanted("square"), wanted("cross")))
    assert judge(alone, [CIRCLE])[0]
    assert not judge(alone, [CIRCLE, seen("cross")])[0]


PLACES = {
    "left of": (0.2, 0.5),
    "right of": (0.8, 0.5),
    "above": (0.5, 0.2),
    "below": (0.5, 0.8),
}


@pytest.mark.parametrize("relation", PLACES)
@pytest.mark.parametrize("place", PLACES)
def test_each_direction_is_its_own(relation: str, place: str) -> None:
    asked = task(wanted("circle"), wanted("square", position=[relation, 0]))
    x, y = PLACES[place]
    passed, reason = judge(asked, [CIRCLE, seen("square", "blue", x, y)])
    assert passed == (relation == place)
    assert reason == ("" if passed else f"no square {relation} any circle; seen: 1 red circle, 1 blue square")


def test_the_position_is_to_an_object_of_the_colour_asked_for() -> None:
    asked = task(wanted("circle", color="red"), wanted("square", color="blue", position=["left of", 0]))
    found = [seen("circle", "green", 0.5), seen("circle", "red", 0.1), seen("square", "blue", 0.3)]
    assert judge(asked, found) == (
        False,
        "no blue square left of any red circle; seen: 1 green circle, 1 red circle, 1 blue square",
    )
    assert judge(asked, [*found, seen("circle", "red", 0.8)])[0]


def test_one_pair_that_lies_so_is_enough() -> None:
    asked = task(wanted("circle"), wanted("square", position=["left of", 0]))
    assert judge(asked, [seen("circle", x=0.5), seen("square", x=0.8), seen("square", x=0.2)])[0]
    assert judge(asked, [seen("circle", x=0.1), seen("circle", x=0.9), seen("square", x=0.5)])[0]


def test_nothing_lies_anywhere_to_what_is_not_there() -> None:
    asked = task(wanted("circle"), wanted("square", position=["left of", 0]))
    passed, reason = judge(asked, [seen("square", x=0.1)])
    assert not passed
    assert reason == "circle: 1 wanted, 0 found; no square left of any circle; seen: 1 red square"


def test_an_object_does_not_lie_beside_itself() -> None:
    asked = task(wanted("circle"), wanted("circle", position=["left of", 0]))
    assert not judge(asked, [CIRCLE])[0]
    assert judge(asked, [CIRCLE, seen("circle", x=0.1)])[0]


def test_a_small_offset_is_no_position() -> None:
    """GenEval: |offset| - 0.1 (0.2 + 0.2) > 0.5 |offset|, that is more than 0.08 for two objects of 0.2."""
    assert not lies(seen("a", x=0.425), "left of", seen("b"))
    assert lies(seen("a", x=0.415), "left of", seen("b"))
    assert not lies(seen("a", x=0.415, size=0.3), "left of", seen("b"))


def test_the_larger_offset_decides() -> None:
    one = seen("a", x=0.2, y=0.3)
    assert lies(one, "left of", seen("b", x=0.5, y=0.5))
    assert not lies(one, "above", seen("b", x=0.5, y=0.5))
    assert lies(one, "above", seen("b", x=0.4, y=0.6))
    assert not lies(one, "left of", seen("b", x=0.4, y=0.6))


# --- what is refused ---


def refused(*include: dict[str, Any], exclude: tuple[dict[str, Any], ...] = ()) -> str:
    known = task(wanted("circle"))
    with pytest.raises(UsageError) as error:
        require_known([known, task(*include, exclude=exclude)], ShapeDetector())
    return str(error.value)


def test_known_tasks_are_accepted() -> None:
    full = task(
        wanted("circle", 2, "red"),
        wanted("cross", color="purple", position=["below", 0]),
        exclude=(wanted("triangle", 3, "orange"),),
    )
    require_known([full], ShapeDetector())
    require_known([], ShapeDetector())


def test_an_unknown_class_is_refused() -> None:
    assert refused(wanted("circel")) == (
        "Prompt 2 ('a drawing'): class 'circel' is unknown to detector 'shapes'. Did you mean 'circle'? It "
        "knows circle, square, triangle, cross. Correct the prompt's tags, use --judge none, or give another "
        "detector as --judge module:attribute."
    )
    assert "class 'dog' is unknown" in refused(wanted("circle"), exclude=(wanted("dog"),))
    # What the detector calls the rest is no class to ask for.
    assert "class 'unknown' is unknown" in refused(wanted("unknown"))


def test_an_unknown_colour_is_refused() -> None:
    reason = refused(wanted("circle", color="gren"))
    assert "color 'gren' is unknown to detector 'shapes'. Did you mean 'green'?" in reason
    assert "It knows red, orange, yellow, green, blue, purple. Correct" in reason
    assert "color 'pink'" in refused(wanted("circle"), exclude=(wanted("circle", color="pink"),))


def test_an_unknown_position_is_refused() -> None:
    assert refused(wanted("circle"), wanted("square", position=["left", 0])) == (
        "Prompt 2 ('a drawing'): position 'left' is unknown. Did you mean 'left of'? The judge knows "
        "left of, right of, above, below. Correct the prompt's tags, or use --judge none."
    )


@pytest.mark.parametrize("index", [-1, 1, 2, 7])
def test_a_position_to_no_earlier_entry_is_refused(index: int) -> None:
    reason = refused(wanted("circle"), wanted("square", position=["above", index]))
    assert f"position ['above', {index}] of entry 1 of 'include' refers to no earlier entry" in reason


def test_a_position_to_the_entry_itself_is_refused() -> None:
    assert "refers to no earlier entry" in refused(wanted("circle", position=["above", 0]))


def test_a_position_that_would_not_be_judged_is_refused() -> None:
    reason = refused(wanted("circle"), exclude=(wanted("square", position=["above", 0]),))
    assert "an entry of 'exclude' has a position" in reason


# --- detectors by name ---


def test_the_own_detector_and_none() -> None:
    assert load_detector("none") is None
    assert isinstance(load_detector("shapes"), ShapeDetector)


OWN = """
class Finder:
    name = "finder"
    classes = ["dog"]
    colours = {"brown"}
    def detect(self, picture):
        return []

class Choosy(Finder):
    def __init__(self, weights):
        pass

class Broken(Finder):
    def __init__(self):
        raise RuntimeError("weights are missing.")

class Nameless(Finder):
    name = None

class Blind(Finder):
    detect = None

class Wordy(Finder):
    classes = "dog"

class Numbered(Finder):
    colours = [1, 2]

finder = Finder()
number = 7
"""


@pytest.fixture
def own_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module of the user's in the working directory, and its name."""
    name = "detector_of_the_user"
    (tmp_path / f"{name}.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, name, raising=False)
    return name


@pytest.mark.parametrize("attribute", ["Finder", "finder"])
def test_a_detector_in_the_working_directory_is_found(own_module: str, attribute: str) -> None:
    detector = load_detector(f"{own_module}:{attribute}")
    assert detector is not None
    assert detector.name == "finder"
    require_known([task(wanted("dog", color="brown"))], detector)
    with pytest.raises(UsageError, match="unknown to detector 'finder'"):
        require_known([task(wanted("circle"))], detector)


@pytest.mark.parametrize(
    ("attribute", "reason"),
    [
        ("Findr", "module 'detector_of_the_user' has no 'Findr'. Did you mean 'Finder'?"),
        ("Choosy", "missing 1 required positional argument: 'weights'. Give a class that takes no argument"),
        ("Broken", "making one fails: weights are missing. Give"),
        ("number", "has no method detect"),
        ("Blind", "has no method detect"),
        ("Nameless", "has no name, a string"),
        ("Wordy", "classes is no collection of strings"),
        ("Numbered", "colours is no collection of strings"),
    ],
)
def test_what_is_no_detector_is_refused(own_module: str, attribute: str, reason: str) -> None:
    with pytest.raises(UsageError) as error:
        load_detector(f"{own_module}:{attribute}")
    assert str(error.value).startswith(f"--judge '{own_module}:{attribute}': ")
    assert reason in str(error.value)


@pytest.mark.parametrize("code", ["import no_such_package_here", "1 +", "raise ValueError"])
def test_a_module_that_cannot_be_imported_is_refused(own_module: str, code: str) -> None:
    Path(f"{own_module}.py").write_text(code)
    with pytest.raises(UsageError, match="module 'detector_of_the_user' cannot be imported: ") as error:
        load_detector(f"{own_module}:Finder")
    assert error.value.__cause__ is not None


def test_a_module_that_is_not_there_is_refused() -> None:
    with pytest.raises(UsageError, match="'no_such_module_here' cannot be imported: No module named"):
        load_detector("no_such_module_here:Finder")


@pytest.mark.parametrize("name", ["shape", "", ":", "module:", ":Finder", "Shapes"])
def test_another_name_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match="Use 'shapes', 'none', or module:attribute") as error:
        load_detector(name)
    assert ("Did you mean 'shapes'?" in str(error.value)) == (name in ("shape", "Shapes"))
