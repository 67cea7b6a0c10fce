"""The detector against pictures whose contents are known, spoiled ones, and ones that hold no clear shape."""

from __future__ import annotations

import math
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFilter

from mobile_o_export.evaluation.shapes import COLOURS, SHAPES, Detection, ShapeDetector, detect
from mobile_o_export.parity.metrics import Array

DEMO = Path(__file__).parents[2] / "examples" / "demo_checkpoint"
SIDE = 64
FINE = 8
"""What is drawn here is drawn so many times as large, then reduced."""

PAINT = {
    "red": (214, 39, 40),
    "orange": (255, 140, 0),
    "yellow": (250, 215, 30),
    "green": (34, 139, 34),
    "blue": (30, 80, 220),
    "purple": (128, 0, 128),
}
WHITE, GREY, BLACK = (250, 250, 250), (128, 128, 128), (10, 10, 10)

Points = list[tuple[float, float]]
SQUARE: Points = [(-1, -1), (1, -1), (1, 1), (-1, 1)]
TRIANGLE: Points = [(0, -1), (1, 1), (-1, 1)]


def cross(arm: float) -> Points:
    a = arm
    return [
        *((-a, -1), (a, -1), (a, -a), (1, -a), (1, a), (a, a)),
        *((a, 1), (-a, 1), (-a, a), (-1, a), (-1, -a), (-a, -a)),
    ]


def polygon(corners: int) -> Points:
    angles = [2 * math.pi * index / corners for index in range(corners)]
    return [(math.cos(angle), math.sin(angle)) for angle in angles]


IDEAL = {"circle": polygon(60), "square": SQUARE, "triangle": TRIANGLE, "cross": cross(0.35)}


class Sheet:
    """A picture to draw on in pixels, with smooth edges."""

    def __init__(self, background: tuple[int, int, int] = WHITE, side: int = SIDE) -> None:
        self.image = Image.new("RGB", (side * FINE, side * FINE), background)
        self.background = background

    def draw(
        self, points: Points, x: float, y: float, radius: float, paint: tuple[int, int, int], turn: float = 0
    ) -> Sheet:
        cos, sin = math.cos(math.radians(turn)) * radius, math.sin(math.radians(turn)) * radius
        corners = [((x + a * cos - b * sin) * FINE, (y + a * sin + b * cos) * FINE) for a, b in points]
        ImageDraw.Draw(self.image).polygon(corners, fill=paint)
        return self

    @property
    def picture(self) -> Image.Image:
        return self.image.reduce(FINE)


@pytest.fixture(scope="module")
def world() -> ModuleType:
    """The demo's pictures, of which the detector knows nothing."""
    if not (DEMO / "world.py").is_file():
        pytest.skip("examples are not here")
    sys.path.insert(0, str(DEMO))
    try:
        import world as module
    finally:
        sys.path.remove(str(DEMO))
    return module


def spoiled(picture: Image.Image, rng: np.random.Generator, blur: float, noise: float) -> Image.Image:
    pixels = np.asarray(picture.filter(ImageFilter.GaussianBlur(blur)), np.float64)
    pixels = pixels + rng.normal(0, noise, pixels.shape)
    return Image.fromarray(np.clip(np.rint(pixels), 0, 255).astype(np.uint8))


def accuracy(
    world: Any,
    count: int,
    *,
    held_out: bool = False,
    change: Callable[[Image.Image], Image.Image] = lambda picture: picture,
) -> float:
    """Of ``count`` scenes, the part whose shapes and colours were all found, and nothing else."""
    rng = np.random.default_rng(20)
    right = 0
    for _ in range(count):
        scene = world.random_scene(rng, held_out=held_out)
        found = detect(change(Image.fromarray(world.render(scene))))
        right += things(found) == Counter((thing.shape, thing.colour) for thing in scene.things)
    return right / count


def things(found: list[Detection]) -> Counter[tuple[str, str]]:
    return Counter((seen.name, seen.colour) for seen in found)


def names(picture: Image.Image) -> list[str]:
    return [seen.name for seen in detect(picture)]


@pytest.mark.slow
def test_everything_in_clean_pictures_is_found(world: ModuleType) -> None:
    assert accuracy(world, 1000) == 1
    assert accuracy(world, 200, held_out=True) == 1


