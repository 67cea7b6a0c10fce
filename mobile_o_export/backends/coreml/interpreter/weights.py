"""Constants of a program: where each one's bytes are, and the fp32 tensors made from them."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mobile_o_export.backends.coreml.interpreter import bits
from mobile_o_export.backends.coreml.interpreter.blob import WeightFile
from mobile_o_export.backends.coreml.interpreter.errors import DamagedPackageError, UnsupportedOpError
from mobile_o_export.backends.coreml.interpreter.tensor_type import (
    ELEMENT_TYPES,
    STRING,
    TensorType,
    type_from_proto,
)
from mobile_o_export.members import Members

if TYPE_CHECKING:
    import torch

_MODEL_PATH = "@model_path/"

Immediate = NDArray[np.generic] | str | tuple[str | int, ...]


@dataclass(frozen=True)
class BlobSource:
    """A constant whose bytes lie in a weight file."""

    file: str
    offset: int


@dataclass(frozen=True, eq=False)
class ImmediateSource:
    """A constant whose value stands in the program itself: an array, a string, or a list of classes."""

    value: Immediate


@dataclass(frozen=True, eq=False)
class Constant:
    """A constant: its type, its source, and a key that is equal for equal constants of one package."""

    type: TensorType
    source: BlobSource | ImmediateSource
    key: int


class WeightStore:
    """The weight files of one package, and the tensors that its interpreters share.

    One store belongs to one program, so that functions which name the same blob (prefill and decode)
    share the tensor made from it.
    """

    def __init__(self, model_folder: Path, package: Path) -> None:
        self._model_folder = model_folder
        self._package = package
        self._files: dict[str, WeightFile] = {}
        self._keys: dict[Hashable, int] = {}
        self._tensors: dict[Hashable, tuple[torch.Tensor, ...]] = {}

    def key(self, content: Hashable) -> int:
        """A number for ``content``, the same for equal ones: nested types are hashed once, not each time."""
        return self._keys.setdefault(content, len(self._keys))

    @property
    def kept_count(self) -> int:
        """How many tensors made from weights are kept at the moment."""
        return len(self._tensors)

    def drop(self) -> None:
        """Forget every tensor that is kept; a later run reads the weights again."""
        self._tensors.clear()

    def constant_from_proto(self, proto: Any, what: str) -> Constant:
        """The constant in a ``Value`` message; ``what`` names it in errors.

        Raises:
            DamagedPackageError: the value contradicts its type, or its blob is not there.

        """
        declared = type_from_proto(proto.type)
        kind = proto.WhichOneof("value")
        if kind == "blobFileValue":
            source = BlobSource(proto.blobFileValue.fileName, int(proto.blobFileValue.offset))
            self._file(source.file).check(source.offset, declared)
            return Constant(declared, source, self.key(("blob", source.file, source.offset, declared)))
        if kind != "immediateValue":
            raise DamagedPackageError(f"{self._package}: constant {what} has no value")
        try:
            value = _immediate(proto.immediateValue, declared)
        except (ValueError, IndexError, OverflowError) as error:
            raise DamagedPackageError(
                f"{self._package}: constant {what} does not hold the {declared} it declares: {error}"
            ) from error
        content = value.tobytes() if isinstance(value, np.ndarray) else value
        return Constant(declared, ImmediateSource(value), self.key(("immediate", declared, content)))

    def tensor(self, constant: Constant, *, keep: bool) -> torch.Tensor:
        """The constant as the interpreter holds it (floats as fp32), kept for later if ``keep``."""

        def read() -> tuple[torch.Tensor, ...]:
            from mobile_o_export.backends.coreml.interpreter.values import from_numpy

            return (from_numpy(self.array(constant)),)

        # Immediate values are few bytes each and are asked for at every step.
        return self.derived(constant.key, read, keep=keep or isinstance(constant.source, ImmediateSource))[0]

    def derived(
        self, key: Hashable, make: Callable[[], tuple[torch.Tensor, ...]], *, keep: bool
    ) -> tuple[torch.Tensor, ...]:
        """What ``make`` gives, made once per ``key`` if ``keep``."""
        if key in self._tensors:
            return self._tensors[key]
        made = make()
        if keep:
            self._tensors[key] = made
        return made

    def array(self, constant: Constant) -> NDArray[np.generic]:
        """The constant as stored (fp16 stays fp16, sub-byte integers one a byte), a view where possible."""
        if isinstance(constant.source, BlobSource):
            return self._file(constant.source.file).read(constant.source.offset, constant.type)
        if not isinstance(constant.source.value, np.ndarray):
            raise UnsupportedOpError(f"{self._package}: a constant {constant.type} is used as a tensor")
        return constant.source.value

    def _file(self, name: str) -> WeightFile:
        if name not in self._files:
            if not name.startswith(_MODEL_PATH):
                raise DamagedPackageError(f"{self._package}: weight file {name!r} is not below {_MODEL_PATH}")
            members = Members(self._model_folder, DamagedPackageError, "Export it again.")
            inner = name.removeprefix(_MODEL_PATH)
            if not members.has(inner):
                raise DamagedPackageError(f"{self._package} lacks its weight file {name}; export it again")
            self._files[name] = WeightFile(members.file(inner))
        return self._files[name]


def _immediate(proto: Any, declared: TensorType) -> Immediate:
    """The value of an ``ImmediateValue`` message.

    Types narrower than 32 bits other than (u)int16 travel as packed bytes, (u)int16 as ``ints``
    (``_tensor_field_by_type`` in coremltools' ``backend/mil/helper.py``).
    """
    if proto.WhichOneof("value") == "list":
        return tuple(_label(value.immediateValue.tensor) for value in proto.list.values)
    if proto.WhichOneof("value") != "tensor":
        return np.zeros(0)  # A tuple or dictionary: carried along unopened, no implemented op reads one.
    field = proto.tensor.WhichOneof("value")
    if declared.dtype == STRING:
        # A tensor of strings occurs in class labels only.
        return str(proto.tensor.strings.values[0]) if declared.shape == () else np.zeros(0)
    element = ELEMENT_TYPES.get(declared.dtype)
    if element is None or field is None:
        if declared.element_count == 0:
            return np.zeros([size or 0 for size in declared.shape], element.numpy if element else "f4")
        raise ValueError(f"no value of type {declared.dtype}")
    shape = [-1 if size is None else size for size in declared.shape]
    values = getattr(proto.tensor, field).values
    if field != "bytes":
        return np.array(list(values)).astype(element.numpy).reshape(shape)
    raw = np.frombuffer(values, np.uint8)
    if element.packed:
        count = declared.element_count or 0
        return bits.unpack(raw, element.bits, count, signed=element.name.startswith("int")).reshape(shape)
    return raw.view(element.numpy).reshape(shape)


def _label(tensor: Any) -> str | int:
    """The one value of a class's label."""
    kind = tensor.WhichOneof("value")
    (value,) = getattr(tensor, kind).values
    return str(value) if kind == "strings" else int(value)
