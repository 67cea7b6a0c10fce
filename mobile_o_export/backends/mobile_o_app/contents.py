"""What ``llm/`` holds: its weights as MLX restores them, its configuration and tokenizer."""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path

from mobile_o_export.backends.contents import Contents
from mobile_o_export.backends.mobile_o_app.configuration import CONFIG_FILE
from mobile_o_export.backends.mobile_o_app.mlx import INDEX_FILE, WEIGHTS_FILE, read_weights
from mobile_o_export.digests import array_digest, json_digest
from mobile_o_export.errors import GateError
from mobile_o_export.members import Members, entries
from mobile_o_export.strict import parse_json

JSON_FILES = (CONFIG_FILE, INDEX_FILE)


def language_contents(folder: Path) -> Contents:
    """The contents of ``folder``; it declares no interface.

    Raises:
        GateError: a layer's tensors do not fit together.
    """
    constants = {name: array_digest(values) for name, values in read_weights(folder)}
    members = Members(folder, GateError)
    programs = {WEIGHTS_FILE: _layout(members.file(WEIGHTS_FILE))}
    for name, _ in entries(folder):
        if name in JSON_FILES:
            programs[name] = json_digest(parse_json(members.read(name)))
        elif name != WEIGHTS_FILE:
            programs[name] = sha256(members.read(name)).hexdigest()
    return Contents(constants, programs)


def _layout(path: Path) -> str:
    """A digest of the tensors' names, types and shapes, and of the file's metadata."""
    from safetensors import safe_open

    with safe_open(path, framework="numpy") as file:
        tensors = {name: file.get_slice(name) for name in sorted(file.keys())}
        described = {name: [part.get_dtype(), part.get_shape()] for name, part in tensors.items()}
        return json_digest([file.metadata(), described])
