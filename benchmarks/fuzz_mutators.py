"""Damage to files, by chance from a seed: bytes, lines, and JSON values replaced by what they must not be."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any

DEEP = "[" * 70 + "]" * 70
DEEPER = "[" * 100_000

STRANGE: tuple[str, ...] = (
    "null", "true", "false", "0", "-1", "1", "2147483648", "4294967295", "9223372036854775808",
    "1" + "0" * 299, "1" * 5000, "1.5", "-0.0", "1e-320", "1e308", "1e999", "NaN", "Infinity", "-Infinity",
    '""', '"x"', '"../x"', '"\\u0000"', '"\\ud800"', '"Infinity"', '"1"', "[]", "{}", "[null]", "[[]]", "[0]",
    '{"x": 1}', DEEP, DEEPER, '"' + "y" * 5000 + '"', '"float99"', "[1, 2, 3, 4, 5, 6, 7, 8, 9]",
)  # fmt: skip
"""JSON text that stands where another type, or another magnitude, belongs."""

Mutator = Callable[[bytes, random.Random], bytes]


def flipped(content: bytes, chance: random.Random) -> bytes:
    """A few bits turned."""
    found = bytearray(content)
    for _ in range(chance.choice((1, 1, 3, 10))):
        if found:
            found[chance.randrange(len(found))] ^= 1 << chance.randrange(8)
    return bytes(found)


def head_flipped(content: bytes, chance: random.Random) -> bytes:
    """Bits turned at the beginning, where formats keep what they are."""
    return flipped(content[:256], chance) + content[256:]


def cut(content: bytes, chance: random.Random) -> bytes:
    """The end missing."""
    return content[: chance.randrange(len(content) + 1)]


def spliced(content: bytes, chance: random.Random) -> bytes:
    """A piece of it, or of zeros or ones, where it does not belong."""
    size = chance.choice((1, 4, 8, 64))
    start, place = (chance.randrange(len(content) + 1) for _ in range(2))
    piece = chance.choice((content[start : start + size], bytes(size), b"\xff" * size))
    return content[:place] + piece + content[place + chance.choice((0, len(piece))) :]


def replaced(content: bytes, chance: random.Random) -> bytes:
    """JSON with one or two values that are something else, missing, or there twice."""
    value = json.loads(content)
    holes: dict[str, str] = {}
    for number in range(chance.choice((1, 1, 1, 2))):
        _replace(value, chance, f"@hole{number}@", holes)
    text = json.dumps(value)
    for hole, other in holes.items():
        text = text.replace(f'"{hole}"', other)
    return text.encode()


def _replace(value: Any, chance: random.Random, hole: str, holes: dict[str, str]) -> None:
    """Puts ``hole`` somewhere into ``value``; ``holes`` says what the text there will be."""
    places = list(_places(value, chance))
    if not places:
        return
    owner, key = chance.choice(places)
    match chance.randrange(8):
        case 0 if isinstance(owner, dict):
            del owner[key]
        case 1 if isinstance(owner, dict):
            # The same key again, with another value.
            same = json.dumps(owner.pop(key))
            owner[hole] = 0
            holes[hole] = f"{json.dumps(key)}: {same}, {json.dumps(key)}"
        case 2 if isinstance(owner, list):
            owner.insert(chance.randrange(len(owner) + 1), owner[key])
        case 3 if isinstance(owner, dict):
            owner[chance.choice(("unknown", key + "x", ""))] = owner.pop(key)
        case _:
            owner[key] = hole
            holes[hole] = chance.choice(STRANGE)


def _places(value: Any, chance: random.Random, depth: int = 0) -> Any:
    """(container, key) of values at all depths; of long lists and tables a few."""
    keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in keys if len(keys) <= 12 else chance.sample(list(keys), 12):
        yield value, key
        yield from _places(value[key], chance, depth + 1)


def one_line_replaced(content: bytes, chance: random.Random) -> bytes:
    """JSON lines of which one is changed like a whole JSON file."""
    lines = content.split(b"\n")
    at = chance.choice([number for number, line in enumerate(lines) if line.strip()])
    lines[at] = replaced(lines[at], chance)
    return b"\n".join(lines)


TOML_STRANGE = (
    "", "true", "0", "-1", "2147483648", "1" + "0" * 299, "1" * 5000, "nan", "inf", "-inf", "1e999", '""',
    '"x"', "[]", "{}", "[[]]", "1979-05-27", "0x" + "f" * 600, DEEP, "[" * 5000, '"\\u0000"', "'''",
)  # fmt: skip


def toml_replaced(content: bytes, chance: random.Random) -> bytes:
    """TOML with a line's value changed, or a line missing or there twice."""
    lines = content.decode().split("\n")
    at = chance.randrange(len(lines))
    match chance.randrange(6):
        case 0:
            del lines[at]
        case 1:
            lines.insert(at, lines[at])
        case 2:
            lines[at] = lines[at].replace("e", "ee", 1)
        case _:
            settings = [number for number, line in enumerate(lines) if "=" in line and line[0] != "#"]
            at = chance.choice(settings)
            lines[at] = f"{lines[at].split('=')[0]}= {chance.choice(TOML_STRANGE)}"
    return "\n".join(lines).encode()


def safetensors_replaced(content: bytes, chance: random.Random) -> bytes:
    """A header whose JSON is changed, its length written anew."""
    length = int.from_bytes(content[:8], "little")
    header = replaced(content[8 : 8 + length], chance)
    return len(header).to_bytes(8, "little") + header + content[8 + length :]


BYTES: tuple[Mutator, ...] = (flipped, head_flipped, cut, spliced)
JSON: tuple[Mutator, ...] = (replaced, replaced, replaced, replaced, replaced, flipped, cut, spliced)
JSON_LINES: tuple[Mutator, ...] = (one_line_replaced, one_line_replaced, one_line_replaced, flipped, cut)
TOML: tuple[Mutator, ...] = (toml_replaced, toml_replaced, toml_replaced, flipped, cut)
SAFETENSORS: tuple[Mutator, ...] = (safetensors_replaced, safetensors_replaced, *BYTES)
