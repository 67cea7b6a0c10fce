"""Calls of functions, unpadded, over graphs that are padded, masked and hand their caches around.

The session knows no component and no vendor: roles and layout letters of the specs say which inputs a
caller gives, which the session makes (masks, lengths, positions), where padding goes and what to cut off.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from mobile_o_export.backends.base import Executor
from mobile_o_export.components.base import Continuity, Extent, FunctionSpec, GraphSpec
from mobile_o_export.errors import GateError, UsageError
from mobile_o_export.parity.metrics import Array
from mobile_o_export.tensors import Role, TensorSpec

SEQUENCE, TOTAL = "S", "M"
MADE_BY_SESSION = (Role.MASK, Role.LENGTH, Role.POSITION, Role.CACHE)


class Session:
    """A component's functions over an executor; keeps the KV cache and the position between calls."""

    def __init__(
        self, functions: Sequence[FunctionSpec], graphs: Sequence[GraphSpec], executor: Executor
    ) -> None:
        self._functions = {function.name: function for function in functions}
        self._graphs = tuple(graphs)
        self._executor = executor
        self._cache: dict[str, Array] = {}
        self._position = 0
        self.graphs_run: set[str] = set()
        self.runtime = executor.runtime

    @property
    def threads(self) -> int | None:
        """How many threads compute, None where the runtime chooses and does not say."""
        return self._executor.threads

    def _contract(self, function: str) -> FunctionSpec:
        if function not in self._functions:
            known = ", ".join(self._functions)
            raise UsageError(f"there is no function {function[:40]!r} here, only {known}")
        return self._functions[function]

    def graphs_for(self, function: str, length: int | None) -> tuple[GraphSpec, ...]:
        """The graphs that can run ``function`` over ``length`` positions, the smallest first."""
        found = [graph for graph in self._graphs if function in graph.functions]
        if length is None:
            return tuple(found)
        fitting = [graph for graph in found if length <= _capacity(graph, function)]
        return tuple(sorted(fitting, key=lambda graph: _capacity(graph, function)))

    def length_of(self, function: str, inputs: Mapping[str, Array]) -> int | None:
        """The sequence length of a call, or None where the function has no sequence axis."""
        for spec in self._contract(function).inputs:
            if SEQUENCE in spec.symbols and spec.name in inputs:
                return int(inputs[spec.name].shape[spec.shape.index(SEQUENCE)])
        return None

    def can_tell(self, graph: GraphSpec, function: str, inputs: Mapping[str, Array]) -> bool:
        """Whether ``graph`` can tell the real positions of ``inputs`` from the padding that it will see.

        It cannot where padding has to be recognised by its zeros and the input is nothing else.
        """
        length = self.length_of(function, inputs)
        if length is None or not graph.zeros_are_padding or length >= _least(graph, function):
            return True
        return any(np.any(inputs[spec.name]) for spec in self._contract(function).inputs)

    def run(self, function: str, inputs: Mapping[str, Array], graph: str | None = None) -> dict[str, Array]:
        """Outputs of ``function`` for unpadded ``inputs``, cut to the unpadded length.

        Args:
            function: its name.
            inputs: every input of the function's contract.
            graph: which graph to use; by default the smallest that fits.

        Raises:
            UsageError: there is no such function; or an input is missing, empty, of another shape, or too
                long for every graph.
            GateError: the graph's outputs are not those of its contract.
        """
        contract = self._contract(function)
        _require_inputs(contract, inputs)
        length = self.length_of(function, inputs)
        if length == 0:
            raise UsageError(f"{function} needs at least one position")
        chosen = self._choose(function, length, graph)
        steps = length if length is not None else 1
        if contract.continuity is Continuity.CONTINUES:
            _require_room(chosen, function, self._position + steps)
        if contract.continuity is Continuity.STARTS:
            self._cache, self._position = {}, 0
            self._executor.reset()
        sizes = {} if length is None else {SEQUENCE: max(length, _least(chosen, function))}
        feed = {
            spec.name: self._made(spec.bind(sizes), steps)
            if spec.role in MADE_BY_SESSION
            else _padded(spec.bind(sizes), inputs[chosen.aliases.get(spec.name, spec.name)])
            for spec in chosen.inputs
        }
        outputs = self._computed(chosen, feed)
        for output, source in chosen.feeds.items():
            if output in outputs:
                self._cache[source] = outputs.pop(output)
        if contract.continuity is not Continuity.STATELESS:
            self._position += steps
        return {spec.name: _cut(spec, outputs[spec.name], length) for spec in contract.outputs}

    def _computed(self, graph: GraphSpec, feed: Mapping[str, Array]) -> dict[str, Array]:
        """The outputs of ``graph``, and of what takes them further, by the contract's names."""
        outputs = self._executor.run(graph.name, feed)
        self.graphs_run.add(graph.name)
        _require_contract(graph, outputs)
        if graph.then:
            (after,) = (found for found in self._graphs if found.name == graph.then)
            return self._computed(after, outputs)
        return {graph.aliases.get(name, name): value for name, value in outputs.items()}

    def _choose(self, function: str, length: int | None, graph: str | None) -> GraphSpec:
        fitting = self.graphs_for(function, length)
        if graph is not None:
            fitting = tuple(candidate for candidate in fitting if candidate.name == graph)
        if not fitting:
            limit = max((_capacity(g, function) for g in self._graphs if function in g.functions), default=0)
            raise UsageError(
                f"{function} over {length} positions fits no exported length; the longest is {limit}. "
                "Shorten the prompt, or export with a longer bucket in the target's [sequence]."
            )
        return fitting[0]

    def _made(self, spec: TensorSpec, steps: int) -> Array:
        """A mask, length, position or cache input for a call of ``steps`` positions."""
        dtype = np.dtype(str(spec.dtype))
        total = self._position + steps
        match spec.role:
            case Role.LENGTH:
                return np.array([steps], dtype)
            case Role.POSITION:
                return np.arange(self._position, total, dtype=dtype).reshape((1, -1)[-len(spec.shape) :])
            case Role.MASK:
                (dim,) = spec.shape[-1:]
                real = total if spec.layout.split()[-1] == TOTAL else steps
                mask = np.zeros((1, dim if isinstance(dim, int) else real), dtype)
                mask[:, :real] = 1
                return mask
            case _:
                if spec.name in self._cache:
                    return self._cache[spec.name]
                return np.zeros(
                    [dim if isinstance(dim, int) else self._position for dim in spec.shape], dtype
                )