@pytest.mark.slow
def test_blur_and_noise_hide_nothing(world: ModuleType) -> None:
    rng = np.random.default_rng(21)
    assert accuracy(world, 400, change=lambda picture: spoiled(picture, rng, 0.8, 6)) >= 0.995
    # Twice what is asked for: worse than the demo's autoencoder.
    assert accuracy(world, 400, change=lambda picture: spoiled(picture, rng, 1.0, 12)) >= 0.97


@pytest.mark.slow
def test_the_size_of_the_picture_does_not_matter(world: ModuleType) -> None:
    def larger(picture: Image.Image) -> Image.Image:
        return picture.resize((4 * SIDE, 4 * SIDE), Image.Resampling.BICUBIC)

    assert accuracy(world, 300, change=larger) == 1


def test_places_and_sizes_are_fractions_of_the_picture(world: Any) -> None:
    rng = np.random.default_rng(22)
    for _ in range(100):
        scene = world.random_scene(rng)
        found = detect(Image.fromarray(world.render(scene)))
        for thing in scene.things:
            seen = min(found, key=lambda seen: math.hypot(seen.x * SIDE - thing.x, seen.y * SIDE - thing.y))
            assert math.hypot(seen.x * SIDE - thing.x, seen.y * SIDE - thing.y) < 1.5
            assert seen.width * SIDE == pytest.approx(2 * thing.radius, abs=2.5)


def test_a_wide_picture_has_fractions_of_its_own_sides() -> None:
    wide = Image.new("RGB", (128, 64), WHITE)
    wide.paste(Sheet().draw(SQUARE, 40, 20, 8, PAINT["red"]).picture, (64, 0))
    (seen,) = detect(wide)
    assert (seen.name, seen.colour) == ("square", "red")
    assert (seen.x, seen.y) == (pytest.approx(104 / 128, abs=0.01), pytest.approx(20 / 64, abs=0.02))
    assert (seen.width, seen.height) == (pytest.approx(16 / 128, abs=0.01), pytest.approx(16 / 64, abs=0.02))


@pytest.mark.parametrize("background", [WHITE, GREY, BLACK])
@pytest.mark.parametrize("colour", COLOURS)
@pytest.mark.parametrize("shape", SHAPES)
def test_shapes_drawn_by_hand_are_recognised(
    shape: str, colour: str, background: tuple[int, int, int]
) -> None:
    picture = Sheet(background).draw(IDEAL[shape], 25, 38, 7.3, PAINT[colour]).picture
    assert things(detect(picture)) == {(shape, colour): 1}


@pytest.mark.parametrize("arm", [0.25, 0.33, 0.4, 0.48])
def test_crosses_have_bars_of_any_usual_thickness(arm: float) -> None:
    assert names(Sheet().draw(cross(arm), 32, 32, 9, PAINT["blue"]).picture) == ["cross"]


def test_equilateral_and_taller_triangles_are_triangles() -> None:
    for height in (0.87, 1.0, 1.15):
        points = [(x, y * height) for x, y in TRIANGLE]
        assert names(Sheet().draw(points, 32, 32, 9, PAINT["green"]).picture) == ["triangle"]


def squeezed(points: Points, factor: float) -> Points:
    return [(x * factor, y) for x, y in points]


def arc(start: float, end: float) -> Points:
    angles = np.radians(np.linspace(start, end, 60)).tolist()
    return [(math.cos(angle), math.sin(angle)) for angle in angles]


def star(corners: int, depth: float) -> Points:
    angles = [math.pi * (index / corners - 0.5) for index in range(2 * corners)]
    return [(r * math.cos(a), r * math.sin(a)) for r, a in zip([1.0, depth] * corners, angles, strict=True)]


