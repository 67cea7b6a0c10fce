"""Test vectors for apps: what tokenizer, preprocessing and random numbers have to give, with inputs to try.

An app that passes them sees and draws what the reference does; each is a way in which one has differed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np

from mobile_o_export.bundle.manifest import VECTORS_FOLDER, Damage
from mobile_o_export.errors import BundleError, ExportError
from mobile_o_export.members import Members, entries
from mobile_o_export.parity.metrics import Array
from mobile_o_export.pipelines import noise
from mobile_o_export.pipelines.preprocessing import cropped_pixels, load_picture
from mobile_o_export.pipelines.prompts import IMAGE_TOKEN, Task
from mobile_o_export.pipelines.settings import Settings
from mobile_o_export.pipelines.tasks import tokenize
from mobile_o_export.tokenizer import Tokenizer

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

TEXTS = (
    "a red cube to the left of a blue sphere",
    "Don't say I'll: it's 12345, 1,000.50 or 3/4!",
    "  two  spaces,\ta tab\nand a new line ",
    "Grüße aus Žilina, façade naïve — 25 °C",
    "e\u0301 is not always é; ﬁ is a ligature",
    "一只红色的狐狸在雪地里，东京タワー",
    "السلام عليكم ورحمة الله",
    "नमस्ते, यह एक परीक्षण है",
    "👩🏽‍🚀🇯🇵 and a 🎈",
    "a sign that reads <|im_end|> or </s>",
)
"""Contractions, numbers, white space, accents, combining marks, scripts without spaces, right to left, joined
emoji, and a special token in the user's words."""

PICTURES_FOLDER = "pictures"

SEEDS = (0, 1, 42, 20260220, noise.LARGEST_SEED)
NOISE_TOLERANCE = 1e-5
"""By how much logarithms and cosines of another mathematical library may make the numbers differ."""

JPEG_LEVELS = 3
"""By how much another JPEG codec or bicubic filter may differ, of 255."""

LISTED_WORDS, LISTED_VALUES = 8, 64
SAMPLES = 5
"""Pixels listed along each axis."""


def write_vectors(settings: Settings, tokenizer: Tokenizer, folder: Path) -> None:
    """Writes ``tokenizer.json``, ``noise.json``, ``preprocessing.json`` and its pictures into ``folder``."""
    pictures = folder / PICTURES_FOLDER
    pictures.mkdir()
    contents = {
        "tokenizer": {"cases": [_tokens(settings, tokenizer, task, text) for task in Task for text in TEXTS]},
        "noise": _noise(settings.numbers.latent_shape),
        "preprocessing": {
            "pixels": "uint8 RGB, row by row, after resize and crop, before the division by 255",
            "tolerance": "sha256 is Pillow's; another bicubic filter or JPEG decoder may differ by 3 levels",
            "cases": _pictures(settings, pictures),
        },
    }
    for name, content in contents.items():
        text = json.dumps({"schema": 1, **content}, indent=1, ensure_ascii=False)
        (folder / f"{name}.json").write_text(text + "\n", encoding="utf-8")


def _tokens(settings: Settings, tokenizer: Tokenizer, task: Task, text: str) -> dict[str, Any]:
    """A prompt and its ids, those before and after the place of the image apart."""
    filled = settings.templates.fill(task, text)
    prompt = tokenize(tokenizer, filled, settings.numbers.image_tokens)
    case: dict[str, Any] = {"task": str(task), "text": text, "prompt": filled, "length": prompt.length}
    if prompt.after is None:
        return {**case, "ids": prompt.before[0].tolist()}
    assert IMAGE_TOKEN in filled
    return {
        **case,
        "ids_before_image": prompt.before[0].tolist(),
        "ids_after_image": prompt.after[0].tolist(),
    }


def _noise(shape: tuple[int, ...]) -> dict[str, Any]:
    """The recipe, and what it gives for some seeds."""
    cases = []
    for seed in SEEDS:
        latent = noise.initial_latent(seed, shape)
        flat = latent.reshape(-1)
        cases.append(
            {
                "seed": seed,
                "words": noise.generator_words(seed, LISTED_WORDS).tolist(),
                "first_values": [float(value) for value in flat[:LISTED_VALUES]],
                "last_value": float(flat[-1]),
                "mean": float(flat.mean(dtype=np.float64)),
                "standard_deviation": float(flat.std(dtype=np.float64)),
            }
        )
    return {
        "recipe": (noise.__doc__ or "").splitlines(),
        "latent_shape": list(shape),
        "tolerance": NOISE_TOLERANCE,
        "cases": cases,
    }


def _pictures(settings: Settings, folder: Path) -> list[dict[str, Any]]:
    """Writes the pictures into ``folder``; what has to become of each."""
    wanted = settings.preprocessing
    cases = []
    for name, (meaning, write) in _drawn(wanted.image_size).items():
        write(folder / name)
        pixels = cropped_pixels(load_picture(folder / name), wanted.image_size, square=wanted.square_first)
        at = np.linspace(0, wanted.image_size - 1, SAMPLES).astype(int).tolist()
        cases.append(
            {
                "picture": f"{folder.name}/{name}",
                "shows": meaning,
                "shape": list(pixels.shape),
                "sha256": sha256(pixels.tobytes()).hexdigest(),
                "mean": [round(float(value), 3) for value in pixels.mean(axis=(0, 1))],
                "samples": [{"x": x, "y": y, "rgb": pixels[y, x].tolist()} for y in at for x in at],
            }
        )
    return cases