def _fits(spec: TensorSpec, value: Array) -> bool:
    """Whether ``value`` has the rank of ``spec`` and each of its fixed sizes."""
    return len(value.shape) == len(spec.shape) and all(
        isinstance(dim, str) or dim == size for dim, size in zip(spec.shape, value.shape, strict=True)
    )


def _require_inputs(contract: FunctionSpec, inputs: Mapping[str, Array]) -> None:
    """Raises UsageError unless ``inputs`` has every input of the contract, in its shape."""
    for spec in contract.inputs:
        if spec.name not in inputs:
            raise UsageError(f"{contract.name} needs the input {spec.name!r}")
        if not _fits(spec, inputs[spec.name]):
            raise UsageError(
                f"{contract.name} takes {spec.name} as {list(spec.shape)} ({spec.layout}), "
                f"not {list(inputs[spec.name].shape)}"
            )


def _require_contract(graph: GraphSpec, outputs: Mapping[str, Array]) -> None:
    """Raises GateError unless a file's outputs are exactly those of its contract: names, shapes, dtypes."""
    expected = {spec.name: spec for spec in graph.outputs}
    if missing := sorted(expected.keys() - outputs.keys()):
        raise GateError(f"{graph.name}: the output {missing[0]!r} is missing")
    if extra := sorted(outputs.keys() - expected.keys()):
        raise GateError(f"{graph.name}: the output {extra[0]!r} is not in the contract")
    for name, spec in expected.items():
        value = outputs[name]
        if not _fits(spec, value):
            raise GateError(
                f"{graph.name}: {name} has shape {list(value.shape)} instead of {list(spec.shape)}"
            )
        if value.dtype != np.dtype(str(spec.dtype)):
            raise GateError(f"{graph.name}: {name} has dtype {value.dtype} instead of {spec.dtype}")


def _require_room(graph: GraphSpec, function: str, positions: int) -> None:
    """Raises UsageError if the KV cache of ``graph`` cannot hold ``positions``."""
    sizes = [
        spec.shape[spec.layout.split().index("T")]
        for spec in (*graph.states, *graph.inputs)
        if spec.role is Role.CACHE and "T" in spec.layout.split()
    ]
    sizes += [
        p.extents[TOTAL].maximum for p in graph.profiles if p.function == function and TOTAL in p.extents
    ]
    limit = min((size for size in sizes if isinstance(size, int)), default=positions)
    if positions > limit:
        raise UsageError(
            f"{function}: position {positions} is beyond the {limit} that the KV cache holds. Shorten the "
            "conversation, or export with a larger context in the target's [sequence]."
        )


def _extent(graph: GraphSpec, function: str) -> Extent | None:
    """The lengths that a dynamic ``graph`` takes in a call of ``function``."""
    found = (profile.extents.get(SEQUENCE) for profile in graph.profiles if profile.function == function)
    return next(found, None)


def _least(graph: GraphSpec, function: str) -> int:
    """The shortest sequence that ``graph`` takes in a call of ``function``."""
    extent = _extent(graph, function)
    return 1 if extent is None else extent.minimum


def _capacity(graph: GraphSpec, function: str) -> int:
    """The longest sequence that ``graph`` takes in a call of ``function``."""
    if (extent := _extent(graph, function)) is not None:
        return extent.maximum
    for spec in graph.inputs:
        axes = spec.layout.split()
        if SEQUENCE in axes and isinstance(size := spec.shape[axes.index(SEQUENCE)], int):
            return size
    return 1


def _padded(spec: TensorSpec, value: Array) -> Array:
    """The caller's input in the graph's dtype, zeros after its end along the sequence axis."""
    value = value.astype(np.dtype(str(spec.dtype)), copy=False)
    room = [
        (0, max(0, dim - size)) if isinstance(dim, int) and axis == SEQUENCE else (0, 0)
        for dim, size, axis in zip(spec.shape, value.shape, spec.layout.split(), strict=True)
    ]
    return np.pad(value, room) if any(after for _, after in room) else value


def _cut(spec: TensorSpec, value: Array, length: int | None) -> Array:
    """An output without what padding computed; a wrong rank is left for the judge to see."""
    axes = spec.layout.split()
    if length is None or SEQUENCE not in spec.symbols or value.ndim != len(axes):
        return value
    index = [slice(None)] * value.ndim
    index[axes.index(SEQUENCE)] = slice(0, length)
    return value[tuple(index)]
