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


def require_own_data(path: Path) -> None:
    """Looks at every file that the model in ``path`` keeps tensors in.

    Raises:
        GateError: it is no model, or one of those files is not a regular file of its folder.
    """
    members = Members(path.parent, GateError, _REMEDY)
    places = {
        entry.value
        for tensor in _tensors(_graph_alone(members, path.name))
        for entry in tensor.external_data
        if entry.key == "location"
    }
    for place in sorted(places):
        members.file(place)


class Stored:
    """The model in ``path``, whose tensors' numbers are read when they are asked for.

    ``onnx.load`` refuses external data that has several hard links (1.23: "potential hardlink attack"), as
    files have in backups and caches that keep equal ones once.

    Attributes:
        model: the ``ModelProto`` without what other files hold of it.

    Raises:
        GateError: it is no model.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._members = Members(path.parent, GateError, _REMEDY)
        self.model = _graph_alone(self._members, path.name)

    def whole(self, tensor: Any) -> Any:
        """A ``TensorProto`` of the model with its numbers in it.

        Raises:
            GateError: its bytes are not in a file of the model's folder.
        """
        if not tensor.external_data:
            return tensor
        entries = {entry.key: entry.value for entry in tensor.external_data}
        try:
            start, length = int(entries.get("offset", 0)), int(entries["length"])
        except (KeyError, ValueError) as error:
            raise GateError(f"{self._path}: {tensor.name} has no place in a file. {_REMEDY}") from error
        with self._members.open(entries.get("location", "")) as file:
            file.seek(max(0, start))
            content = file.read(max(0, length))
        if start < 0 or len(content) != length:
            raise GateError(f"{self._path}: {tensor.name} lies beyond the end of its file. {_REMEDY}")
        return type(tensor)(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims, raw_data=content)


def load_whole(path: Path) -> Any:
    """The model in ``path`` with the numbers of every tensor in it; errors as ``Stored``."""
    stored = Stored(path)
    for tensor in _tensors(stored.model):
        tensor.CopyFrom(stored.whole(tensor))
    return stored.model


def _graph_alone(members: Members, name: str) -> Any:
    """The model in the file ``name``, without what other files hold of it."""
    import onnx
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    try:
        return onnx.load_model_from_string(members.read(name))
    except DecodeError as error:
        raise GateError(f"{members.folder / name}: is no ONNX model ({error}). {_REMEDY}") from error


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
