"""Plain coloured shapes found in a picture by rules: what each is, its colour, its place and its size.

It knows nothing of who drew the picture. The backgrounds it expects have no colour, so chroma says how much
of a pixel an object covers; what has one hue and hangs together is one object; and that has the name of the
ideal silhouette that its own fits best, if it fits that well.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Final

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from mobile_o_export.evaluation.judge import UNKNOWN, Detection

Mask = npt.NDArray[np.bool_]
Real = npt.NDArray[np.float32]
Chroma = npt.NDArray[np.complex64]
Outline = list[tuple[float, float]]

SHAPES: Final = ("circle", "square", "triangle", "cross")
COLOURS: Final = ("red", "orange", "yellow", "green", "blue", "purple")

WORKING_SIDE = 64
"""Pictures are reduced, by whole factors, while their shorter side stays at least this long."""

LEAST_CHROMA = 0.16
"""Of 1 for pure red: a grey with noise of 16/255 in each channel reaches 0.12 after smoothing."""

SPECK, LEAST_AREA = 0.004, 0.009
"""Parts of the picture: 16 and 37 of 64×64 pixels. Less than the first is no object, less than the second no
clear one; the smallest cross or triangle of ten pixels across has 50."""

SAME_HUE = math.radians(30)
ONE_COLOUR = 0.85
"""A connected region is one object if this part of it has nearly one hue; if not, hues are objects."""

LEAST_FIT: Final = {"circle": 0.97, "square": 0.97, "triangle": 0.95, "cross": 0.94}
"""Shapes blurred by 0.8 pixels, with noise of 6/255, fit by 0.99. With outlines off by 0.4 pixels (RMS),
hardly to be seen, 99 of 100 crosses fit by 0.966 and the rest better; off by 0.7 pixels, 90 of 100 crosses by
0.94. Roundish blots fit circles by 0.96, bulging ones squares; half discs, Ls, arrows and overlaps fit by no
more than 0.93."""

SMOOTHING = 0.06
BLURS = (0.07, 0.09, 0.11, 0.13, 0.15, 0.17, 0.2, 0.24)
SHARPEST_GLOW = 0.18
"""Gaussian σ in square roots of an object's area: what everything is smoothed by against noise, the blurs
that silhouettes are tried with, and the limit past which an edge is no clear one. With the smoothing, a cross
of ten pixels blurred by 1.3 pixels comes to 0.15, a round Gaussian glow to 0.2."""

HUE_ENDS: Final = (
    (15.0, "red"),
    (41.0, "orange"),
    (72.0, "yellow"),
    (80.0, UNKNOWN),
    (168.0, "green"),
    (190.0, UNKNOWN),
    (255.0, "blue"),
    (318.0, "purple"),
    (338.0, UNKNOWN),
    (360.0, "red"),
)
"""Where each hue ends, in degrees; lime, cyan and pink are none of ``COLOURS``."""

PALE = 0.4
"""Less saturated than this, red is pink and purple lavender: none of ``COLOURS``."""

BROWN = 0.62
"""Darker than this, orange is brown and yellow olive: none of ``COLOURS``."""

_GRID, _REACH = 40, 1.15
"""Silhouettes are compared on so many cells a side, which reach so far from the centroid at an area of 1."""


class ShapeDetector:
    """Finds circles, squares, triangles and crosses by rules; an object that is none is ``"unknown"``."""

    name = "shapes"
    classes: Collection[str] = SHAPES
    colours: Collection[str] = COLOURS

    def detect(self, picture: Image.Image) -> list[Detection]:
        """See ``detect``."""
        return detect(picture)


def detect(picture: Image.Image) -> list[Detection]:
    """The objects in ``picture``, on a background without colour, whatever its size.

    Squares are axis-aligned, triangles point up and crosses stand upright. A regular polygon of five corners
    or more may pass for a circle: at a dozen blurred pixels nobody could tell.
    """
    pixels = picture.convert("RGB")
    pixels = pixels.reduce(max(1, min(pixels.size) // WORKING_SIDE))
    rgb = np.asarray(pixels, np.float32) / np.float32(255)
    chroma = _chroma(rgb)
    plain = chroma[np.abs(chroma) < LEAST_CHROMA]
    if plain.size:
        chroma = chroma - _median(plain)
    strength = np.abs(_smooth(chroma))
    # An edge is where the object covers half a pixel, however strong its colour.
    coloured = strength > np.maximum(LEAST_CHROMA, _highest_around(strength) / 2)
    return [_detection(rgb, chroma, coloured, blob) for blob in _blobs(chroma, coloured)]


# --- colour ---


def _chroma(rgb: Real) -> Chroma:
    """[..., 3] → [...]: complex numbers, the hue their angle, their length 0 for greys and 1 for pure red.

    It is linear in the colour: mixed with any grey it keeps its angle, and noise does not bias it.
    """
    third = complex(-0.5, math.sqrt(0.75))
    chroma: Chroma = rgb.astype(np.complex64) @ np.array([1, third, third.conjugate()], np.complex64)
    return chroma


def _median(chroma: Chroma) -> complex:
    return complex(np.median(chroma.real), np.median(chroma.imag))


def _colour(rgb: Real) -> str:
    """The name of the colour ``rgb`` [3], or ``"unknown"``."""
    high, low = float(rgb.max()), float(rgb.min())
    hue = math.degrees(np.angle(_chroma(rgb))) % 360
    name = next(name for end, name in HUE_ENDS if hue <= end)
    if high - low < PALE * high or (name in ("orange", "yellow") and high < BROWN):
        return UNKNOWN
    return name


# --- objects ---


def _smooth(chroma: Chroma) -> Chroma:
    """[H, W] under a binomial 3×3 window."""
    padded = np.pad(chroma, 1, mode="edge")
    rows = padded[:-2] + 2 * padded[1:-1] + padded[2:]
    smooth: Chroma = (rows[:, :-2] + 2 * rows[:, 1:-1] + rows[:, 2:]) / np.float32(16)
    return smooth


def _highest_around(values: Real) -> Real:
    """[H, W], each the highest of the 5×5 around it."""
    height, width = values.shape
    padded = np.pad(values, 2)
    rows = np.max([padded[shift : shift + height] for shift in range(5)], axis=0)
    highest: Real = np.max([rows[:, shift : shift + width] for shift in range(5)], axis=0)
    return highest


def _blobs(chroma: Chroma, coloured: Mask) -> Iterator[Mask]:
    """The connected regions of ``coloured`` that have one hue each."""
    for region in _regions(coloured):
        counts = np.histogram(np.angle(chroma[region]), 24, (-math.pi, math.pi))[0]
        commonest = int((np.roll(counts, 1) + counts + np.roll(counts, -1)).argmax())
        hue = (commonest + 0.5) * math.pi / 12 - math.pi
        same = region & (np.abs(np.angle(chroma * np.exp(-1j * hue))) < SAME_HUE)
        if same.sum() >= ONE_COLOUR * region.sum():
            yield region
        else:
            yield from _regions(same)
            yield from _blobs(chroma, region & ~same)


def _regions(mask: Mask) -> Iterator[Mask]:
    """The 4-connected regions of ``mask`` but for specks: runs of each row, joined where they touch."""
    steps = np.diff(np.pad(mask, ((0, 0), (1, 1))).astype(np.int8), axis=1)
    rows, starts = np.nonzero(steps == 1)
    _, ends = np.nonzero(steps == -1)
    runs = list(zip(rows.tolist(), starts.tolist(), ends.tolist(), strict=True))
    parents = list(range(len(runs)))

    def root(run: int) -> int:
        while parents[run] != run:
            parents[run] = parents[parents[run]]
            run = parents[run]
        return run

    first = 0
    for run, (row, start, end) in enumerate(runs):
        while runs[first][0] < row - 1 or (runs[first][0] == row - 1 and runs[first][2] <= start):
            first += 1
        above = first
        while runs[above][0] == row - 1 and runs[above][1] < end:
            parents[root(above)] = root(run)
            above += 1
    roots = np.array([root(run) for run in range(len(runs))], np.intp)
    labels = np.full(mask.shape, -1, np.intp)
    labels[mask] = np.repeat(roots, ends - starts)
    for label in np.flatnonzero(np.bincount(labels[mask], minlength=1) >= max(1.0, SPECK * mask.size)):
        yield labels == label


def _detection(rgb: Real, chroma: Chroma, coloured: Mask, blob: Mask) -> Detection:
    """What ``blob`` is; ``rgb`` is [H, W, 3], everything else [H, W].

    What reaches across the picture is no object in it, whatever its outline.
    """
    height, width = blob.shape
    rows, columns = np.flatnonzero(blob.any(axis=1)), np.flatnonzero(blob.any(axis=0))
    top, bottom, left, right = int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1
    window = np.s_[max(0, top - 2) : bottom + 2, max(0, left - 2) : right + 2]
    rgb, chroma, others, blob = rgb[window], chroma[window], coloured[window] & ~blob[window], blob[window]
    smooth = _smooth(chroma)
    strength = np.abs(smooth)
    core = blob & (strength >= np.quantile(strength[blob], 0.75))
    full = _median(smooth[core])
    coverage = ((chroma * full.conjugate()).real / abs(full) ** 2).astype(np.float32)
    coverage[others | (_highest_around(blob.astype(np.float32)) == 0)] = 0
    inside = right - left < width and bottom - top < height
    large = coverage.sum() >= LEAST_AREA * height * width
    return Detection(
        name=_name(coverage) if inside and large else UNKNOWN,
        colour=_colour(np.median(rgb[core], axis=0)),
        x=(left + right) / 2 / width,
        y=(top + bottom) / 2 / height,
        width=(right - left) / width,
        height=(bottom - top) / height,
    )


# --- shapes ---


def _name(coverage: Real) -> str:
    """The shape of an object that covers ``coverage`` [h, w], 0 to 1, of each pixel.

    Its area and centroid, which no blur changes, bring it to a standard size and place. Fit is the Tanimoto
    coefficient a·b / (a·a + b·b - a·b), for masks the intersection over the union.
    """
    area = float(coverage.sum())
    y = float(coverage.sum(axis=1) @ np.arange(0.5, coverage.shape[0])) / area
    x = float(coverage.sum(axis=0) @ np.arange(0.5, coverage.shape[1])) / area
    reach = _REACH * math.sqrt(area)
    cell = 2 * reach / _GRID
    place = (cell, 0.0, x - reach, 0.0, cell, y - reach)
    standard = Image.fromarray(coverage).transform(
        (_GRID, _GRID), Image.Transform.AFFINE, place, Image.Resampling.BICUBIC
    )
    kernel = _kernel(SMOOTHING)
    seen = (kernel @ np.asarray(standard) @ kernel).ravel()
    known = _silhouettes()
    overlaps = known.pictures @ seen
    fits = overlaps / (known.squares + seen @ seen - overlaps)
    best = int(fits.argmax())
    name = known.names[best]
    return name if name in LEAST_FIT and fits[best] >= LEAST_FIT[name] else UNKNOWN


@dataclass(frozen=True)
class _Silhouettes:
    """Ideal silhouettes of area 1 around their centroids.

    Attributes:
        names: of the shapes; ``"unknown"`` for outlines that could be taken for them, and for too much blur.
        pictures: [N, G·G], 0 to 1, G cells to ``2 * _REACH``.
        squares: [N], each picture times itself.
    """

    names: list[str]
    pictures: Real
    squares: Real


@cache
def _silhouettes() -> _Silhouettes:
    outlines = list(_outlines())
    sharp = np.stack([_drawn(outline) for _, outline in outlines])
    names, pictures = [], []
    for blur in BLURS:
        kernel = _kernel(blur)
        pictures.append((kernel @ sharp @ kernel).reshape(len(sharp), -1))
        names += [name if blur < SHARPEST_GLOW else UNKNOWN for name, _ in outlines]
    bank = np.concatenate(pictures, dtype=np.float32)
    return _Silhouettes(names, bank, (bank**2).sum(axis=1))


@cache
def _kernel(blur: float) -> Real:
    """[G, G]: Gaussian blur along one side of a standard picture."""
    at = np.arange(_GRID, dtype=np.float32) * (2 * _REACH / _GRID)
    kernel = np.exp(-0.5 * ((at[:, None] - at) / blur) ** 2)
    kernel /= kernel[_GRID // 2].sum()
    return kernel.astype(np.float32)


def _drawn(outline: Outline) -> Real:
    """[G, G]: the polygon, of area 1 around its centroid (both by the shoelace formula)."""
    x, y = np.array(outline).T
    next_x, next_y = np.roll(x, -1), np.roll(y, -1)
    cross = x * next_y - next_x * y
    area = cross.sum() / 2
    centre_x, centre_y = (float(((a + b) * cross).sum() / (6 * area)) for a, b in ((x, next_x), (y, next_y)))
    fine = 8
    side = fine * _GRID
    scale = side / (2 * _REACH * math.sqrt(abs(area)))
    image = Image.new("L", (side, side))
    points = [
        ((a - centre_x) * scale + side / 2 - 0.5, (b - centre_y) * scale + side / 2 - 0.5) for a, b in outline
    ]
    ImageDraw.Draw(image).polygon(points, fill=255)
    return np.asarray(image.reduce(fine), np.float32) / np.float32(255)


_SQUARE: Outline = [(-1, -1), (1, -1), (1, 1), (-1, 1)]
_TRIANGLE: Outline = [(0, -1), (1, 1), (-1, 1)]


def _outlines() -> Iterator[tuple[str, Outline]]:
    """The shapes as they may be drawn, and what is none of them; y points down."""
    circle = _arc(0, 360)
    for aspect in (0.85, 0.92, 1.0, 1.09, 1.18):
        yield "circle", _changed(circle, aspect)
        yield "square", _changed(_SQUARE, aspect)
    for aspect in (0.8, 0.87, 0.93, 1.0, 1.07, 1.15, 1.25):
        yield "triangle", _changed(_TRIANGLE, aspect)
    for arm in (0.24, 0.28, 0.33, 0.38, 0.43, 0.48):
        for aspect in (0.9, 1.0, 1.1):
            yield "cross", _changed(_cross(arm), aspect)

    for aspect in (1 / 2, 1 / 1.6, 1 / 1.35, 1.35, 1.6, 2.0):
        yield UNKNOWN, _changed(circle, aspect)
        yield UNKNOWN, _changed(_SQUARE, aspect)
        yield UNKNOWN, _changed(_changed(_SQUARE, turn=45), aspect)
    for turn in (45, 135):
        for aspect in (1.35, 1.6, 2.0):
            yield UNKNOWN, _changed(_changed(circle, aspect), turn=turn)
    for turn in (22, 45, 68):
        yield UNKNOWN, _changed(_SQUARE, turn=turn)
    for aspect in (0.6, 1.6):
        yield UNKNOWN, _changed(_TRIANGLE, aspect)
    for turn in (45, 135, 225, 315):
        yield UNKNOWN, [*_arc(turn, turn + 90), (0, 0)]
    for hole in (0.35,):
        yield UNKNOWN, circle + [(x * hole, y * hole) for x, y in reversed(circle)]
    for points, depth in ((4, 0.4), (5, 0.45), (5, 0.7), (6, 0.6)):
        yield UNKNOWN, _star(points, depth)
    yield UNKNOWN, _changed(_cross(0.33), turn=45)
    yield UNKNOWN, _cross(0.12)
    yield UNKNOWN, [(-0.5, -1), (0.5, -1), (1, 1), (-1, 1)]
    yield UNKNOWN, [(-1, 0), (0, -1), (1, 0), (1, 1), (-1, 1)]


def _changed(outline: Outline, aspect: float = 1.0, turn: float = 0.0) -> Outline:
    """The outline turned by degrees, then made ``aspect`` times as wide."""
    cos, sin = math.cos(math.radians(turn)), math.sin(math.radians(turn))
    return [((cos * x - sin * y) * aspect, sin * x + cos * y) for x, y in outline]


def _arc(start: float, end: float) -> Outline:
    angles = np.radians(np.linspace(start, end, 48)).tolist()
    return [(math.cos(angle), math.sin(angle)) for angle in angles]


def _cross(arm: float) -> Outline:
    """``arm`` is the part of the cross's width that a bar is thick."""
    quarter: Outline = [(-arm, -1), (arm, -1), (arm, -arm)]
    return [point for turn in (0, 90, 180, 270) for point in _changed(quarter, turn=turn)]


def _star(points: int, depth: float) -> Outline:
    """The first point is up; the notches are ``depth`` from the centre."""
    angles = [math.pi * (index / points - 0.5) for index in range(2 * points)]
    radii = [1.0, depth] * points
    return [
        (radius * math.cos(angle), radius * math.sin(angle))
        for radius, angle in zip(radii, angles, strict=True)
    ]
