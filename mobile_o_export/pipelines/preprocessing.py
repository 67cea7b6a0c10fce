"""Picture file → the vision encoder's input, as the model's CLIP processor does it; and image → picture."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mobile_o_export.errors import UsageError
from mobile_o_export.parity.metrics import Array
from mobile_o_export.quiet import quiet_vendor

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

MOST_ELONGATED = 100
"""Long side over short side. The short side is scaled to the model's resolution, so that a picture one
pixel high would become gigabytes, of which the centre crop keeps nothing worth seeing."""

MOST_PIXELS = 178_956_970
"""Of a squared picture; as Pillow has it for any."""

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
"""What pictures may be; Pillow would start other programs for some of the rest."""

_OTHER_KINDS = (
    # ISO base media files: the box "ftyp" at byte 4, then the brand (ISO/IEC 14496-12, 23008-12; AVIF's own).
    (
        re.compile(rb"....ftyp(?:heic|heix|heim|heis|hevc|hevx|mif1|msf1)", re.DOTALL),
        "HEIC, as iPhones write it",
    ),
    (re.compile(rb"....ftypavi[fs]", re.DOTALL), "AVIF"),
    (re.compile(rb"\xff\x0a|\x00\x00\x00\x0cJXL "), "JPEG XL"),
    (re.compile(rb"\x00\x00\x00\x0cjP  |\xff\x4f\xff\x51"), "JPEG 2000"),
    (re.compile(rb"%PDF-"), "PDF"),
    (re.compile(rb"\s*(?:<\?xml|<svg)"), "SVG"),
)
"""How files begin that people take for pictures, and that are none of :data:`FORMATS`."""

ORIENTATION_TAG = 0x0112

_GREY_16 = "I;16"
_UNSCALED = ("I", "F")
"""32-bit greyscale: nothing says which value is white."""


def load_picture(path: Path, most_pixels: int | None = None) -> Picture:
    """The picture in ``path`` as :func:`as_rgb` has it.

    Args:
        path: the file.
        most_pixels: width times height, for a picture that the user did not choose.

    Raises:
        UsageError: there is no such file, it is no picture, or it is too large or too elongated to be scaled.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with quiet_vendor(), Image.open(path, formats=FORMATS) as opened:
            if most_pixels is not None and opened.width * opened.height > most_pixels:
                raise UsageError(
                    f"{path}: is {opened.width} × {opened.height} pixels, more than "
                    f"{most_pixels / 1e6:.0f} million. Scale the picture down first."
                )
            return as_rgb(opened, str(path))
    except FileNotFoundError as error:
        raise UsageError(f"{path}: no such image file.") from error
    except Image.DecompressionBombError as error:
        raise UsageError(f"{path}: too large ({error}). Scale the picture down first.") from error
    except (UnidentifiedImageError, OSError, RuntimeError, SyntaxError, ValueError, EOFError) as error:
        if isinstance(error, UnidentifiedImageError) and (kind := _other_kind(path)):
            raise UsageError(f"{path}: is {kind}, which is not read. Convert it to PNG or JPEG.") from error
        raise UsageError(f"{path}: cannot be read as an image: {error}. Give a PNG or JPEG file.") from error


def _other_kind(path: Path) -> str | None:
    """What the file is, where its beginning says so."""
    with path.open("rb") as file:
        start = file.read(64)
    return next((kind for pattern, kind in _OTHER_KINDS if pattern.match(start)), None)


def as_rgb(picture: Picture, name: str = "the picture") -> Picture:
    """``picture`` as 8-bit RGB, upright (EXIF orientation applied), transparency ignored.

    16-bit greyscale keeps its high byte, as 16-bit colour does in Pillow.

    Raises:
        UsageError: it is too elongated to be scaled, or of a kind whose white is anybody's guess.
    """
    from PIL import Image

    _require_scalable(name, picture)
    upright = _upright(picture)
    if upright.mode.startswith(_GREY_16):
        upright = Image.fromarray((np.asarray(upright).astype(np.uint16) >> 8).astype(np.uint8))
    return upright.convert("RGB")


def _upright(picture: Picture) -> Picture:
    """``picture`` turned as its EXIF orientation says; Pillow's own way trips over damage in other tags."""
    from PIL import Image

    # Pillow turns a TIFF itself while it loads it, and then forgets the tag.
    picture.load()

    turns: dict[object, Image.Transpose] = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_270,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_90,
    }
    turn = turns.get(picture.getexif().get(ORIENTATION_TAG))
    return picture.copy() if turn is None else picture.transpose(turn)


def _require_scalable(name: str, picture: Picture) -> None:
    short, long = sorted(picture.size)
    if long > MOST_ELONGATED * short:
        raise UsageError(
            f"{name}: is {picture.width} × {picture.height} pixels, more elongated than {MOST_ELONGATED}:1. "
            "Cut out the part that matters."
        )
    if picture.mode in _UNSCALED:
        raise UsageError(f"{name}: is 32-bit greyscale. Save it with 8 bits a channel.")


def cropped_pixels(picture: Picture, size: int, *, square: bool) -> Array:
    """RGB picture → uint8 [size, size, 3]: bicubic resize of the shortest edge, then the centre.

    With ``square`` (``image_aspect_ratio`` "pad") black bars make the picture square first.

    Raises:
        UsageError: it would have to be squared, and is too large for that.
    """
    from PIL import Image

    if square and picture.width != picture.height:
        edge = max(picture.size)
        if edge**2 > MOST_PIXELS:
            raise UsageError(
                f"a picture of {picture.width} × {picture.height} pixels is too large to be squared. "
                "Scale it down first."
            )
        canvas = Image.new("RGB", (edge, edge))
        canvas.paste(picture, ((edge - picture.width) // 2, (edge - picture.height) // 2))
        picture = canvas
    short, long = sorted(picture.size)
    scaled_long = int(size * long / short)
    new_size = (size, scaled_long) if picture.width <= picture.height else (scaled_long, size)
    if picture.size != new_size:
        picture = picture.resize(new_size, Image.Resampling.BICUBIC)
    left, top = (picture.width - size) // 2, (picture.height - size) // 2
    return np.asarray(picture.crop((left, top, left + size, top + size)))


def pixel_values(picture: Picture, size: int, *, square: bool) -> Array:
    """RGB picture → the encoder's image, float32 [1, 3, size, size] in 0..1."""
    pixels = cropped_pixels(picture, size, square=square).astype(np.float32)
    return np.ascontiguousarray(pixels.transpose(2, 0, 1)[None] / np.float32(255.0))


def unit_image(image: Array) -> Array:
    """The VAE's image [1, 3, O, O], nominally in -1..1 → float32 in 0..1, clipped."""
    unit: Array = np.clip(image.astype(np.float32) / np.float32(2.0) + np.float32(0.5), 0.0, 1.0)
    return unit


def as_picture(image: Array) -> Picture:
    """The VAE's image [1, 3, O, O], nominally in -1..1 → an 8-bit RGB picture, each value rounded."""
    from PIL import Image

    pixels = np.rint(unit_image(image)[0].transpose(1, 2, 0) * 255.0).astype(np.uint8)
    return Image.fromarray(np.ascontiguousarray(pixels))
