"""Pictures side by side on one sheet, each row a prompt, each column who drew it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

CELL = 256
"""Pixels of a picture's side on the sheet: small ones are enlarged pixel by pixel, large ones reduced."""

_MARGIN, _TITLE, _LINE = 16, 20, 16
_INK, _FAINT, _PAPER = (30, 30, 34), (105, 105, 112), (255, 255, 255)


@dataclass(frozen=True)
class Cell:
    """One picture and what stands under it."""

    picture: Picture
    caption: str


def sheet(columns: Sequence[str], rows: Sequence[tuple[str, Sequence[Cell]]]) -> Picture:
    """A sheet with ``columns`` as headings and, for each row, its title above a cell a column."""
    from PIL import Image, ImageDraw, ImageFont

    width = _MARGIN + len(columns) * (CELL + _MARGIN)
    height = _MARGIN + _TITLE + len(rows) * (_TITLE + CELL + _LINE + _MARGIN)
    image = Image.new("RGB", (width, height), _PAPER)
    draw = ImageDraw.Draw(image)
    heading, small = ImageFont.load_default(15), ImageFont.load_default(12)

    def left(column: int) -> int:
        return _MARGIN + column * (CELL + _MARGIN)

    for column, name in enumerate(columns):
        draw.text((left(column), _MARGIN - 4), name, _INK, heading)
    top = _MARGIN + _TITLE
    for title, cells in rows:
        draw.text((_MARGIN, top), title, _FAINT, small)
        top += _TITLE
        for column, cell in enumerate(cells):
            image.paste(_fitted(cell.picture), (left(column), top))
            draw.rectangle(
                (left(column), top, left(column) + CELL - 1, top + CELL - 1), outline=(225, 225, 228)
            )
            draw.text((left(column), top + CELL + 2), cell.caption, _FAINT, small)
        top += CELL + _LINE + _MARGIN
    return image


def _fitted(picture: Picture) -> Picture:
    from PIL import Image

    filtering = Image.Resampling.NEAREST if picture.width < CELL else Image.Resampling.LANCZOS
    return picture.resize((CELL, CELL), filtering)
