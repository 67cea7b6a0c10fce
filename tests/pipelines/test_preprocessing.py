"""Picture files as they come from phones, cameras and mails: upright pixels, or a refusal that helps."""

from __future__ import annotations

import io
import re
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mobile_o_export.errors import UsageError
from mobile_o_export.parity.metrics import Array
from mobile_o_export.pipelines.preprocessing import (
    as_picture,
    as_rgb,
    cropped_pixels,
    load_picture,
    pixel_values,
    unit_image,
)

BICUBIC = Image.Resampling.BICUBIC

Place = tuple[int, int]
"""x, y."""


def scene(width: int, height: int) -> Array:
    """uint8 [height, width, 3]: smooth, so that JPEG keeps it, and no two corners alike."""
    y, x = np.mgrid[0:height, 0:width]
    right, down = x / max(1, width - 1), y / max(1, height - 1)
    return np.stack([255 * right, 255 * down, 200 - 120 * right * down], axis=-1).astype(np.uint8)


UPRIGHT = scene(36, 20)
STORED: dict[int, Array] = {
    1: UPRIGHT,
    2: UPRIGHT[:, ::-1],
    3: UPRIGHT[::-1, ::-1],
    4: UPRIGHT[::-1],
    5: UPRIGHT.swapaxes(0, 1),
    6: np.rot90(UPRIGHT),
    7: UPRIGHT[::-1, ::-1].swapaxes(0, 1),
    8: np.rot90(UPRIGHT, -1),
}
"""What a camera stores of one scene for each EXIF orientation (TIFF 6.0: where row 0 and column 0 are)."""


def exif(orientation: int) -> Image.Exif:
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags


