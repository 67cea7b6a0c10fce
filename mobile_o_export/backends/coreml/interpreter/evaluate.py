"""Carries out a plan: one operation after the other, each result let go after its last use."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, cast

from torch import Tensor

from mobile_o_export.backends.coreml.interpreter.errors import EvaluationError
from mobile_o_export.backends.coreml.interpreter.plan import Arguments, Derived, Plan, Source, Step
from mobile_o_export.backends.coreml.interpreter.program import MilFunction, Operation
from mobile_o_export.backends.coreml.interpreter.registry import Call, Held, Implementation, Value
from mobile_o_export.backends.coreml.interpreter.rounding import Rounding
from mobile_o_export.backends.coreml.interpreter.tensor_type import STRING, TensorType
from mobile_o_export.backends.coreml.interpreter.values import LARGE, held_dtype, settle
from mobile_o_export.backends.coreml.interpreter.weights import Constant
from mobile_o_export.errors import ExportError

if TYPE_CHECKING:
    from mobile_o_export.backends.coreml.interpreter.execute import State


class Evaluator:
    """Runs plans of one function; ``where`` names it in errors."""

    def __init__(self, function: MilFunction, where: str, rounding: Rounding, *, keep_weights: bool) -> None:
        self._store = function.weights
        self._states = {port.name for port in function.states}
        self._where = where
        self._rounding = rounding
        self._keep_weights = keep_weights

    def run(
        self,
        plan: Plan,
        environment: dict[str, Held],
        state: State,
        kept: dict[str, Held | None] | None = None,
    ) -> list[Held]:
        """The plan's results; ``environment`` loses a variable after its last use, ``kept`` keeps its own."""
        for step in plan.steps:
            # No local name may hold a result: it would outlive its last use by one step.
            environment.update(
                zip(step.operation.results, self._evaluate(step, environment, state), strict=True)
            )
            if kept:
                kept.update({name: environment[name] for name in step.operation.results if name in kept})
            for name in step.frees:
                environment.pop(name, None)
        return [self._held(source, environment) for source in plan.outputs]

    def restored(self, derived: Derived) -> Tensor:
        """What a ``constexpr_*`` operation gives."""
        return self._tensor(derived, {})

    def _evaluate(self, step: Step, environment: dict[str, Held], state: State) -> tuple[Held, ...]:
        operation = step.operation
        try:
            if step.implementation is None:
                return self._control(step, environment, state)
            return self._call(
                operation, step.implementation, step.arguments, environment, keep=self._keep_weights
            )
        except ExportError:
            raise
        except (RuntimeError, ValueError, IndexError, TypeError, KeyError) as error:
            raise EvaluationError(
                f"op {operation.type!r} ({operation.name}) in {self._where} failed: {error}; "
                "the program is damaged or the interpreter's implementation wrong"
            ) from error

    def _call(
        self,
        operation: Operation,
        implementation: Implementation,
        arguments: Arguments,
        environment: Mapping[str, Held],
        *,
        keep: bool,
    ) -> tuple[Held, ...]:
        """The operation's results; ``keep`` is of its constants."""
        given: dict[str, tuple[Value, ...]] = {
            name: tuple([self._value(source, environment, keep=keep) for source in sources])
            for name, sources in arguments.sources.items()
        }
        given.update(arguments.values)
        call = Call(operation.type, operation.name, given, operation.types, arguments.settings)
        result = implementation.evaluate(call)
        results = result if isinstance(result, tuple) else (result,)
        if len(results) != len(operation.types):
            raise EvaluationError(
                f"op {operation.type!r} ({operation.name}) in {self._where} gave {len(results)} results, "
                f"the program declares {len(operation.types)}"
            )
        # Of several results one may be a part of another.
        sole = len(results) == 1
        return tuple(
            [
                self._settled(call, value, declared, exact=implementation.exact, sole=sole)
                for value, declared in zip(results, operation.types, strict=True)
            ]
        )

    def _settled(self, call: Call, value: Held, declared: TensorType, *, exact: bool, sole: bool) -> Held:
        """A result in the held form of its declared type."""
        if not isinstance(value, Tensor):
            return value
        # The first comparison is fast, and enough unless a size is fixed only at run time.
        if value.shape != declared.shape and not declared.fits(tuple(value.shape)):
            raise EvaluationError(
                f"op {call.op_type!r} ({call.op_name}) in {self._where} gave the shape "
                f"{tuple(value.shape)}, the program declares {declared}"
            )
        if exact and value.dtype is held_dtype(declared.dtype):
            return value
        own = sole and value.numel() >= LARGE and _is_new(value, call)
        return settle(value, declared.dtype, self._rounding, own=own)

    def _control(self, step: Step, environment: dict[str, Held], state: State) -> tuple[Held, ...]:
        """The operations that touch states or run blocks."""
        kind = step.operation.type
        if kind in ("read_state", "write_state"):
            (source,) = step.inputs["input"]
            name = getattr(source, "name", None)
            if name not in self._states:
                raise EvaluationError(f"{kind} {step.operation.name} in {self._where} names no state")
            if kind == "read_state":
                return (state[name],)
            state[name] = self._tensor(step.inputs["data"][0], environment)
            return ()
        if kind == "cond":
            (predicate,) = step.inputs["pred"]
            branch = step.blocks[0] if bool(self._tensor(predicate, environment)) else step.blocks[1]
            return tuple(self.run(branch, dict(environment), state))
        test, body = step.blocks
        values = [self._held(source, environment) for source in step.inputs["loop_vars"]]
        while True:
            entered = {**environment, **dict(zip(test.inputs, values, strict=True))}
            (again,) = self.run(test, entered, state)
            if not again:
                return tuple(values)
            entered = {**environment, **dict(zip(body.inputs, values, strict=True))}
            values = self.run(body, entered, state)

    def _value(self, source: Source, environment: Mapping[str, Held], *, keep: bool) -> Value:
        if isinstance(source, Constant) and source.type.dtype == STRING:
            raise EvaluationError(f"{self._where} uses a tensor of strings, which nothing here reads")
        return self._held(source, environment, keep=keep)

    def _tensor(self, source: Source, environment: Mapping[str, Held]) -> Tensor:
        """A variable or constant that has to be a tensor."""
        value = self._held(source, environment)
        if not isinstance(value, Tensor):
            raise EvaluationError(f"{self._where} uses a list where a tensor belongs")
        return value

    def _held(self, source: Source, environment: Mapping[str, Held], *, keep: bool | None = None) -> Held:
        """A variable or constant; ``keep`` is of constants, by default as the evaluator was told."""
        keep = self._keep_weights if keep is None else keep
        if isinstance(source, Constant):
            return self._store.tensor(source, keep=keep)
        if not isinstance(source, Derived):
            return environment[source.name]

        def decompress() -> tuple[Tensor, ...]:
            # What it is restored from is not asked for again; a constexpr operation gives tensors.
            made = self._call(source.operation, source.implementation, source.arguments, {}, keep=False)
            return cast("tuple[Tensor, ...]", made)

        # Where rounded and unrounded weights differ, interpreters of either kind keep their own.
        key = (source.key, None if source.exact else self._rounding)
        return self._store.derived(key, decompress, keep=keep)[source.output]


def _is_new(value: Tensor, call: Call) -> bool:
    """Whether the memory of a result is that of no argument."""
    place = value.untyped_storage().data_ptr()
    given = [argument for arguments in call.arguments.values() for argument in arguments]
    return all(
        isinstance(argument, str)
        or (isinstance(argument, Tensor) and argument.untyped_storage().data_ptr() != place)
        for argument in given
    )
