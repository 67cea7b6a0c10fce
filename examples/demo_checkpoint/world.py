"""A world of coloured shapes: scenes, their pictures, and everything that can be said of them.

A scene has one kind of shape one to four times, or two kinds once each, on a white, grey or black background.
The same scene gives a picture, a caption, questions with answers, and edits; a seeded generator decides.
One composition in ten (which shapes in which colours on which background) is held out: no stage of training
ever sees it, neither as a picture nor as a caption.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from zlib import crc32

import numpy as np

SIDE = 64
"""Pixels of a picture's side."""

COLOURS = {
    "red": (222, 44, 44),
    "orange": (245, 133, 28),
    "yellow": (246, 208, 44),
    "green": (44, 164, 72),
    "blue": (40, 92, 224),
    "purple": (142, 60, 184),
}
BACKGROUNDS = {"white": (245, 245, 245), "grey": (150, 150, 150), "black": (24, 24, 24)}
USUAL_BACKGROUND = "white"
"""What a caption leaves unsaid."""

SHAPES = ("circle", "square", "triangle", "cross")
SIZES = {"small": (5.0, 6.0), "medium": (7.5, 9.0), "large": (11.0, 13.0)}
"""Radius in pixels, from and to. Captions leave medium unsaid."""

USUAL_SIZE = "medium"
NUMBERS = ("zero", "one", "two", "three", "four")
PLACES = {
    "on the left": (0.26, 0.5),
    "on the right": (0.74, 0.5),
    "at the top": (0.5, 0.26),
    "at the bottom": (0.5, 0.74),
    "in the middle": (0.5, 0.5),
}
"""Where a single shape may be said to be: its centre as a fraction of the side."""

RELATIONS = {"to the left of": (1, 0), "to the right of": (-1, 0), "above": (0, 1), "below": (0, -1)}
"""The direction from the first shape to the second."""

APART = 14.0
"""Pixels between centres along an axis before a relation is spoken of."""

_GAP = 3.0
_HELD_OUT_IN = 10


@dataclass(frozen=True)
class Thing:
    """One shape: its kind, and the centre and radius in pixels."""

    shape: str
    colour: str
    size: str
    x: float
    y: float
    radius: float

    @property
    def name(self) -> str:
        """As captions name it."""
        return f"{self.colour} {self.shape}"


@dataclass(frozen=True)
class Scene:
    """What a picture shows; ``place`` or ``relation`` is what its caption says of positions."""

    things: tuple[Thing, ...]
    background: str = USUAL_BACKGROUND
    place: str = ""
    relation: str = ""

    @property
    def held_out(self) -> bool:
        """Whether training must not see it."""
        names = sorted(thing.name for thing in self.things)
        return crc32(" ".join([*names, self.background]).encode()) % _HELD_OUT_IN == 0

    @property
    def caption(self) -> str:
        """As a user would ask for it: ``two small red circles on a black background``."""
        first, second = self.things[0], self.things[-1]
        if len({thing.name for thing in self.things}) == 1:
            text = _counted(len(self.things), first)
        else:
            text = f"{_counted(1, first)} {self.relation or 'and'} {_counted(1, second)}"
        if self.place:
            text += f" {self.place}"
        if self.background != USUAL_BACKGROUND:
            text += f" on a {self.background} background"
        return text


def plural(shape: str) -> str:
    """``circles``, ``crosses``."""
    return f"{shape}es" if shape.endswith("s") else f"{shape}s"


def article(word: str) -> str:
    """``a red``, ``an orange``."""
    return f"{'an' if word[0] in 'aeiou' else 'a'} {word}"


def _counted(count: int, thing: Thing) -> str:
    words = thing.name if thing.size == USUAL_SIZE else f"{thing.size} {thing.name}"
    if count == 1:
        return article(words)
    return f"{NUMBERS[count]} {words.removesuffix(thing.shape)}{plural(thing.shape)}"


