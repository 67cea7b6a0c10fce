"""What a saved package holds: its constants as the runtime restores them, its code, its interface."""

from __future__ import annotations

import json
from collections.abc import Hashable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mobile_o_export.backends.contents import Contents, Interface, Port
from mobile_o_export.backends.coreml.interpreter import Interpreter, Rounding, load_mlpackage
from mobile_o_export.backends.coreml.interpreter.errors import DamagedPackageError
from mobile_o_export.backends.coreml.interpreter.package import root_model_path
from mobile_o_export.backends.coreml.interpreter.weights import BlobSource, Constant
from mobile_o_export.digests import array_digest
from mobile_o_export.members import Members
from mobile_o_export.strict import parse_json

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mobile_o_export.backends.coreml.interpreter.program import Block, MilFunction, MilProgram
    from mobile_o_export.backends.coreml.interpreter.tensor_type import Port as MilPort
    from mobile_o_export.parity.metrics import Array

MANIFEST = "Manifest.json"
"""Of a package: which of its files is the model, and which are weights."""


def package_contents(package: Path, entries: Mapping[str, str], component: str) -> Contents:
    """The contents of ``package``, whose functions ``entries`` names by graph.

    Raises:
        DamagedPackageError: the package contradicts itself.
        UnsupportedOpError: it needs an operation that the interpreter lacks.
    """
    program = load_mlpackage(package)
    constants = {place: array_digest(values) for place, values in program_constants(program, component)}
    interfaces = {
        graph: _interface(program.functions[entry])
        for graph, entry in entries.items()
        if entry in program.functions
    }
    return Contents(constants, {package.name: _code(package)}, interfaces)


def program_constants(program: MilProgram, component: str) -> Iterator[tuple[str, Array]]:
    """Every constant in the weight files of a package by its place, those that are compressed first."""
    for place, _, values in restored(program, component):
        yield place, values
    yield from _stored(program)


def restored(program: MilProgram, component: str) -> Iterator[tuple[str, str, Array]]:
    """What every compressed constant restores: where it stands, its operation's name, its numbers.

    What several functions share, indices and palettes alike, comes once, from the first of them.
    """
    seen: set[Hashable] = set()
    for name, function in program.functions.items():
        interpreter = Interpreter(function, rounding=Rounding.TYPED, component=component, keep_weights=False)
        for operation, values in interpreter.restored(seen):
            yield f"{name}/{operation}", operation, values
            del values  # not kept while the next is restored


def _stored(program: MilProgram) -> Iterator[tuple[str, Array]]:
    """Every constant in the weight files that no operation restores, once."""
    seen: set[Hashable] = set()
    for name, function in program.functions.items():
        for operation, constant in _constants(function.block):
            if isinstance(constant.source, BlobSource) and constant.key not in seen:
                seen.add(constant.key)
                yield f"{name}/{operation}", program.weights.array(constant)


def _constants(block: Block) -> Iterator[tuple[str, Constant]]:
    """The constants of a block and of those inside, by operation and argument, but for ``constexpr_*``."""
    for operation in block.operations:
        for inner in operation.blocks:
            yield from _constants(inner)
        if not operation.type.startswith("constexpr_"):
            for key, bindings in operation.inputs.items():
                for index, binding in enumerate(bindings):
                    if isinstance(binding, Constant):
                        place = operation.name if operation.type == "const" else f"{operation.name}.{key}"
                        yield f"{place}[{index}]" if len(bindings) > 1 else place, binding


def _interface(function: MilFunction) -> Interface:
    return Interface(*(_ports(ports) for ports in (function.inputs, function.outputs, function.states)))


def _ports(ports: tuple[MilPort, ...]) -> tuple[Port, ...]:
    return tuple(Port(port.name, port.dtype, port.shape) for port in ports)


def _code(package: Path) -> str:
    """A digest of the specification, and of what the package's own manifest says of its files.

    Immediate values stand in the specification; blobs are named by their place in the weight file.
    """
    from coremltools.proto import Model_pb2

    model = Model_pb2.Model()
    place = root_model_path(package)
    model.ParseFromString(Members(place.parent, DamagedPackageError).read(place.name))
    manifest: dict[str, Any] = parse_json(Members(package, DamagedPackageError).read(MANIFEST))
    root = manifest.get("rootModelIdentifier")
    # Identifiers are random in packages that others wrote; which entry is the root is what they say.
    entries = sorted(
        json.dumps([identifier == root, entry], sort_keys=True)
        for identifier, entry in manifest["itemInfoEntries"].items()
    )
    content = sha256(model.SerializeToString(deterministic=True))
    content.update("\n".join([str(manifest.get("fileFormatVersion")), *entries]).encode())
    return content.hexdigest()
