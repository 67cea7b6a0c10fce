"""Strict reading of TOML and JSON into typed values: an unknown key is an error with the nearest name."""

from __future__ import annotations

import difflib
import json
import math
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mobile_o_export.errors import ConfigError, ExportError


class Strict(BaseModel):
    """Base of everything read from a file: immutable, and nothing unknown passes."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Versioned(BaseModel):
    """What every file of ours says, of whatever version; the rest of it is not looked at."""

    schema_version: int


_IN_OUR_WORDS = {
    "missing": "is missing",
    "too_short": "give at least one",
    "tuple_type": "give a list",
    "dict_type": "give a table",
    "model_type": "give a table",
    "bool_type": "give true or false",
}
"""What to do about an error, by pydantic's type of it; errors of other types say so themselves."""

ModelT = TypeVar("ModelT", bound=BaseModel)

Finite = Annotated[float, Field(allow_inf_nan=False)]
"""A number that can be compared with others."""


def nearest(word: str, known: Iterable[str]) -> str:
    """``" Did you mean 'x'?"``, or nothing where no known word is near."""
    found = difflib.get_close_matches(word, list(known), 1, 0.6)
    return f" Did you mean {found[0]!r}?" if found else ""


MOST_DIGITS = 300
"""Of an integer: as many as a double has room for. Beyond, arithmetic with floats fails, and Python itself
refuses to convert more than 4,300."""

DEEPEST = 64
"""Lists and tables inside one another. What walks the values would overflow the stack on a thousand."""


MOST_WIDTH = 2**24
"""Of a tensor's axis, in any configuration: a hundred times the largest vocabulary. It keeps absurd values
away from what allocates or loops."""

MOST_LAYERS = 256
"""Of a network, in any configuration: twice those of the largest language models."""


def parse_json(text: str | bytes, *, infinities: bool = False) -> Any:
    """The value that the JSON ``text`` stands for; bytes are UTF-8.

    Stricter than the standard library: a key that occurs twice is an error rather than its last value, and so
    are NaN, infinities, numbers too large for a double, unpaired surrogates and deep nesting.

    Args:
        text: what to parse.
        infinities: take ``Infinity`` and ``-Infinity``, which diffusers writes into its configurations.

    Raises:
        ValueError: it is not JSON, or one of these; the message says which.
    """
    try:
        value = json.loads(
            text.decode("utf-8") if isinstance(text, bytes) else text,
            object_pairs_hook=_unique,
            parse_int=_integer,
            parse_float=_float,
            parse_constant=_infinity if infinities else _no_constant,
        )
    except RecursionError as error:
        raise ValueError(_TOO_DEEP) from error
    require_plain(value)
    return value


_TOO_DEEP = f"lists or tables lie more than {DEEPEST} deep in one another"


def require_plain(value: Any) -> None:
    """Raises ValueError where ``value`` nests too deeply, or holds half a character or an endless integer."""
    level, depth = [value], 0
    while level:
        if depth > DEEPEST:
            raise ValueError(_TOO_DEEP)
        following: list[Any] = []
        for item in level:
            if isinstance(item, dict):
                for key in item:
                    _require_text(key)
                following += item.values()
            elif isinstance(item, list):
                following += item
            elif isinstance(item, str):
                _require_text(item)
            elif isinstance(item, int) and abs(item) >= 10**MOST_DIGITS:
                raise ValueError(_TOO_LONG)
        level, depth = following, depth + 1


_TOO_LONG = f"an integer has more than {MOST_DIGITS} digits"


def _require_text(text: str) -> None:
    # Only an escape can smuggle in half a character; the bytes of the file themselves are UTF-8.
    if not text.isascii():
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise ValueError(f"the text {ascii(text)[:60]} holds half a character (a surrogate)") from error


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"the key {ascii(key)[:60]} occurs twice")
        found[key] = value
    return found


def _integer(digits: str) -> int:
    if len(digits) > MOST_DIGITS:
        raise ValueError(_TOO_LONG)
    return int(digits)


def _float(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise ValueError(f"the number {digits[:20]} is too large")
    return value


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not a number")


def _infinity(name: str) -> float:
    return float(name) if name != "NaN" else _no_constant(name)


def read_toml(path: Path, model: type[ModelT]) -> ModelT:
    """The TOML file ``path`` as a ``model``.

    Raises:
        ConfigError: it is not TOML, or breaks the model; the message names file, key and nearest name.
    """
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8-sig"))
        require_plain(data)
    except (ValueError, RecursionError) as error:
        # A ValueError of its own is what tomllib gives for an integer of thousands of digits.
        reason = _TOO_LONG if "integer string conversion" in str(error) else error
        raise ConfigError(f"{path}: not valid TOML: {reason}. Correct the file.") from error
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}. Check the path.") from error
    return check(data, model, str(path), ConfigError)


def read_json(path: Path, model: type[ModelT], failure: type[ExportError]) -> ModelT:
    """The JSON file ``path`` as a ``model``; everything wrong with it is a ``failure``."""
    try:
        data = parse_json(path.read_bytes())
    except ValueError as error:
        raise failure(f"{path}: not valid JSON: {error}. The file is damaged; get it again.") from error
    except OSError as error:
        raise failure(f"{path}: cannot be read: {error.strerror}.") from error
    return check(data, model, str(path), failure)


def check(data: Any, model: type[ModelT], where: str, failure: type[ExportError]) -> ModelT:
    """``data`` as a ``model``, or a ``failure`` that names what is wrong at ``where``."""
    try:
        return model.model_validate(data)
    except ValidationError as error:
        errors = error.errors(include_url=False)
        # A misspelt key is also a missing one; the misspelling is what the user has to see.
        first = next((item for item in errors if item["type"] == "extra_forbidden"), errors[0])
        key = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            name = str(first["loc"][-1])
            hint = nearest(name, _fields(model, first["loc"][:-1]))
            raise failure(f"{where}: unknown key {key!r}.{hint} Remove or rename it.") from error
        message = _IN_OUR_WORDS.get(first["type"], first["msg"].removeprefix("Value error, "))
        place = f"{where}: {key}" if key else where
        raise failure(f"{place}: {message.removesuffix('.')}.") from error


def _fields(model: type[BaseModel], location: tuple[int | str, ...]) -> list[str]:
    """The keys allowed at ``location`` inside ``model``, for the hint."""
    schema = model.model_json_schema()
    definitions = schema.get("$defs", {})
    node = schema
    for part in location:
        if isinstance(part, int):
            node = node.get("items", {})
        else:
            node = node.get("properties", {}).get(part, node.get("additionalProperties"))
        node = _resolved(node, definitions)
    return list(node.get("properties", {}))


def _resolved(node: Any, definitions: dict[str, Any]) -> dict[str, Any]:
    """The JSON Schema that ``node`` stands for: what it refers to, what it is where it is not null."""
    if not isinstance(node, dict):
        return {}
    for option in node.get("anyOf", ()):
        if option.get("type") != "null":
            return _resolved(option, definitions)
    return definitions[node["$ref"].rsplit("/", 1)[1]] if "$ref" in node else node
