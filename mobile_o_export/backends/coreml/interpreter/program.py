"""The parts of an ML Program that matter to run it, as frozen values read from its protobuf."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mobile_o_export.backends.coreml.interpreter.errors import DamagedPackageError
from mobile_o_export.backends.coreml.interpreter.tensor_type import Port, TensorType, type_from_proto
from mobile_o_export.backends.coreml.interpreter.weights import Constant, WeightStore

if TYPE_CHECKING:
    from mobile_o_export.backends.coreml.interpreter.description import ImagePort, Limits


@dataclass(frozen=True)
class Reference:
    """An argument that names a value of an enclosing block."""

    name: str


Binding = Reference | Constant


@dataclass(frozen=True, eq=False)
class NamedType:
    """A value's name and declared type."""

    name: str
    type: TensorType


@dataclass(frozen=True, eq=False)
class Operation:
    """One operation; ``inputs`` includes the attributes of ``const`` and of iOS 16's ``constexpr_*``."""

    type: str
    name: str
    inputs: Mapping[str, tuple[Binding, ...]]
    outputs: tuple[NamedType, ...]
    blocks: tuple[Block, ...]

    @cached_property
    def results(self) -> tuple[str, ...]:
        """The names of its outputs."""
        return tuple(output.name for output in self.outputs)

    @cached_property
    def types(self) -> tuple[TensorType, ...]:
        """The types of its outputs."""
        return tuple(output.type for output in self.outputs)


@dataclass(frozen=True, eq=False)
class Block:
    """Operations in order, the names a block is entered with and those it gives back."""

    inputs: tuple[NamedType, ...]
    outputs: tuple[str, ...]
    operations: tuple[Operation, ...]


@dataclass(frozen=True, eq=False)
class MilFunction:
    """One function of a package: its signature and its code.

    ``images`` says which inputs are pictures, ``image_outputs`` which outputs; ``limits`` which shapes inputs
    of several shapes may have.
    """

    name: str
    opset: str
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    states: tuple[Port, ...]
    block: Block = field(repr=False)
    package: Path
    weights: WeightStore = field(repr=False)
    images: Mapping[str, ImagePort] = field(default_factory=dict)
    image_outputs: Mapping[str, ImagePort] = field(default_factory=dict)
    limits: Mapping[str, Limits] = field(default_factory=dict)

    def op_counts(self) -> dict[str, int]:
        """How often each type of operation occurs, nested blocks included, most frequent first."""
        counts: dict[str, int] = {}
        _count(self.block, counts)
        return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


@dataclass(frozen=True, eq=False)
class MilProgram:
    """A package's functions by name, and the weights they share."""

    path: Path
    functions: dict[str, MilFunction]
    weights: WeightStore = field(repr=False)


def program_from_proto(proto: Any, path: Path, store: WeightStore) -> MilProgram:
    """The program in an ``MILSpec.Program`` message, its constants located through ``store``."""
    functions = {
        name: _function(name, proto.functions[name], path, store) for name in sorted(proto.functions)
    }
    if not functions:
        raise DamagedPackageError(f"{path} holds no function; export it again")
    return MilProgram(path, functions, store)


def _function(name: str, proto: Any, path: Path, store: WeightStore) -> MilFunction:
    if proto.opset not in proto.block_specializations:
        raise DamagedPackageError(f"{path}: function {name} has no code for its opset {proto.opset!r}")
    signature = tuple(_named(value) for value in proto.inputs)
    block = _block(proto.block_specializations[proto.opset], f"{path}: function {name}", store)
    types = {value.name: value.type for value in (*signature, *_produced(block))}
    outputs: list[Port] = []
    for output in block.outputs:
        if output not in types:
            raise DamagedPackageError(f"{path}: function {name} returns {output!r}, which nothing produces")
        outputs.append(_port(NamedType(output, types[output])))
    return MilFunction(
        name=name,
        opset=proto.opset,
        inputs=tuple(_port(value) for value in signature if not value.type.is_state),
        outputs=tuple(outputs),
        states=tuple(_port(value) for value in signature if value.type.is_state),
        block=block,
        package=path,
        weights=store,
    )


def _block(proto: Any, where: str, store: WeightStore) -> Block:
    block = Block(
        inputs=tuple(_named(value) for value in proto.inputs),
        outputs=tuple(proto.outputs),
        operations=tuple(_operation(operation, where, store) for operation in proto.operations),
    )
    seen: set[str] = set()
    for value in (*block.inputs, *_produced(block)):
        if value.name in seen:
            raise DamagedPackageError(f"{where} defines {value.name!r} twice")
        seen.add(value.name)
    return block


def _operation(proto: Any, where: str, store: WeightStore) -> Operation:
    outputs = tuple(_named(value) for value in proto.outputs)
    name = _operation_name(proto, outputs)
    inputs: dict[str, tuple[Binding, ...]] = {}
    if proto.type == "const" or proto.type.startswith("constexpr_"):
        for key in proto.attributes:
            if key != "name":
                inputs[key] = (store.constant_from_proto(proto.attributes[key], f"{name}.{key}"),)
    for key in proto.inputs:
        bindings: list[Binding] = []
        for binding in proto.inputs[key].arguments:
            if binding.WhichOneof("binding") == "name":
                bindings.append(Reference(binding.name))
            else:
                bindings.append(store.constant_from_proto(binding.value, f"{name}.{key}"))
        inputs[key] = tuple(bindings)
    blocks = tuple(_block(block, where, store) for block in proto.blocks)
    return Operation(proto.type, name, inputs, outputs, blocks)


def _operation_name(proto: Any, outputs: tuple[NamedType, ...]) -> str:
    if "name" in proto.attributes:
        return str(proto.attributes["name"].immediateValue.tensor.strings.values[0])
    return outputs[0].name if outputs else "(unnamed)"


def _named(proto: Any) -> NamedType:
    return NamedType(proto.name, type_from_proto(proto.type))


def _port(value: NamedType) -> Port:
    return Port(value.name, value.type.shape, value.type.dtype)


def _produced(block: Block) -> tuple[NamedType, ...]:
    return tuple(output for operation in block.operations for output in operation.outputs)


def _count(block: Block, counts: dict[str, int]) -> None:
    for operation in block.operations:
        counts[operation.type] = counts.get(operation.type, 0) + 1
        for nested in operation.blocks:
            _count(nested, counts)
