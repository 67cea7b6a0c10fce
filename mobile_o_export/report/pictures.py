"""Pictures on the page: PNG files from a bundle, and maps of where two differ."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Self

import numpy as np

from mobile_o_export.errors import ExportError
from mobile_o_export.parity.metrics import Array

LEVELS = 255
"""The largest value of a pixel."""


@dataclass(frozen=True)
class Picture:
    """A picture as it goes on the page.

    Attributes:
        png: the file's bytes.
        width, height: pixels.
    """

    png: bytes
    width: int
    height: int

    @classmethod
    def read(cls, folder: Path, name: str, failure: type[ExportError]) -> Self:
        """The PNG file ``name`` below ``folder``; everything wrong with it is a ``failure``."""
        from PIL import Image

        path = folder / name
        # A name with a null byte is none that could be resolved.
        if (
            "\0" in name
            or PurePosixPath(name).is_absolute()
            or not path.resolve().is_relative_to(folder.resolve())
        ):
            raise failure(f"{folder}: names a picture outside of it, {name!r}. Get the folder again.")
        try:
            content = path.read_bytes()
            with Image.open(io.BytesIO(content), formats=("PNG",)) as picture:
                picture.load()
                return cls(content, picture.width, picture.height)
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise failure(f"{path}: cannot be read ({error}). Get the folder again.") from error

    @classmethod
    def of(cls, pixels: Array) -> Self:
        """From uint8 [Y, X] or [Y, X, 3]."""
        from PIL import Image

        stream = io.BytesIO()
        Image.fromarray(pixels).save(stream, "PNG", optimize=True)
        return cls(stream.getvalue(), pixels.shape[1], pixels.shape[0])

    def pixels(self) -> Array:
        """uint8 [Y, X, 3]."""
        from PIL import Image

        with Image.open(io.BytesIO(self.png), formats=("PNG",)) as picture:
            return np.asarray(picture.convert("RGB"))

    def within(self, side: int) -> Picture:
        """The same, made smaller where it is wider or higher than ``side`` pixels."""
        from PIL import Image

        if max(self.width, self.height) <= side:
            return self
        with Image.open(io.BytesIO(self.png), formats=("PNG",)) as picture:
            smaller = picture.convert("RGB")
        smaller.thumbnail((side, side), Image.Resampling.LANCZOS)
        return Picture.of(np.asarray(smaller))

    @property
    def url(self) -> str:
        """The picture itself as a ``data:`` URL."""
        return f"data:image/png;base64,{base64.b64encode(self.png).decode()}"


@dataclass(frozen=True)
class Difference:
    """How far two pictures of one size are apart.

    Attributes:
        levels: uint8 [Y, X], the largest absolute difference of each pixel's channels.
    """

    levels: Array

    @classmethod
    def between(cls, reference: Picture, actual: Picture) -> Difference | None:
        """Of two pictures; None where they are not of one size."""
        if (reference.width, reference.height) != (actual.width, actual.height):
            return None
        apart = np.abs(reference.pixels().astype(np.int16) - actual.pixels().astype(np.int16))
        return cls(apart.max(axis=-1).astype(np.uint8))

    @property
    def largest(self) -> int:
        """The largest difference, of 255."""
        return int(self.levels.max())

    def amplified(self, factor: int) -> Picture:
        """A map: black where the two are equal, ``factor`` times the difference elsewhere."""
        return Picture.of(np.minimum(self.levels.astype(np.int32) * factor, LEVELS).astype(np.uint8))


def amplification(largest: int) -> int:
    """The largest power of two by which a difference of ``largest`` can be multiplied and still be shown."""
    return 1 if largest == 0 else 1 << (LEVELS // largest).bit_length() - 1