def _drawn(size: int) -> Mapping[str, tuple[str, Callable[[Path], None]]]:
    """Pictures by file name: what each is a test of, and how it is written."""
    from PIL import Image

    plain = Image.fromarray(_scene(97, 61))
    large = Image.fromarray(_scene(size * 7 // 4 + 3, size * 5 // 4))
    tall = Image.fromarray(_scene(21, 240))
    alpha = plain.copy()
    alpha.putalpha(Image.fromarray(np.linspace(0, 255, 97 * 61).reshape(61, 97).astype(np.uint8)))
    grey = plain.convert("L")
    deep = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)

    def rotated(orientation: int) -> Callable[[Path], None]:
        exif = Image.Exif()
        exif[0x0112] = orientation
        return lambda path: plain.save(path, quality=95, subsampling=0, exif=exif)

    return {
        "plain.png": ("odd sizes, enlarged", _png(plain)),
        "large.png": ("made smaller, with antialiasing", _png(large)),
        "tall.png": ("a long side that is cropped", _png(tall)),
        "turned.jpg": ("EXIF orientation 6: to be turned clockwise", rotated(6)),
        "upside-down.jpg": ("EXIF orientation 3: to be turned by half", rotated(3)),
        "transposed.jpg": ("EXIF orientation 5: mirrored and turned", rotated(5)),
        "alpha.png": ("transparency, to be ignored", _png(alpha)),
        "palette.png": ("a palette", _png(plain.quantize(16))),
        "grey.png": ("8-bit greyscale", _png(grey)),
        "grey16.png": ("16-bit greyscale, whose high byte counts", _png(deep)),
    }


def _png(picture: Picture) -> Callable[[Path], None]:
    return lambda path: picture.save(path, "PNG", optimize=True)


def _scene(width: int, height: int) -> Array:
    """uint8 [height, width, 3]: ramps, a disc off the centre and a grid; no two corners alike."""
    y, x = np.mgrid[0:height, 0:width].astype(np.float64)
    red = 255 * x / max(1, width - 1)
    green = 255 * y / max(1, height - 1)
    disc = (x - 0.3 * width) ** 2 + (y - 0.4 * height) ** 2 < (0.2 * min(width, height)) ** 2
    blue = np.where(disc, 230.0, 60.0)
    grid = (x.astype(int) // 8 + y.astype(int) // 8) % 2 == 0
    scene = np.stack([red, green, blue], axis=-1)
    scene[grid & ~disc] *= 0.75
    return scene.astype(np.uint8)


def other_vectors(home: Path, settings: Settings, tokenizer: Tokenizer) -> Iterator[Damage]:
    """The files in ``home`` that are not what this version makes of the bundle's settings and tokenizer."""
    with TemporaryDirectory(prefix="mobile-o-vectors-") as work:
        again = Path(work)
        write_vectors(settings, tokenizer, again)
        wanted, found = _names(again), _names(home)
        for name in sorted(wanted ^ found):
            yield Damage(f"{VECTORS_FOLDER}/{name}", "is missing" if name in wanted else "is no vector")
        shipped, drawn = Members(home, BundleError), Members(again, BundleError)
        for name in sorted(wanted & found):
            if shipped.read(name) == drawn.read(name):
                continue
            if name.startswith(f"{PICTURES_FOLDER}/"):
                problem = _other_picture(shipped.file(name), drawn.file(name))
            else:
                problem = _other_vectors(shipped.text(name), drawn.text(name))
            if problem:
                yield Damage(f"{VECTORS_FOLDER}/{name}", problem)


def _names(folder: Path) -> set[str]:
    """Every file below ``folder``."""
    return {name for name, _ in entries(folder)}


def _other_picture(path: Path, again: Path) -> str:
    """How a picture differs from the one that is drawn again; another library may write other bytes."""
    try:
        wanted = np.asarray(load_picture(again)).astype(np.int16)
        pixels = np.asarray(load_picture(path, most_pixels=wanted.shape[0] * wanted.shape[1])).astype(
            np.int16
        )
    except ExportError as error:
        return str(error)
    allowed = JPEG_LEVELS if path.suffix == ".jpg" else 0
    if pixels.shape != wanted.shape or int(np.abs(pixels - wanted).max()) > allowed:
        return "shows something else"
    return ""


def _other_vectors(text: str, again: str) -> str:
    """The first place where two files of vectors differ by more than they allow."""
    try:
        value = json.loads(text)
    except ValueError as error:
        return f"is not valid JSON: {error}"
    place = _difference(value, json.loads(again))
    return f"has another value at {place}" if place is not None else ""


def _difference(value: Any, wanted: Any, place: str = "") -> str | None:
    """Where two JSON values differ, numbers with fractions by more than the vectors' tolerance."""
    if type(value) is not type(wanted):
        return place or "its top"
    if isinstance(wanted, dict):
        if value.keys() != wanted.keys():
            return place or "its top"
        pairs: Iterable[tuple[Any, Any, Any]] = ((key, value[key], wanted[key]) for key in wanted)
    elif isinstance(wanted, list):
        if len(value) != len(wanted):
            return place or "its top"
        pairs = ((index, *pair) for index, pair in enumerate(zip(value, wanted, strict=True)))
    elif isinstance(wanted, float):
        return None if abs(value - wanted) <= NOISE_TOLERANCE else place
    else:
        return None if value == wanted else place
    found = (_difference(one, other, f"{place}/{key}") for key, one, other in pairs)
    return next((where for where in found if where is not None), None)
