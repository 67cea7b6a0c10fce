"""Picture file → the vision encoder's input, as the model's CLIP image processor does it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mobile_o_export.errors import UsageError
from mobile_o_export.parity.metrics import Array

if TYPE_CHECKING:
    from PIL.Image import Image as Picture


def load_picture(path: Path) -> Picture:
    """The picture in ``path`` as RGB, upright.

    Raises:
        UsageError: there is no such file, or it is no picture.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with Image.open(path) as picture:
            return ImageOps.exif_transpose(picture).convert("RGB")
    except FileNotFoundError as error:
        raise UsageError(f"{path}: no such image file.") from error
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UsageError(f"{path}: cannot be read as an image: {error}. Give a PNG or JPEG file.") from error


def pixel_values(picture: Picture, size: int, *, square: bool) -> Array:
    """RGB picture → float32 [1, 3, size, size] in 0..1.

    Bicubic resize of the shortest edge to ``size``, centre crop, division by 255. With ``square``
    (``image_aspect_ratio`` "pad") black bars make the picture square first.
    """
    from PIL import Image

    if square and picture.width != picture.height:
        edge = max(picture.size)
        canvas = Image.new("RGB", (edge, edge))
        canvas.paste(picture, ((edge - picture.width) // 2, (edge - picture.height) // 2))
        picture = canvas
    short, long = sorted(picture.size)
    scaled_long = int(size * long / short)
    new_size = (size, scaled_long) if picture.width <= picture.height else (scaled_long, size)
    if picture.size != new_size:
        picture = picture.resize(new_size, Image.Resampling.BICUBIC)
    left, top = (picture.width - size) // 2, (picture.height - size) // 2
    pixels = np.asarray(picture.crop((left, top, left + size, top + size)), np.float32)
    return np.ascontiguousarray(pixels.transpose(2, 0, 1)[None] / np.float32(255.0))