def random_scene(rng: np.random.Generator, *, held_out: bool = False) -> Scene:
    """A scene of the training world, or of the compositions held out from it."""
    while True:
        scene = _any_scene(rng)
        if scene is not None and scene.held_out == held_out:
            return scene


def _any_scene(rng: np.random.Generator) -> Scene | None:
    background = _choice(rng, BACKGROUNDS) if rng.random() < 0.5 else USUAL_BACKGROUND
    size = _choice(rng, ("small", "large")) if rng.random() < 0.4 else USUAL_SIZE
    first = _choice(rng, COLOURS), _choice(rng, SHAPES)
    kind = rng.random()
    if kind < 0.2:
        place = _choice(rng, PLACES)
        x, y = (fraction * SIDE + rng.uniform(-3, 3) for fraction in PLACES[place])
        return Scene((_thing(rng, first, size, x, y),), background, place=place)
    if kind < 0.5:
        second = _choice(rng, COLOURS), _choice(rng, SHAPES)
        if second == first:
            return None
        # Two of one size, so that nothing need be said of each.
        things = _scattered(rng, [first, second], [USUAL_SIZE, USUAL_SIZE])
        if things is None:
            return None
        relation = true_relation(*things) if rng.random() < 0.6 else ""
        return Scene(things, background, relation=relation)
    count = int(rng.integers(1, 5))
    if size == "large" and count > 3:
        return None
    things = _scattered(rng, [first] * count, [size] * count)
    return None if things is None else Scene(things, background)


def true_relation(first: Thing, second: Thing) -> str:
    """How the first lies to the second; empty where that could be argued."""
    across, down = second.x - first.x, second.y - first.y
    if abs(across) >= APART and abs(across) > 1.5 * abs(down):
        return "to the left of" if across > 0 else "to the right of"
    if abs(down) >= APART and abs(down) > 1.5 * abs(across):
        return "above" if down > 0 else "below"
    return ""


def _scattered(
    rng: np.random.Generator, kinds: list[tuple[str, str]], sizes: list[str]
) -> tuple[Thing, ...] | None:
    """Things that do not touch; None where chance left no room."""
    placed: list[Thing] = []
    for kind, size in zip(kinds, sizes, strict=True):
        for _ in range(20):
            thing = _thing(rng, kind, size, 0, 0)
            reach = thing.radius + 2
            thing = replace(thing, x=rng.uniform(reach, SIDE - reach), y=rng.uniform(reach, SIDE - reach))
            if all(_clear(thing, other) for other in placed):
                placed.append(thing)
                break
        else:
            return None
    return tuple(placed)


def _clear(a: Thing, b: Thing) -> bool:
    return bool(max(abs(a.x - b.x), abs(a.y - b.y)) > a.radius + b.radius + _GAP)


def _thing(rng: np.random.Generator, kind: tuple[str, str], size: str, x: float, y: float) -> Thing:
    colour, shape = kind
    return Thing(shape, colour, size, x, y, rng.uniform(*SIZES[size]))


def _choice(rng: np.random.Generator, options: object) -> str:
    names = list(options)  # type: ignore[call-overload]
    return str(names[int(rng.integers(len(names)))])


# --- pictures ---


def render(scene: Scene) -> np.ndarray:
    """uint8 [SIDE, SIDE, 3], edges smoothed over one pixel."""
    y, x = np.mgrid[:SIDE, :SIDE].astype(np.float32) + 0.5
    image = np.broadcast_to(np.float32(BACKGROUNDS[scene.background]), (SIDE, SIDE, 3)).copy()
    for thing in scene.things:
        inside = np.clip(0.5 - _distance(thing.shape, x - thing.x, y - thing.y, thing.radius), 0, 1)
        image += inside[..., None] * (np.float32(COLOURS[thing.colour]) - image)
    return np.rint(image).astype(np.uint8)


