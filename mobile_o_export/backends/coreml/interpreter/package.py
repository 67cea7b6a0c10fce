"""From a saved ``.mlpackage`` to its specification message and the folder its weights are named from."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from mobile_o_export.backends.coreml.interpreter.description import require_described
from mobile_o_export.backends.coreml.interpreter.errors import DamagedPackageError
from mobile_o_export.backends.coreml.interpreter.messages import model_message
from mobile_o_export.backends.coreml.interpreter.program import MilProgram, program_from_proto
from mobile_o_export.backends.coreml.interpreter.weights import WeightStore
from mobile_o_export.members import MemberName, Members
from mobile_o_export.strict import parse_json

_REMEDY = "Export it again."


def load_mlpackage(path: Path | str) -> MilProgram:
    """The ML Program in the package at ``path``, weights mapped but not read.

    Every blob that the program names is located and its type and size compared with the declaration, and
    the declared interface is compared with the program's.

    Raises:
        DamagedPackageError: a file is missing, cut short or no protobuf, a blob is not where and what the
            program says, or the package declares another interface than its program has.

    """
    path = Path(path)
    model_path = root_model_path(path)
    proto = _parse(model_path)
    if proto.WhichOneof("Type") != "mlProgram":
        kind = proto.WhichOneof("Type")
        raise DamagedPackageError(f"{path} holds a {kind or 'empty'} model, not an ML Program")
    store = WeightStore(model_path.parent, path)
    program = program_from_proto(proto.mlProgram, path, store)
    interfaces = require_described(proto.description, program)
    functions = {
        name: replace(
            function,
            images=interfaces[name].images,
            image_outputs=interfaces[name].image_outputs,
            limits=interfaces[name].limits,
        )
        for name, function in program.functions.items()
    }
    return replace(program, functions=functions)


def root_model_path(path: Path) -> Path:
    """The ``.mlmodel`` that ``Manifest.json`` of the package names as root model."""
    members = Members(path, DamagedPackageError, _REMEDY)
    manifest_path = path / "Manifest.json"
    if not members.has(manifest_path.name):
        raise DamagedPackageError(f"{path} is no .mlpackage: {manifest_path} is missing")
    content = members.read(manifest_path.name)
    try:
        manifest = parse_json(content)
        root = manifest["rootModelIdentifier"]
        relative = MemberName(manifest["itemInfoEntries"][root]["path"])
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DamagedPackageError(f"{manifest_path} does not name a root model: {error!r}") from error
    if not members.has(f"Data/{relative}"):
        raise DamagedPackageError(f"{path} lacks its root model {relative}; export it again")
    return members.file(f"Data/{relative}")


def _parse(model_path: Path) -> Any:
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    model = model_message()()
    try:
        model.ParseFromString(Members(model_path.parent, DamagedPackageError, _REMEDY).read(model_path.name))
    except DecodeError as error:
        raise DamagedPackageError(f"{model_path} is no Core ML specification: {error}") from error
    return model