@pytest.mark.parametrize("kind", ["png", "tif", "webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_is_turned_upright(tmp_path: Path, orientation: int, kind: str) -> None:
    path = tmp_path / f"turned.{kind}"
    stored = Image.fromarray(np.ascontiguousarray(STORED[orientation]))
    stored.save(path, exif=exif(orientation), **({"lossless": True} if kind == "webp" else {}))
    picture = load_picture(path)
    assert picture.mode == "RGB"
    assert np.array_equal(np.asarray(picture), UPRIGHT)
    with Image.open(path) as opened:
        assert np.array_equal(np.asarray(as_rgb(opened)), UPRIGHT)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_so_are_photographs(tmp_path: Path, orientation: int) -> None:
    """JPEG of quality 95 without chroma subsampling is off by a few levels; a wrong turn by hundreds."""
    path = tmp_path / "turned.jpg"
    stored = Image.fromarray(np.ascontiguousarray(STORED[orientation]))
    stored.save(path, quality=95, subsampling=0, exif=exif(orientation))
    assert np.abs(np.asarray(load_picture(path)).astype(int) - UPRIGHT).max() <= 8


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_an_orientation_that_does_not_exist_turns_nothing(tmp_path: Path, orientation: int) -> None:
    path = tmp_path / "odd.png"
    Image.fromarray(UPRIGHT).save(path, exif=exif(orientation))
    assert np.array_equal(np.asarray(load_picture(path)), UPRIGHT)


def test_exif_data_of_a_wrong_type_is_no_matter(tmp_path: Path) -> None:
    """Pillow's exif_transpose writes the other tags anew, and fails on this one with struct.error.

    The width tag (0x0100, a number) holds a fraction. Viewers show the picture.
    """
    ifd = struct.pack("<H", 2)
    ifd += struct.pack("<HHIHH", 0x0112, 3, 1, 6, 0)
    ifd += struct.pack("<HHII", 0x0100, 5, 1, 38)
    content = b"II*\0" + struct.pack("<I", 8) + ifd + struct.pack("<I", 0) + struct.pack("<II", 1, 3)
    path = tmp_path / "odd.png"
    Image.fromarray(np.ascontiguousarray(STORED[6])).save(path, exif=b"Exif\0\0" + content)
    assert np.array_equal(np.asarray(load_picture(path)), UPRIGHT)


GREY = UPRIGHT[:, :, 0]


def with_alpha(mode: str, colour: Array) -> Image.Image:
    alpha = Image.fromarray(np.linspace(0, 255, 36 * 20).reshape(20, 36).astype(np.uint8))
    picture = Image.fromarray(colour)
    picture.putalpha(alpha)
    assert picture.mode == mode
    return picture


def palette() -> Image.Image:
    """Two colours, the one at the right transparent."""
    picture = Image.fromarray((np.arange(36) >= 18).astype(np.uint8)[None].repeat(20, axis=0), "P")
    picture.putpalette([200, 100, 50, 10, 20, 30])
    return picture


TWO_COLOURS = np.where((np.arange(36) >= 18)[None, :, None], [[10, 20, 30]], [[200, 100, 50]])
CYAN = np.full((20, 36, 4), [255, 0, 0, 0], np.uint8)

MODES: dict[str, tuple[str, Callable[[], Image.Image], Array]] = {
    "alpha": ("png", lambda: with_alpha("RGBA", UPRIGHT), UPRIGHT),
    "grey": ("png", lambda: Image.fromarray(GREY), GREY[..., None]),
    "grey and alpha": ("png", lambda: with_alpha("LA", GREY), GREY[..., None]),
    "16-bit grey": ("png", lambda: Image.fromarray(GREY.astype(np.uint16) * 256 + 255), GREY[..., None]),
    "16-bit grey tiff": ("tif", lambda: Image.fromarray(GREY.astype(np.uint16) * 257), GREY[..., None]),
    "16-bit grey tiff, big-endian": (
        "tif",
        lambda: Image.frombytes("I;16B", (36, 20), (GREY.astype(">u2") * 257).tobytes()),
        GREY[..., None],
    ),
    "palette": ("png", palette, np.broadcast_to(TWO_COLOURS, UPRIGHT.shape)),
    "palette gif": ("gif", palette, np.broadcast_to(TWO_COLOURS, UPRIGHT.shape)),
    "one bit": ("png", lambda: Image.fromarray(GREY >= 128), np.where(GREY >= 128, 255, 0)[..., None]),
    "cmyk": (
        "tif",
        lambda: Image.frombytes("CMYK", (36, 20), CYAN.tobytes()),
        np.broadcast_to(np.array([0, 255, 255]), UPRIGHT.shape),
    ),
}


@pytest.mark.parametrize("name", MODES)
def test_every_mode_gives_its_colours(tmp_path: Path, name: str) -> None:
    suffix, make, expected = MODES[name]
    path = tmp_path / f"picture.{suffix}"
    make().save(path)
    picture = load_picture(path)
    assert (picture.mode, picture.size) == ("RGB", (36, 20))
    assert np.array_equal(np.asarray(picture), np.broadcast_to(expected, UPRIGHT.shape))


def test_transparent_colours_count_as_others(tmp_path: Path) -> None:
    path = tmp_path / "palette.png"
    palette().save(path, transparency=1)
    assert np.array_equal(np.asarray(load_picture(path)), np.broadcast_to(TWO_COLOURS, UPRIGHT.shape))


def test_a_cmyk_photograph(tmp_path: Path) -> None:
    """As print shops mail them; Adobe's are inverted in the file, which Pillow undoes."""
    path = tmp_path / "print.jpg"
    Image.fromarray(UPRIGHT).convert("CMYK").save(path, quality=95, subsampling=0)
    assert np.abs(np.asarray(load_picture(path)).astype(int) - UPRIGHT).max() <= 8


def test_of_an_animation_the_first_frame_is_taken(tmp_path: Path) -> None:
    path = tmp_path / "moving.gif"
    palette().save(path, save_all=True, append_images=[Image.new("P", (36, 20))])
    assert np.array_equal(np.asarray(load_picture(path)), np.broadcast_to(TWO_COLOURS, UPRIGHT.shape))


@pytest.mark.parametrize(
    ("size", "scaled", "corner"),
    [
        # The long side is rounded down, and so are the crop's offsets, as in transformers' CLIP processor.
        ((97, 61), (50, 32), (9, 0)),
        ((61, 97), (32, 50), (0, 9)),
        ((33, 32), (33, 32), (0, 0)),
        ((101, 100), (32, 32), (0, 0)),
        ((7, 5), (44, 32), (6, 0)),
        ((3, 200), (32, 2133), (0, 1050)),
        ((20, 20), (32, 32), (0, 0)),
    ],
)
def test_the_centre_is_cropped(size: Place, scaled: Place, corner: Place) -> None:
    picture = Image.fromarray(scene(*size))
    left, top = corner
    expected = np.asarray(picture.resize(scaled, BICUBIC))[top : top + 32, left : left + 32]
    assert expected.shape == (32, 32, 3)
    found = cropped_pixels(picture, 32, square=False)
    assert found.dtype == np.uint8
    assert np.array_equal(found, expected)


def test_a_picture_of_the_right_size_is_left_alone() -> None:
    pixels = scene(32, 32)
    assert np.array_equal(cropped_pixels(Image.fromarray(pixels), 32, square=False), pixels)


@pytest.mark.parametrize(
    ("size", "corner"),
    [((40, 20), (0, 10)), ((20, 40), (10, 0)), ((41, 20), (0, 10)), ((20, 43), (11, 0)), ((30, 30), (0, 0))],
)
def test_square_first_puts_black_bars_around(size: Place, corner: Place) -> None:
    pixels = scene(*size)
    edge, (left, top) = max(size), corner
    padded = np.zeros((edge, edge, 3), np.uint8)
    padded[top : top + size[1], left : left + size[0]] = pixels
    expected = np.asarray(Image.fromarray(padded).resize((32, 32), BICUBIC))
    assert np.array_equal(cropped_pixels(Image.fromarray(pixels), 32, square=True), expected)


def test_the_encoder_s_image_is_in_0_to_1_with_the_channels_first() -> None:
    pixels = scene(32, 32)
    image = pixel_values(Image.fromarray(pixels), 32, square=False)
    assert (image.dtype, image.shape) == (np.float32, (1, 3, 32, 32))
    assert image.flags.c_contiguous
    expected = pixels.astype(np.float64).transpose(2, 0, 1)[None] / 255
    np.testing.assert_allclose(image, expected, rtol=0, atol=1e-7)


def encoded(picture: Image.Image, form: str = "PNG") -> bytes:
    stream = io.BytesIO()
    picture.save(stream, form)
    return stream.getvalue()


def png_of_size(width: int, height: int) -> bytes:
    """A header, and no pixels to speak of: what a decompression bomb looks like."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = [chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(bytes(100))), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def box(brand: bytes) -> bytes:
    """How an ISO base media file of a brand begins."""
    return struct.pack(">I4s4sI", 24, b"ftyp", brand, 0) + b"miaf" + bytes(40)


RANDOM = Image.fromarray(np.random.default_rng(2).integers(0, 256, (40, 60, 3), np.uint8))
CUT_OFF = "cannot be read as an image: .*Give a PNG or JPEG file"
DEEP = "is 32-bit greyscale. Save it with 8 bits a channel"

BAD_FILES: dict[str, tuple[bytes, str]] = {
    "empty": (b"", CUT_OFF),
    "text": (b"this is no picture\n" * 20, CUT_OFF),
    "svg": (
        b'<svg xmlns="http://www.w3.org/2000/svg"></svg>',
        "is SVG, which is not read. Convert it to PNG",
    ),
    "heic": (box(b"heic"), "is HEIC, as iPhones write it, which is not read. Convert it to PNG or JPEG"),
    "heic of several": (box(b"mif1"), "is HEIC"),
    "avif": (box(b"avif"), "is AVIF, which is not read"),
    "moving avif": (box(b"avis"), "is AVIF"),
    "jpeg xl": (b"\xff\x0a" + bytes(50), "is JPEG XL"),
    "jpeg xl in a box": (b"\x00\x00\x00\x0cJXL \r\n\x87\n", "is JPEG XL"),
    "jpeg 2000": (b"\x00\x00\x00\x0cjP  \r\n\x87\n", "is JPEG 2000"),
    "pdf": (b"%PDF-1.7\n", "is PDF"),
    "a film": (box(b"isom"), CUT_OFF),
    "png cut off": (encoded(RANDOM)[:-3000], CUT_OFF),
    "png header only": (encoded(RANDOM)[:33], CUT_OFF),
    "png signature only": (encoded(RANDOM)[:8], CUT_OFF),
    "jpeg cut off": (encoded(RANDOM, "JPEG")[:-800], CUT_OFF),
    "gif cut off": (encoded(RANDOM.quantize(16), "GIF")[:200], CUT_OFF),
    "webp cut off": (encoded(RANDOM, "WEBP")[:200], CUT_OFF),
    "tiff cut off": (encoded(RANDOM, "TIFF")[:200], CUT_OFF),
    "a png's bits flipped": (encoded(RANDOM)[:60] + b"\xff" * 40 + encoded(RANDOM)[100:], CUT_OFF),
    "bomb": (png_of_size(60_000, 60_000), "too large .*Scale the picture down first"),
    "larger than any": (png_of_size(2**31 - 1, 2**31 - 1), "too large .*Scale the picture down first"),
    "no pixels": (png_of_size(0, 0), CUT_OFF),
    "one row": (
        encoded(Image.new("RGB", (10_000, 1))),
        "is 10000 × 1 pixels, more elongated than 100:1. Cut out the part that matters",
    ),
    "one column": (encoded(Image.new("L", (1, 101))), "is 1 × 101 pixels, more elongated than 100:1"),
    "32-bit integers": (encoded(Image.new("I", (20, 20)), "TIFF"), DEEP),
    "32-bit floats": (encoded(Image.new("F", (20, 20)), "TIFF"), DEEP),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_what_is_no_usable_picture_is_refused(tmp_path: Path, name: str) -> None:
    content, message = BAD_FILES[name]
    path = tmp_path / "picture.png"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=f"^{re.escape(str(path))}: .*{message}"):
        load_picture(path)


def test_a_hundred_to_one_is_still_taken(tmp_path: Path) -> None:
    path = tmp_path / "strip.png"
    Image.new("RGB", (300, 3)).save(path)
    assert load_picture(path).size == (300, 3)


def test_no_file(tmp_path: Path) -> None:
    path = tmp_path / "missing.png"
    with pytest.raises(UsageError, match=rf"^{re.escape(str(path))}: no such image file\.$"):
        load_picture(path)


def test_a_folder(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=f"^{re.escape(str(tmp_path))}: {CUT_OFF}"):
        load_picture(tmp_path)


def test_a_name_that_no_file_can_have() -> None:
    with pytest.raises(UsageError, match="cannot be read as an image: embedded null byte"):
        load_picture(Path("a\0b.png"))


def flat(*values: float) -> Array:
    """[1, 3, 1, N] with ``values`` in each channel."""
    return np.broadcast_to(np.array(values, np.float32), (1, 3, 1, len(values)))


def test_a_unit_image_is_in_0_to_1() -> None:
    found = unit_image(flat(-1.5, -1.0, -0.5, 0.0, 1.0, 7.0))
    assert found.dtype == np.float32
    assert np.array_equal(found, flat(0.0, 0.0, 0.25, 0.5, 1.0, 1.0))


def test_a_unit_image_of_half_precision_is_computed_in_single() -> None:
    values = flat(0.1).astype(np.float16)
    assert unit_image(values).tolist() == (values.astype(np.float32) / 2 + 0.5).tolist()


def test_a_picture_is_rounded_and_clipped() -> None:
    """Level n stands for -1 + n / 127.5: a little below and above the middle between 10 and 11."""
    below, above = (-1 + level / 127.5 for level in (10.49, 10.51))
    picture = as_picture(flat(below, above, -9.0, 9.0, -1.0, 1.0))
    assert (picture.mode, picture.size) == ("RGB", (6, 1))
    expected = [[[level] * 3 for level in (10, 11, 0, 255, 0, 255)]]
    assert np.asarray(picture).tolist() == expected


def test_the_channels_of_a_picture_keep_their_places() -> None:
    image = np.zeros((1, 3, 2, 2), np.float32) - 1
    image[0, :, 0, 1] = [1.0, -1.0, 0.2]
    assert np.asarray(as_picture(image)).tolist() == [
        [[0, 0, 0], [255, 0, 153]],
        [[0, 0, 0], [0, 0, 0]],
    ]


def test_a_strip_that_would_have_to_be_squared_is_refused() -> None:
    with pytest.raises(UsageError, match="too large to be squared"):
        cropped_pixels(Image.new("RGB", (14000, 200)), 64, square=True)


def test_a_16_bit_picture_given_as_such_is_not_clipped() -> None:
    deep = Image.fromarray(np.full((8, 8), 0x4020, np.uint16))
    assert np.asarray(as_rgb(deep)).max() == 0x40
