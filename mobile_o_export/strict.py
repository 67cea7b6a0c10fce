"""Strict reading of TOML and JSON into typed values: an unknown key is an error with the nearest name."""

from __future__ import annotations

import difflib
import json
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

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


def nearest(word: str, known: Iterable[str]) -> str:
    """``" Did you mean 'x'?"``, or nothing where no known word is near."""
    found = difflib.get_close_matches(word, list(known), 1, 0.6)
    return f" Did you mean {found[0]!r}?" if found else ""


def read_toml(path: Path, model: type[ModelT]) -> ModelT:
    """The TOML file ``path`` as a ``model``.

    Raises:
        ConfigError: it is not TOML, or breaks the model; the message names file, key and nearest name.
    """
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(f"{path}: not valid TOML: {error}. Correct the file.") from error
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}. Check the path.") from error
    return check(data, model, str(path), ConfigError)


def read_json(path: Path, model: type[ModelT], failure: type[ExportError]) -> ModelT:
    """The JSON file ``path`` as a ``model``; everything wrong with it is a ``failure``."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
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
