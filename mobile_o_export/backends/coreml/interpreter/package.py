"""From a saved ``.mlpackage`` to its specification message and the folder its weights are named from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mobile_o_export.backends.coreml.interpreter.description import require_described
from mobile_o_export.backends.coreml.interpreter.errors import DamagedPackageError
from mobile_o_export.backends.coreml.interpreter.program import MilProgram, program_from_proto
from mobile_o_export.backends.coreml.interpreter.weights import WeightStore
from mobile_o_export.quiet import quiet_vendor
from mobile_o_export.strict import parse_json


def load_mlpackage(path: Path) -> MilProgram:
    """The ML Program in the package at ``path``, weights mapped but not read.

    Every blob that the program names is located and its type and size compared with the declaration, and
    the declared interface is compared with the program's.

    Raises:
        DamagedPackageError: a file is missing, cut short or no protobuf, a blob is not where and what the
            program says, or the package declares another interface than its program has.

    """
    model_path = root_model_path(path)
    proto = _parse(model_path)
    if proto.WhichOneof("Type") != "mlProgram":
        kind = proto.WhichOneof("Type")
        raise DamagedPackageError(f"{path} holds a {kind or 'empty'} model, not an ML Program")
    store = WeightStore(model_path.parent, path)
    program = program_from_proto(proto.mlProgram, path, store)
    require_described(proto.description, program)
    return program


def root_model_path(path: Path) -> Path:
    """The ``.mlmodel`` that ``Manifest.json`` of the package names as root model."""
    manifest_path = path / "Manifest.json"
    try:
        manifest = parse_json(manifest_path.read_bytes())
        root = manifest["rootModelIdentifier"]
        relative = manifest["itemInfoEntries"][root]["path"]
    except FileNotFoundError as error:
        raise DamagedPackageError(f"{path} is no .mlpackage: {manifest_path} is missing") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DamagedPackageError(f"{manifest_path} does not name a root model: {error!r}") from error
    if not isinstance(relative, str):
        raise DamagedPackageError(f"{manifest_path} names a root model that is no path: {relative!r}")
    try:
        data = (path / "Data").resolve()
        model_path = (data / relative).resolve()
        found = model_path.is_file()
    # A name that the file system does not take.
    except (OSError, ValueError) as error:
        raise DamagedPackageError(f"{manifest_path} names an impossible root model: {error}") from error
    if not model_path.is_relative_to(data):
        raise DamagedPackageError(f"{manifest_path} points outside of the package: {relative}")
    if not found:
        raise DamagedPackageError(f"{path} lacks its root model {relative}; export it again")
    return model_path


def _parse(model_path: Path) -> Any:
    with quiet_vendor():
        from coremltools.proto import Model_pb2
        from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
    model = Model_pb2.Model()
    try:
        model.ParseFromString(model_path.read_bytes())
    except (DecodeError, OSError) as error:
        raise DamagedPackageError(f"{model_path} is no Core ML specification: {error}") from error
    return model
