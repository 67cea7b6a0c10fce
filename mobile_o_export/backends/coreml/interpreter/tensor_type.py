"""Element types and shapes as a MIL program declares them.

The numbers are those of ``enum DataType`` in coremltools' ``mlmodel/format/MIL.proto``; the blob codes
those of ``enum class BlobDataType`` in ``mlmodel/src/MILBlob/Blob/BlobDataType.hpp``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple


@dataclass(frozen=True)
class ElementType:
    """One element type: its name, its width in storage, and how NumPy spells one unpacked element."""

    name: str
    proto_code: int
    bits: int
    numpy: str
    blob_code: int | None = None

    @property
    def packed(self) -> bool:
        """Whether storage packs several elements into a byte."""
        return self.bits < 8


_ELEMENT_TYPES = (
    ElementType("bool", 1, 8, "bool"),
    ElementType("float16", 10, 16, "<f2", 1),
    ElementType("float32", 11, 32, "<f4", 2),
    ElementType("float64", 12, 64, "<f8"),
    ElementType("int8", 21, 8, "i1", 4),
    ElementType("int16", 22, 16, "<i2", 6),
    ElementType("int32", 23, 32, "<i4", 14),
    ElementType("int64", 24, 64, "<i8"),
    ElementType("int4", 25, 4, "i1", 8),
    ElementType("uint8", 31, 8, "u1", 3),
    ElementType("uint16", 32, 16, "<u2", 7),
    ElementType("uint32", 33, 32, "<u4", 15),
    ElementType("uint64", 34, 64, "<u8"),
    ElementType("uint4", 35, 4, "u1", 11),
    ElementType("uint2", 36, 2, "u1", 10),
    ElementType("uint1", 37, 1, "u1", 9),
    ElementType("uint6", 38, 6, "u1", 13),
    ElementType("uint3", 39, 3, "u1", 12),
)
ELEMENT_TYPES: dict[str, ElementType] = {element.name: element for element in _ELEMENT_TYPES}
_NAMES: dict[int, str] = {element.proto_code: element.name for element in _ELEMENT_TYPES}
STRING = "string"
_STRING_CODE = 2


@dataclass(frozen=True)
class TensorType:
    """Element type and shape of a value; ``None`` stands for a size that is fixed only at run time.

    ``dtype`` is a name of :data:`ELEMENT_TYPES`, ``"string"``, or ``"list"``, ``"tuple"``,
    ``"dictionary"`` and ``"proto type N"`` for what the interpreter carries around unopened.
    """

    dtype: str
    shape: tuple[int | None, ...]
    is_state: bool = False
    any_rank: bool = False
    """Even how many sizes there are is fixed only at run time; then ``shape`` says nothing."""

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Whether a value of ``shape`` is of this type."""
        return self.any_rank or fits(shape, self.shape)

    @property
    def element_count(self) -> int | None:
        """Number of elements, or ``None`` where a size is unknown."""
        count = 1
        for size in (None,) if self.any_rank else self.shape:
            if size is None:
                return None
            count *= size
        return count

    def __str__(self) -> str:
        sizes = ", ".join("?" if size is None else str(size) for size in self.shape)
        return f"{self.dtype}[{sizes}]"


def fits(shape: tuple[int, ...], declared: tuple[int | None, ...]) -> bool:
    """Whether ``shape`` has the declared sizes, as far as they are declared."""
    return len(shape) == len(declared) and all(
        wanted is None or size == wanted for size, wanted in zip(shape, declared, strict=True)
    )


class Port(NamedTuple):
    """One input, output or state of a function."""

    name: str
    shape: tuple[int | None, ...]
    dtype: str


def type_from_proto(proto: Any) -> TensorType:
    """The type in a ``ValueType`` message; a state gives its wrapped tensor with ``is_state`` set."""
    kind = proto.WhichOneof("type")
    if kind == "stateType":
        wrapped = type_from_proto(proto.stateType.wrappedType)
        return TensorType(wrapped.dtype, wrapped.shape, is_state=True)
    if kind != "tensorType":
        return TensorType((kind or "missing").removesuffix("Type"), ())
    tensor = proto.tensorType
    shape = tuple(
        int(dim.constant.size) if dim.WhichOneof("dimension") == "constant" else None
        for dim in tensor.dimensions
    )
    if tensor.dataType == _STRING_CODE:
        return TensorType(STRING, shape)
    name = _NAMES.get(tensor.dataType, f"proto type {tensor.dataType}")
    return TensorType(name, shape, any_rank=any(dim.unknown.variadic for dim in tensor.dimensions))