NO_SHAPE: dict[str, tuple[Points, float]] = {
    "ellipse": (squeezed(polygon(60), 0.5), 0),
    "flat ellipse": (squeezed(polygon(60), 0.5), 90),
    "slanted ellipse": (squeezed(polygon(60), 0.5), 40),
    "rounder ellipse": (squeezed(polygon(60), 0.67), 0),
    "half disc": (arc(180, 360), 0),
    "half disc below": (arc(0, 180), 0),
    "half disc beside": (arc(90, 270), 0),
    "quarter disc": ([*arc(0, 90), (0, 0)], 0),
    "pie": ([*arc(40, 320), (0, 0)], 0),
    "turned square": (SQUARE, 45),
    "half turned square": (SQUARE, 25),
    "rectangle": (squeezed(SQUARE, 0.5), 0),
    "broader rectangle": (squeezed(SQUARE, 0.67), 0),
    "triangle on its head": (TRIANGLE, 180),
    "triangle on its side": (TRIANGLE, 90),
    "needle": (squeezed(TRIANGLE, 0.5), 0),
    "half a square": ([(-1, -1), (1, 1), (-1, 1)], 0),
    "trapezoid": ([(-0.5, -1), (0.5, -1), (1, 1), (-1, 1)], 0),
    "turned cross": (cross(0.33), 45),
    "L": ([(-1, -1), (0, -1), (0, 0), (1, 0), (1, 1), (-1, 1)], 0),
    "arrow": ([(0, -1), (1, 0), (0.4, 0), (0.4, 1), (-0.4, 1), (-0.4, 0), (-1, 0)], 0),
    "four-pointed star": (star(4, 0.4), 0),
    "five-pointed star": (star(5, 0.45), 0),
}


@pytest.mark.parametrize("blob", NO_SHAPE)
@pytest.mark.parametrize("radius", [8, 12])
def test_what_is_none_of_the_shapes_is_unknown(blob: str, radius: float) -> None:
    points, turn = NO_SHAPE[blob]
    picture = Sheet(GREY).draw(points, 31.3, 32.6, radius, PAINT["red"], turn).picture
    assert things(detect(picture)) == {("unknown", "red"): 1}
    rng = np.random.default_rng(23)
    for _ in range(3):
        assert things(detect(spoiled(picture, rng, 0.8, 6))) == {("unknown", "red"): 1}


@pytest.mark.parametrize("hole", [0.4, 0.6, 0.75])
@pytest.mark.parametrize("shape", SHAPES)
def test_outlines_of_shapes_are_unknown(shape: str, hole: float) -> None:
    sheet = Sheet().draw(IDEAL[shape], 32, 32, 12, PAINT["blue"])
    assert names(sheet.draw(IDEAL[shape], 32, 32, 12 * hole, WHITE).picture) == ["unknown"]


@pytest.mark.parametrize("first", SHAPES)
@pytest.mark.parametrize("second", SHAPES)
def test_two_shapes_that_overlap_are_one_unknown_thing(first: str, second: str) -> None:
    sheet = Sheet().draw(IDEAL[first], 26, 30, 8, PAINT["green"])
    assert names(sheet.draw(IDEAL[second], 36, 33, 8, PAINT["green"]).picture) == ["unknown"]


def test_random_blots_are_unknown() -> None:
    rng = np.random.default_rng(24)
    found: Counter[str] = Counter()
    for _ in range(100):
        waves = [(k, rng.normal(0, 0.35 / math.sqrt(k)), rng.uniform(0, 2 * math.pi)) for k in (2, 3, 4, 5)]
        points = []
        for x, y in polygon(90):
            angle = math.atan2(y, x)
            reach = max(0.2, 1 + sum(height * math.cos(k * angle + phase) for k, height, phase in waves))
            points.append((reach * x, reach * y))
        found.update(names(Sheet().draw(points, 32, 32, 9, PAINT["purple"]).picture))
    # Chance may draw one that passes for a shape.
    assert found["unknown"] >= 97
    assert found.total() - found["unknown"] <= 3


@pytest.mark.parametrize("width", [3, 5])
def test_a_glow_is_no_circle(width: float) -> None:
    at = np.arange(SIDE) - 31.5
    glow = np.exp(-(at[:, None] ** 2 + at**2) / (2 * width**2))[..., None]
    pixels = glow * PAINT["red"] + (1 - glow) * WHITE
    assert names(Image.fromarray(pixels.astype(np.uint8))) == ["unknown"]


def test_shapes_of_two_colours_that_touch_are_two() -> None:
    picture = (
        Sheet().draw(SQUARE, 20, 32, 9, PAINT["red"]).draw(IDEAL["circle"], 38, 32, 9, PAINT["blue"]).picture
    )
    assert things(detect(picture)) == {("square", "red"): 1, ("circle", "blue"): 1}


