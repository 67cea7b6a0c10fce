"""Where an .onnx file says that its weights lie: in files of its own folder, looked at before a runtime does.

A runtime opens whatever ``location`` names. ``onnx/onnx.proto``, ``TensorProto.external_data``: "location
(required) - POSIX filesystem path relative to the directory where the ONNX protobuf model was stored".
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mobile_o_export.errors import GateError
from mobile_o_export.members import Members

_REMEDY = "Get the bundle again, or export it again."


def load(path: Path) -> Any:
    """The model in ``path`` with all of its tensors.

    Raises:
        GateError: as :func:`require_own_data`.
    """
    from onnx.external_data_helper import load_external_data_for_model

    model = require_own_data(path)
    load_external_data_for_model(model, str(path.parent))
    return model


def require_own_data(path: Path) -> Any:
    """The model in ``path``, after a look at every file that it keeps tensors in; those are not loaded.

    Raises:
        GateError: it is no model, or one of those files is not a regular file of its folder.
    """
    import onnx
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    members = Members(path.parent, GateError, _REMEDY)
    try:
        model = onnx.load_model_from_string(members.read(path.name))
    except DecodeError as error:
        raise GateError(f"{path}: is no ONNX model ({error}). {_REMEDY}") from error
    places = {
        entry.value for tensor in _tensors(model) for entry in tensor.external_data if entry.key == "location"
    }
    for place in sorted(places):
        members.file(place)
    return model


def _tensors(message: Any) -> Iterator[Any]:
    """Every tensor in ``message``, in whatever graph, attribute or function."""
    waiting = [message]
    while waiting:
        found = waiting.pop()
        if found.DESCRIPTOR.name == "TensorProto":
            yield found
            continue
        for field, value in found.ListFields():
            if field.type == field.TYPE_MESSAGE:
                waiting += value if field.is_repeated else [value]
