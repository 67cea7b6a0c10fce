"""What to do for each operation of a block, worked out once: implementation, constants, last uses."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from mobile_o_export.backends.coreml.interpreter.errors import DamagedPackageError, UnsupportedOpError
from mobile_o_export.backends.coreml.interpreter.ops import CONTROL_OPS
from mobile_o_export.backends.coreml.interpreter.program import (
    Binding,
    Block,
    MilFunction,
    Operation,
    Reference,
)
from mobile_o_export.backends.coreml.interpreter.registry import OPS, Implementation, Labels, Value
from mobile_o_export.backends.coreml.interpreter.tensor_type import ELEMENT_TYPES, STRING
from mobile_o_export.backends.coreml.interpreter.weights import Constant, ImmediateSource, WeightStore


@dataclass(frozen=True, eq=False)
class Arguments:
    """An operation's arguments by parameter, prepared once for all calls.

    ``values`` are those that stand in the program itself, ``settings`` the numbers among them, flattened;
    ``sources`` says where each of the others comes from.
    """

    values: Mapping[str, tuple[Value, ...]]
    settings: Mapping[str, Sequence[float]]
    sources: Mapping[str, tuple[Source, ...]]


@dataclass(frozen=True, eq=False)
class Derived:
    """One output of a ``constexpr_*`` operation, worked out when it is asked for.

    ``key`` names the operation and its constants, so that equal weights of two functions are one; ``exact``
    says that they are equal with and without rounding.
    """

    operation: Operation
    implementation: Implementation
    arguments: Arguments
    output: int
    key: int
    exact: bool


@dataclass(frozen=True)
class Variable:
    """A value that an earlier step, an input or an enclosing block provides."""

    name: str


Source = Variable | Constant | Derived


@dataclass(frozen=True, eq=False)
class Step:
    """One operation to evaluate; ``frees`` are the variables that nothing asks for afterwards."""

    operation: Operation
    implementation: Implementation | None
    inputs: Mapping[str, tuple[Source, ...]]
    arguments: Arguments
    blocks: tuple[Plan, ...]
    frees: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Plan:
    """A block ready to run."""

    inputs: tuple[str, ...]
    steps: tuple[Step, ...]
    outputs: tuple[Source, ...]


def plan_function(function: MilFunction, component: str) -> Plan:
    """The plan of a function's code.

    Raises:
        UnsupportedOpError: an operation, a parameter or an element type that nothing here implements.
        DamagedPackageError: an operation that lacks a parameter or names a value that does not exist.

    """
    where = f"function {function.name!r} of component {component!r} ({function.package.name})"
    names = tuple(port.name for port in (*function.inputs, *function.states))
    return _plan(function.block, names, {}, function.weights, where)


def derived_sources(plan: Plan, seen: set[Hashable]) -> Iterator[Derived]:
    """The compressed constants that a plan asks for, those of nested blocks included.

    Each comes once, and is added to what was ``seen``.
    """
    for source in _sources(plan):
        if isinstance(source, Derived) and (key := (source.operation.name, source.key)) not in seen:
            seen.add(key)
            yield source


def _sources(plan: Plan) -> Iterator[Source]:
    yield from plan.outputs
    for step in plan.steps:
        for sources in step.inputs.values():
            yield from sources
        for nested in step.blocks:
            yield from _sources(nested)


def _plan(
    block: Block, inputs: tuple[str, ...], outer: Mapping[str, Source], store: WeightStore, where: str
) -> Plan:
    scope: dict[str, Source] = {**outer, **{name: Variable(name) for name in inputs}}
    pending: list[Step] = []
    for operation in block.operations:
        what = f"op {operation.type!r} ({operation.name}) in {where}"
        if operation.type == "const":
            scope[operation.outputs[0].name] = _const(operation, what)
            continue
        implementation = _implementation(operation, what)
        sources = {
            name: tuple(_source(binding, scope, what) for binding in bindings)
            for name, bindings in operation.inputs.items()
        }
        if implementation is not None and operation.type.startswith("constexpr_"):
            _derive(operation, implementation, sources, scope, store, what)
            continue
        nested = tuple(
            _plan(inner, tuple(value.name for value in inner.inputs), scope, store, where)
            for inner in operation.blocks
        )
        pending.append(Step(operation, implementation, sources, _arguments(sources, store), nested, ()))
        scope.update({output.name: Variable(output.name) for output in operation.outputs})
    outputs = tuple(_source(Reference(name), scope, f"the results of {where}") for name in block.outputs)
    frees = _last_uses(pending, inputs, outputs)
    steps = tuple(replace(step, frees=freed) for step, freed in zip(pending, frees, strict=True))
    return Plan(inputs, steps, outputs)


def _last_uses(
    steps: list[Step], inputs: tuple[str, ...], outputs: tuple[Source, ...]
) -> list[tuple[str, ...]]:
    """For each step the variables of its block that it is the last to ask for."""
    last = dict.fromkeys(inputs, 0)
    for place, step in enumerate(steps):
        last.update({output.name: place for output in step.operation.outputs})
        last.update({name: place for name in _asked(step) if name in last})
    returned = _variables(outputs)
    frees: list[list[str]] = [[] for _ in steps]
    for name, place in last.items():
        if steps and name not in returned:
            frees[place].append(name)
    return [tuple(names) for names in frees]


def _asked(step: Step) -> set[str]:
    """The variables that a step asks for, its blocks included."""
    names = _variables(source for values in step.inputs.values() for source in values)
    for plan in step.blocks:
        names |= _variables(plan.outputs)
        for nested in plan.steps:
            names |= _asked(nested)
    return names


def _variables(sources: Iterable[Source]) -> set[str]:
    return {source.name for source in sources if isinstance(source, Variable)}


def _const(operation: Operation, what: str) -> Constant:
    values = operation.inputs.get("val", ())
    if len(values) != 1 or not isinstance(values[0], Constant) or len(operation.outputs) != 1:
        raise DamagedPackageError(f"{what} has no value")
    return values[0]


def _implementation(operation: Operation, what: str) -> Implementation | None:
    """The function for ``operation``, ``None`` for those that the evaluator carries out itself."""
    implementation = OPS.get(operation.type)
    control = CONTROL_OPS.get(operation.type)
    if implementation is not None:
        required, known = implementation.required, implementation.required | implementation.optional
    elif control is not None:
        required, known = control, control
    else:
        raise UnsupportedOpError(
            f"the Core ML interpreter has no implementation of {what}; "
            "add one to backends/coreml/interpreter or lower the component without this op"
        )
    given = {name for name, values in operation.inputs.items() if values}
    if missing := sorted(required - given):
        raise DamagedPackageError(f"{what} lacks {', '.join(missing)}")
    if unknown := sorted(given - known):
        raise UnsupportedOpError(f"the Core ML interpreter does not know {', '.join(unknown)} of {what}")
    # What blocks give may be lists; what makes one says so.
    other = operation.blocks or (implementation is not None and implementation.other_results)
    for output in operation.outputs:
        if output.type.dtype not in ELEMENT_TYPES and not other:
            raise UnsupportedOpError(
                f"the Core ML interpreter cannot hold the {output.type.dtype} from {what}"
            )
    return implementation


def _source(binding: Binding, scope: Mapping[str, Source], what: str) -> Source:
    if isinstance(binding, Constant):
        return binding
    if binding.name not in scope:
        raise DamagedPackageError(f"{what} names {binding.name!r}, which nothing before it provides")
    return scope[binding.name]


def _derive(
    operation: Operation,
    implementation: Implementation,
    sources: Mapping[str, tuple[Source, ...]],
    scope: dict[str, Source],
    store: WeightStore,
    what: str,
) -> None:
    exact = implementation.exact
    keys: list[Hashable] = []
    for name in sorted(sources):
        for source in sources[name]:
            if isinstance(source, Variable):
                raise DamagedPackageError(f"{what} depends on {source.name!r}, which is no constant")
            exact &= isinstance(source, Constant) or source.exact
            keys.append((name, source.key, source.output if isinstance(source, Derived) else 0))
    key = store.key((operation.type, operation.types, tuple(keys)))
    arguments = _arguments(sources, store)
    for place, output in enumerate(operation.outputs):
        scope[output.name] = Derived(operation, implementation, arguments, place, key, exact)


def _arguments(inputs: Mapping[str, tuple[Source, ...]], store: WeightStore) -> Arguments:
    values: dict[str, tuple[Value, ...]] = {}
    settings: dict[str, Sequence[float]] = {}
    sources: dict[str, tuple[Source, ...]] = {}
    for name, asked in inputs.items():
        known = tuple(value for source in asked if (value := _immediate(source, store)) is not None)
        if len(known) < len(asked):
            sources[name] = asked
            continue
        values[name] = known
        if len(known) == 1 and isinstance(known[0], Tensor):
            settings[name] = known[0].flatten().tolist()
    return Arguments(values, settings, sources)


def _immediate(source: Source, store: WeightStore) -> Value | None:
    """The value of a constant that stands in the program itself, if it is one that operations read."""
    if not isinstance(source, Constant) or not isinstance(source.source, ImmediateSource):
        return None
    value = source.source.value
    if isinstance(value, str):
        return value
    if isinstance(value, tuple):
        return Labels(value)
    return None if source.type.dtype == STRING else store.tensor(source, keep=True)