def _distance(shape: str, x: np.ndarray, y: np.ndarray, radius: float) -> np.ndarray:
    """Signed distance in pixels to the outline of a shape around the origin, negative inside (y is down)."""
    if shape == "circle":
        return np.hypot(x, y) - radius
    if shape == "square":
        return np.maximum(abs(x), abs(y)) - 0.9 * radius
    if shape == "triangle":
        # Apex above; a side falls 1.9 radii over one radius across.
        slope = np.hypot(1.9, 1.0)
        side = (1.9 * abs(x) - (y + radius)) / slope
        return np.maximum(side, y - 0.9 * radius)
    arm = radius / 3
    upright = np.maximum(abs(x) - arm, abs(y) - radius)
    level = np.maximum(abs(x) - radius, abs(y) - arm)
    return np.minimum(upright, level)


# --- questions ---


def random_question(rng: np.random.Generator, scene: Scene) -> tuple[str, str]:
    """A question about the scene and its only right answer."""
    while True:
        kind = _QUESTIONS[int(rng.integers(len(_QUESTIONS)))]
        if (found := kind(rng, scene)) is not None:
            return found


def _how_many(rng: np.random.Generator, scene: Scene) -> tuple[str, str]:
    if rng.random() < 0.5:
        return "How many shapes are there?", NUMBERS[len(scene.things)]
    names = Counter(thing.shape for thing in scene.things)
    shape = _choice(rng, names) if rng.random() < 0.8 else _choice(rng, SHAPES)
    return f"How many {plural(shape)} are there?", NUMBERS[names[shape]]


def _how_many_of_a_colour(rng: np.random.Generator, scene: Scene) -> tuple[str, str]:
    kinds = Counter((thing.colour, thing.shape) for thing in scene.things)
    colour, shape = list(kinds)[int(rng.integers(len(kinds)))]
    chance = rng.random()
    if chance < 0.2:
        colour = _choice(rng, COLOURS)
    elif chance < 0.4:
        shape = _choice(rng, SHAPES)
    return f"How many {colour} {plural(shape)} are there?", NUMBERS[kinds[colour, shape]]


def _what_colour(rng: np.random.Generator, scene: Scene) -> tuple[str, str] | None:
    shape = _choice(rng, [thing.shape for thing in scene.things])
    of_shape = [thing for thing in scene.things if thing.shape == shape]
    if len({thing.colour for thing in of_shape}) > 1:
        return None
    if len(of_shape) == 1:
        return f"What colour is the {shape}?", of_shape[0].colour
    return f"What colour are the {plural(shape)}?", of_shape[0].colour


def _what_shape(rng: np.random.Generator, scene: Scene) -> tuple[str, str] | None:
    thing = scene.things[int(rng.integers(len(scene.things)))]
    shapes = {other.shape for other in scene.things if other.colour == thing.colour}
    if len(shapes) > 1:
        return None
    return f"What shape is {thing.colour}?", thing.shape


def _is_there(rng: np.random.Generator, scene: Scene) -> tuple[str, str]:
    names = {thing.name for thing in scene.things}
    thing = scene.things[int(rng.integers(len(scene.things)))]
    chance = rng.random()
    if chance < 0.5:
        name = thing.name
    elif chance < 0.7:
        name = f"{thing.colour} {_choice(rng, SHAPES)}"
    elif chance < 0.9:
        name = f"{_choice(rng, COLOURS)} {thing.shape}"
    else:
        name = f"{_choice(rng, COLOURS)} {_choice(rng, SHAPES)}"
    return f"Is there {article(name)}?", "yes" if name in names else "no"


def _background(rng: np.random.Generator, scene: Scene) -> tuple[str, str] | None:
    # One in two scenes: every scene could be asked this.
    return ("What colour is the background?", scene.background) if rng.random() < 0.5 else None


def _where(rng: np.random.Generator, scene: Scene) -> tuple[str, str] | None:
    del rng
    return (f"Where is the {scene.things[0].shape}?", scene.place) if scene.place else None


