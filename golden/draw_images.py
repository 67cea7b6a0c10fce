"""Draws the images that goldens are recorded on; run it to make them again: ``python golden/draw_images.py``.

They are drawn, so that they carry nobody's licence, with soft shading and texture, so that a vision encoder
has something to see. One is wider and one is taller than square: resizing and cropping are exercised.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

Field = np.ndarray


def coordinates(width: int, height: int) -> tuple[Field, Field]:
    y, x = np.mgrid[0:height, 0:width].astype(np.float64)
    return x, y


def blend(canvas: Field, mask: Field, colour: Field) -> None:
    canvas += np.clip(mask, 0, 1)[..., None] * (colour - canvas)


def sphere(canvas: Field, cx: float, cy: float, radius: float, colour: tuple[float, float, float]) -> None:
    height, width = canvas.shape[:2]
    x, y = coordinates(width, height)
    dx, dy = (x - cx) / radius, (y - cy) / radius
    depth = np.sqrt(np.clip(1 - dx**2 - dy**2, 0, 1))
    light = np.clip(-0.5 * dx - 0.6 * dy + 0.62 * depth, 0, 1)
    shade = np.array(colour) * (0.25 + 0.75 * light[..., None]) + 0.5 * light[..., None] ** 24
    blend(canvas, (1 - np.hypot(dx, dy)) * radius, np.clip(shade, 0, 1))


def box(
    canvas: Field, left: int, top: int, right: int, bottom: int, colour: tuple[float, float, float]
) -> None:
    height, width = canvas.shape[:2]
    x, y = coordinates(width, height)
    inside = ((x >= left) & (x < right) & (y >= top) & (y < bottom)).astype(float)
    ramp = 0.75 + 0.25 * (x - left) / (right - left)
    blend(canvas, inside, np.array(colour) * ramp[..., None])


def still_life() -> Image.Image:
    """A red ball and a blue box on a wooden table, 384×288."""
    width, height = 384, 288
    x, y = coordinates(width, height)
    canvas = np.empty((height, width, 3))
    canvas[:] = np.stack([0.86 - y / 900, 0.84 - y / 1000, 0.78 - y / 1300], axis=-1)
    grain = 0.04 * np.sin(y / 3 + 2.5 * np.sin(x / 47)) + 0.03 * np.sin(x / 90 + y / 11)
    wood = np.stack([0.55 + grain, 0.36 + grain * 0.8, 0.2 + grain * 0.6], axis=-1)
    blend(canvas, (y > 170).astype(float), wood)
    for cx, reach in ((120, 62), (278, 70)):
        shadow = np.exp(-(((x - cx - 18) / reach) ** 2 + ((y - 222) / 12) ** 2))
        blend(canvas, 0.55 * shadow, np.zeros(3))
    sphere(canvas, 120, 168, 52, (0.85, 0.12, 0.1))
    box(canvas, 228, 112, 330, 220, (0.15, 0.3, 0.75))
    return Image.fromarray((np.clip(canvas, 0, 1) * 255 + 0.5).astype(np.uint8))


def harbour() -> Image.Image:
    """Evening over water: three houses and a sun, 240×320."""
    width, height = 240, 320
    x, y = coordinates(width, height)
    t = np.clip(y / 190, 0, 1)[..., None]
    canvas = (1 - t) * np.array([0.25, 0.3, 0.55]) + t * np.array([0.98, 0.62, 0.35])
    sphere(canvas, 170, 120, 26, (1.0, 0.85, 0.5))
    waves = 0.05 * np.sin(y / 2.2 + 3 * np.sin(x / 23)) + 0.04 * np.sin(x / 15 - y / 7)
    water = np.stack([0.2 + waves, 0.33 + waves, 0.5 + waves], axis=-1)
    blend(canvas, (y > 205).astype(float), water)
    houses = (
        (20, 130, 70, (0.8, 0.75, 0.6)),
        (78, 150, 124, (0.65, 0.25, 0.2)),
        (132, 140, 176, (0.3, 0.45, 0.35)),
    )
    for left, top, right, colour in houses:
        box(canvas, left, top, right, 208, colour)
        for row in range(top + 12, 196, 20):
            for column in range(left + 8, right - 10, 16):
                box(canvas, column, row, column + 8, row + 10, (1.0, 0.9, 0.45))
    return Image.fromarray((np.clip(canvas, 0, 1) * 255 + 0.5).astype(np.uint8))


if __name__ == "__main__":
    folder = Path(__file__).parent
    still_life().save(folder / "still-life.png", optimize=True)
    harbour().save(folder / "harbour.png", optimize=True)
