"""Whether a manifest agrees with itself: components, their graphs, and what runs these by their contracts.

Each function raises ValueError with what is wrong, so that it can be part of a model's own validation.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from mobile_o_export.backends.base import GraphFile
from mobile_o_export.backends.registry import BACKEND_NAMES, backend
from mobile_o_export.components.base import FunctionSpec, GraphSpec, Profile
from mobile_o_export.components.registry import COMPONENT_NAMES
from mobile_o_export.session import MADE_BY_SESSION
from mobile_o_export.strict import nearest
from mobile_o_export.tensors import MOST_POSITIONS, TensorSpec

if TYPE_CHECKING:
    from mobile_o_export.bundle.manifest import TargetEntry

Functions = Mapping[str, tuple[FunctionSpec, ...]]


def require_functions(functions: Functions) -> None:
    """Every component is known, and has functions of different names."""
    for name, contracts in functions.items():
        if name not in COMPONENT_NAMES:
            raise ValueError(
                f"functions: component {name[:40]!r} is unknown.{nearest(name, COMPONENT_NAMES)}"
            )
        if not contracts:
            raise ValueError(f"functions: {name} has none")
        _require_once(f"functions: {name}", [contract.name for contract in contracts])


def require_target(name: str, entry: TargetEntry, functions: Functions) -> None:
    """The target's backend is known, and every component has functions and graphs that realise them."""
    if entry.backend not in BACKEND_NAMES:
        hint = nearest(entry.backend, BACKEND_NAMES)
        raise ValueError(f"{name}: backend {entry.backend[:40]!r} is unknown.{hint}")
    for component, found in entry.components.items():
        if component not in functions:
            raise ValueError(f"{name}: component {component[:40]!r} is not among the functions")
        where = f"{name}, {component}"
        if found.skipped is not None and found.graphs:
            raise ValueError(f"{where}: is skipped and has graphs")
        _require_graphs(where, found.graphs, functions[component])
        if found.graphs and (problem := backend(entry.backend).layout_problem(component, found.graphs)):
            raise ValueError(f"{where}: {problem}")
    if entry.exported and entry.chain_gate is None:
        raise ValueError(f"{name}: has components and no chain_gate")


def _require_graphs(where: str, graphs: Sequence[GraphFile], functions: Sequence[FunctionSpec]) -> None:
    specs = {graph.spec.name: graph.spec for graph in graphs}
    _require_once(f"{where}: the graph", [graph.spec.name for graph in graphs])
    contracts = {contract.name: contract for contract in functions}
    for spec in specs.values():
        place = f"{where}, {spec.name}"
        if unknown := [name for name in spec.functions if name not in contracts]:
            raise ValueError(f"{place}: realises {unknown[0][:40]!r}, which is no function of the component")
        last = spec
        if spec.then:
            last = specs.get(spec.then, spec)
            if last is spec or last.then or last.functions:
                raise ValueError(f"{place}: goes on in {spec.then[:40]!r}, which is no graph for that")
        _require_tensors(place, spec, specs.values())
        for profile in spec.profiles:
            _require_profile(place, profile, spec)
        for function in spec.functions:
            _require_realised(place, contracts[function], spec, last)


def _require_tensors(where: str, spec: GraphSpec, graphs: Iterable[GraphSpec]) -> None:
    inputs = [tensor.name for tensor in spec.inputs]
    outputs = [tensor.name for tensor in spec.outputs]
    _require_once(f"{where}: the input", inputs)
    _require_once(f"{where}: the output", outputs)
    # What one graph gives, another may take back: a prefill's cache a decode step.
    taken = {tensor.name for graph in graphs for tensor in graph.inputs}
    for output, source in spec.feeds.items():
        if output not in outputs or source not in taken:
            raise ValueError(f"{where}: feeds {output[:40]!r} to {source[:40]!r}, and has no such pair")
    if strange := [name for name in spec.aliases if name not in (*inputs, *outputs)]:
        raise ValueError(f"{where}: has another name for {strange[0][:40]!r}, which it lacks")


def _require_profile(where: str, profile: Profile, spec: GraphSpec) -> None:
    if profile.function not in spec.functions:
        raise ValueError(f"{where}: has a profile of {profile.function[:40]!r}, which it does not realise")
    for letter, extent in profile.extents.items():
        if not 0 <= extent.minimum <= extent.typical <= extent.maximum <= MOST_POSITIONS:
            raise ValueError(
                f"{where}: the extent of {letter[:20]} does not ascend from 0 to {MOST_POSITIONS}"
            )


def _require_realised(where: str, contract: FunctionSpec, spec: GraphSpec, last: GraphSpec) -> None:
    """A caller's inputs are all that ``spec`` asks for, and ``last`` gives every output."""
    given = {tensor.name: tensor for tensor in contract.inputs}
    for tensor in spec.inputs:
        if tensor.role in MADE_BY_SESSION:
            if not tensor.shape:
                raise ValueError(f"{where}: {tensor.name[:40]!r} is a single number")
            continue
        name = spec.aliases.get(tensor.name, tensor.name)
        if name not in given:
            raise ValueError(f"{where}: asks for {name[:40]!r}, which {contract.name} does not take")
        _require_like(where, tensor, given[name])
    made = {last.aliases.get(tensor.name, tensor.name): tensor for tensor in last.outputs}
    for tensor in contract.outputs:
        if tensor.name not in made:
            raise ValueError(f"{where}: lacks {tensor.name[:40]!r}, which {contract.name} gives")
        _require_like(where, made[tensor.name], tensor)


def _require_like(where: str, tensor: TensorSpec, contract: TensorSpec) -> None:
    if tensor.layout.split() != contract.layout.split():
        raise ValueError(
            f"{where}: {contract.name} has the layout {tensor.layout[:40]!r}, and is {contract.layout[:40]!r}"
        )
    # A letter is padded to a graph's own size; of a folder of weights nothing else says these.
    for own, size in zip(tensor.shape, contract.shape, strict=True):
        if isinstance(own, int) and isinstance(size, int) and own != size:
            raise ValueError(f"{where}: {contract.name} has the shape {contract.shape}, not {tensor.shape}")


def _require_once(what: str, names: Sequence[str]) -> None:
    if twice := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"{what} {twice[0][:40]!r} is there twice")