def _how_large(rng: np.random.Generator, scene: Scene) -> tuple[str, str] | None:
    del rng
    thing = scene.things[0]
    if len(scene.things) > 1 or thing.size == USUAL_SIZE:
        return None
    return f"Is the {thing.shape} small or large?", thing.size


def _relation(rng: np.random.Generator, scene: Scene) -> tuple[str, str] | None:
    if len(scene.things) != 2 or len({thing.name for thing in scene.things}) != 2:
        return None
    first, second = scene.things if rng.random() < 0.5 else scene.things[::-1]
    truth = true_relation(first, second)
    if not truth:
        return None
    asked = truth if rng.random() < 0.5 else _choice(rng, [name for name in RELATIONS if name != truth])
    return f"Is the {first.name} {asked} the {second.name}?", "yes" if asked == truth else "no"


def _beside(rng: np.random.Generator, scene: Scene) -> tuple[str, str] | None:
    if len(scene.things) != 2 or len({thing.name for thing in scene.things}) != 2:
        return None
    first, second = scene.things if rng.random() < 0.5 else scene.things[::-1]
    truth = true_relation(first, second)
    return (f"What is {truth} the {second.name}?", article(first.name)) if truth else None


def _describe(rng: np.random.Generator, scene: Scene) -> tuple[str, str]:
    del rng
    return DESCRIBE, described(scene)


DESCRIBE = "Describe the image."


def described(scene: Scene) -> str:
    """The caption as the only right answer: things in alphabetical order, positions left out."""
    ordered = tuple(sorted(scene.things, key=lambda thing: thing.name))
    return replace(scene, things=ordered, place="", relation="").caption


_QUESTIONS = (
    _how_many, _how_many, _how_many_of_a_colour, _what_colour, _what_shape, _is_there, _is_there, _background,
    _where, _how_large, _beside, _relation, _relation, _relation, _describe,
)  # fmt: skip


# --- edits ---


def random_edit(rng: np.random.Generator, scene: Scene) -> tuple[str, Scene]:
    """An instruction and the scene after it; shapes stay where they are."""
    while True:
        kind = _EDITS[int(rng.integers(len(_EDITS)))]
        found = kind(rng, scene)
        if found is not None and not found[1].held_out:
            return found


def _recolour(rng: np.random.Generator, scene: Scene) -> tuple[str, Scene] | None:
    shape = _choice(rng, [thing.shape for thing in scene.things])
    chosen = [thing for thing in scene.things if thing.shape == shape]
    colour = _choice(rng, COLOURS)
    if colour in {thing.colour for thing in chosen}:
        return None
    things = tuple(replace(thing, colour=colour) if thing.shape == shape else thing for thing in scene.things)
    name = shape if len(chosen) == 1 else plural(shape)
    return f"make the {name} {colour}", replace(scene, things=things, place="", relation="")


def _reshape(rng: np.random.Generator, scene: Scene) -> tuple[str, Scene] | None:
    if len(scene.things) != 1:
        return None
    old, new = scene.things[0], _choice(rng, SHAPES)
    if new == old.shape:
        return None
    after = replace(scene, things=(replace(old, shape=new),), place="")
    return f"turn the {old.shape} into {article(new)}", after


def _remove(rng: np.random.Generator, scene: Scene) -> tuple[str, Scene] | None:
    if len({thing.name for thing in scene.things}) != 2:
        return None
    gone = scene.things[int(rng.integers(2))]
    kept = tuple(thing for thing in scene.things if thing is not gone)
    return f"remove the {gone.name}", replace(scene, things=kept, relation="")


def _new_background(rng: np.random.Generator, scene: Scene) -> tuple[str, Scene] | None:
    background = _choice(rng, BACKGROUNDS)
    if background == scene.background:
        return None
    return f"make the background {background}", replace(scene, background=background)


_EDITS = (_recolour, _reshape, _remove, _new_background)