def test_a_shape_of_two_colours_is_none() -> None:
    halves = (
        Sheet().draw(arc(90, 270), 32, 32, 11, PAINT["red"]).draw(arc(-90, 90), 32, 32, 11, PAINT["blue"])
    )
    assert things(detect(halves.picture)) == {("unknown", "red"): 1, ("unknown", "blue"): 1}


@pytest.mark.parametrize(
    "paint", [(255, 170, 180), (120, 70, 20), (0, 200, 210), (255, 0, 170), (110, 110, 20)]
)
def test_pink_brown_cyan_magenta_and_olive_are_none_of_the_colours(paint: tuple[int, int, int]) -> None:
    picture = Sheet().draw(SQUARE, 32, 32, 9, paint).picture
    assert things(detect(picture)) == {("square", "unknown"): 1}


def test_slight_shifts_of_colour_do_not_matter() -> None:
    rng = np.random.default_rng(25)
    for colour, paint in PAINT.items():
        for _ in range(20):
            shifted = np.clip(paint + rng.uniform(-18, 18, 3), 0, 255).astype(int).tolist()
            picture = Sheet(GREY).draw(IDEAL["circle"], 32, 32, 9, tuple(shifted)).picture
            assert things(detect(picture)) == {("circle", colour): 1}


def test_pictures_without_colour_show_nothing() -> None:
    rng = np.random.default_rng(26)
    for level in (0, 24, 128, 255):
        plain = Image.new("RGB", (SIDE, SIDE), (level, level, level))
        assert detect(plain) == []
        assert detect(spoiled(plain, rng, 0, 16)) == []
        # A tint, as from a decoder that is a little off.
        assert detect(Image.new("RGB", (SIDE, SIDE), (level, level, max(0, level - 20)))) == []
    grey_shapes = Sheet().draw(SQUARE, 20, 20, 9, BLACK).draw(IDEAL["circle"], 44, 40, 9, GREY)
    assert detect(grey_shapes.picture) == []


def test_specks_are_nothing() -> None:
    sheet = Sheet().draw(SQUARE, 10, 10, 1.5, PAINT["red"]).draw(SQUARE, 50, 20, 1, PAINT["blue"])
    assert names(sheet.draw(IDEAL["circle"], 32, 40, 8, PAINT["green"]).picture) == ["circle"]


def test_a_coloured_background_is_no_square() -> None:
    assert names(Image.new("RGB", (SIDE, SIDE), PAINT["blue"])) == ["unknown"]
    picture = Sheet(PAINT["blue"]).draw(IDEAL["circle"], 32, 32, 9, PAINT["yellow"]).picture
    assert things(detect(picture)) == {("unknown", "blue"): 1, ("circle", "yellow"): 1}


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "1"])
def test_every_mode_of_picture_is_read(mode: str) -> None:
    picture = Sheet().draw(SQUARE, 32, 32, 9, (255, 0, 0)).picture.convert(mode)
    assert names(picture) == ([] if mode in ("L", "1") else ["square"])


@pytest.mark.parametrize("size", [(1, 1), (3, 200), (64, 5)])
def test_pictures_of_any_size_are_read(size: tuple[int, int]) -> None:
    noise: Array = np.random.default_rng(27).integers(0, 256, (size[1], size[0], 3), np.uint8)
    assert set(names(Image.fromarray(noise))) <= {"unknown"}


def test_static_shows_no_shape() -> None:
    rng = np.random.default_rng(28)
    for _ in range(10):
        static = rng.integers(0, 256, (SIDE, SIDE, 3), np.uint8)
        assert set(names(Image.fromarray(static))) <= {"unknown"}
        assert set(names(Image.fromarray(static).filter(ImageFilter.GaussianBlur(2)))) <= {"unknown"}


def test_the_detector_says_what_it_knows() -> None:
    detector = ShapeDetector()
    assert (detector.name, detector.classes, detector.colours) == ("shapes", SHAPES, COLOURS)
    picture = Sheet().draw(SQUARE, 32, 32, 9, PAINT["red"]).picture
    assert detector.detect(picture) == detect(picture)
