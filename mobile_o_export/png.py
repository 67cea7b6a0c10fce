"""PNG pictures out of bundles and evaluations, whose sizes are judged before any pixel is decoded.

A PNG of a few kilobytes can announce gigabytes of pixels; its header says so in its first bytes.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from mobile_o_export.members import Members
from mobile_o_export.quiet import quiet_vendor

if TYPE_CHECKING:
    from PIL.Image import Image as Opened

MOST_PIXELS = 40_000_000
"""Of a picture that a question is about: whatever a camera takes."""

MOST_DRAWN_PIXELS = 2048 * 2048
"""Of a drawing, where nothing says how large the model draws."""


@contextmanager
def opened_png(
    members: Members, name: str, side: int | None, most_pixels: int = MOST_DRAWN_PIXELS
) -> Iterator[tuple[Opened, bytes]]:
    """The picture in the file ``name``, not decoded yet, and the file's bytes.

    It has to be ``side`` × ``side`` pixels or, without a side, of no more than ``most_pixels``. Everything
    wrong with it, decoding it in the block included, is a failure of ``members``.
    """
    from PIL import Image

    content = members.read(name)
    where = members.folder / name
    try:
        # Pillow warns of large pictures; whether one is too large is decided here.
        with quiet_vendor():
            opened = Image.open(io.BytesIO(content), formats=("PNG",))
        with opened as picture:
            size = f"{picture.width} × {picture.height} pixels"
            if side is not None and picture.size != (side, side):
                raise members.failure(f"{where}: is {size}, not {side} × {side}. {members.remedy}")
            if side is None and picture.width * picture.height > most_pixels:
                raise members.failure(
                    f"{where}: is {size}, more than {most_pixels / 1e6:.0f} million. {members.remedy}"
                )
            yield picture, content
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise members.failure(f"{where}: cannot be read ({error}). {members.remedy}") from error
