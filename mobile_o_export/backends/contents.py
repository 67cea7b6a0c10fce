"""What a component's files hold, whatever way it is written down: constants, programs, interfaces.

Two files with the same contents compute the same; a file in which one number, one attribute or one connection
was changed has other contents. Digests leave out what may differ between two writings of one program: dates,
random identifiers, the order of maps.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mobile_o_export.components.base import GraphSpec
    from mobile_o_export.tensors import TensorSpec


@dataclass(frozen=True)
class Port:
    """An input, output or state as a file declares it; ``None`` is a size that varies or is not declared."""

    name: str
    dtype: str
    shape: tuple[int | None, ...]


@dataclass(frozen=True)
class Interface:
    """What one graph takes, gives and keeps, as its file declares it."""

    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    states: tuple[Port, ...] = ()


@dataclass(frozen=True)
class Contents:
    """What the files of one component hold.

    Attributes:
        constants: by name in the file, a digest of the numbers that each constant stands for: of a compressed
            weight those that the runtime restores, of any other those that are stored.
        programs: by name, a digest of everything else in each file: operators, attributes, connections.
        interfaces: by the name of a graph; graphs whose files declare none are not among them.
    """

    constants: Mapping[str, str]
    programs: Mapping[str, str]
    interfaces: Mapping[str, Interface] = field(default_factory=dict)


def differing(recorded: Mapping[str, str], found: Mapping[str, str]) -> list[tuple[str, str]]:
    """Names whose digests differ, and how: changed, missing or added."""
    problems = [(name, "is missing") for name in recorded if name not in found]
    problems += [(name, "was added") for name in found if name not in recorded]
    return problems + [
        (name, "differs") for name, value in found.items() if name in recorded and recorded[name] != value
    ]


def contradiction(spec: GraphSpec, interface: Interface) -> str:
    """How a graph's contract contradicts what its file declares, or an empty string."""
    for kind, wanted, declared in (
        ("input", spec.inputs, interface.inputs),
        ("output", spec.outputs, interface.outputs),
        ("state", spec.states, interface.states),
    ):
        ports = {port.name: port for port in declared}
        names = [tensor.name for tensor in wanted]
        if sorted(names) != sorted(ports):
            return f"its {kind}s are {_listed(ports)}, not {_listed(names)}"
        for tensor in wanted:
            if not _fits(tensor, ports[tensor.name]):
                port = ports[tensor.name]
                sizes = ["?" if size is None else size for size in port.shape]
                agreed = f"{tensor.dtype} {list(tensor.shape)}"
                return f"its {kind} {tensor.name} is {port.dtype} {sizes}, not {agreed}"
    return ""


def _fits(tensor: TensorSpec, port: Port) -> bool:
    """Whether the file's port is the contract's tensor: a letter stands for a size that varies."""
    same_type = port.dtype == str(tensor.dtype)
    return (
        same_type
        and len(port.shape) == len(tensor.shape)
        and all(
            size is None if isinstance(dim, str) else size in (None, dim)
            for dim, size in zip(tensor.shape, port.shape, strict=True)
        )
    )


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names)) or "none"
