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

if TYPE_CHECKING:
    import torch

_MODEL_PATH = "@model_path/"


@dataclass(frozen=True)
class BlobSource:
    """A constant whose bytes lie in a weight file."""

    file: str
    offset: int


@dataclass(frozen=True, eq=False)
class ImmediateSource:
    """A constant whose value stands in the program itself: an array, or a string."""

    value: NDArray[np.generic] | str


@dataclass(frozen=True, eq=False)
class Constant:
    """A constant: its type, its source, and a key that is equal for equal constants of one package."""

    type: TensorType
    source: BlobSource | ImmediateSource
    key: Hashable


class WeightStore:
    """The weight files of one package, and the tensors that its interpreters share.

    One store belongs to one program, so that functions which name the same blob (prefill and decode)
    share the tensor made from it.
    """

    def __init__(self, model_folder: Path, package: Path) -> None:
        self._model_folder = model_folder
        self._package = package
        self._files: dict[str, WeightFile] = {}
        self._tensors: dict[Hashable, tuple[torch.Tensor, ...]] = {}

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
            return Constant(declared, source, ("blob", source.file, source.offset, declared))
        if kind != "immediateValue":
            raise DamagedPackageError(f"{self._package}: constant {what} has no value")
        try:
            value = _immediate(proto.immediateValue, declared)
        except (ValueError, IndexError, OverflowError) as error:
            raise DamagedPackageError(
                f"{self._package}: constant {what} does not hold the {declared} it declares: {error}"
            ) from error
        content = value if isinstance(value, str) else value.tobytes()
        return Constant(declared, ImmediateSource(value), ("immediate", declared, content))

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
        if isinstance(constant.source.value, str):
            raise UnsupportedOpError(f"{self._package}: a string constant is used where a tensor belongs")
        return constant.source.value

    def _file(self, name: str) -> WeightFile:
        if name not in self._files:
            if not name.startswith(_MODEL_PATH):
                raise DamagedPackageError(f"{self._package}: weight file {name!r} is not below {_MODEL_PATH}")
            try:
                path = (self._model_folder / name.removeprefix(_MODEL_PATH)).resolve()
                found = path.is_file()
            # A name that the file system does not take.
            except (OSError, ValueError) as error:
                raise DamagedPackageError(
                    f"{self._package}: weight file {name[:60]!r} cannot be: {error}"
                ) from error
            if not path.is_relative_to(self._model_folder.resolve()):
                raise DamagedPackageError(
                    f"{self._package}: weight file {name!r} lies outside of the package"
                )
            if not found:
                raise DamagedPackageError(f"{self._package} lacks its weight file {name}; export it again")
            self._files[name] = WeightFile(path)
        return self._files[name]


def _immediate(proto: Any, declared: TensorType) -> NDArray[np.generic] | str:
    """The value of an ``ImmediateValue`` message.

    Types narrower than 32 bits other than (u)int16 travel as packed bytes, (u)int16 as ``ints``
    (``_tensor_field_by_type`` in coremltools' ``backend/mil/helper.py``).
    """
    if proto.WhichOneof("value") != "tensor":
        return np.zeros(0)  # A list or dictionary: carried along unopened, no implemented op reads one.
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
