"""Evaluate one function of an ML Program with torch on the CPU."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from mobile_o_export.backends.coreml.interpreter.errors import EvaluationError, InputError
from mobile_o_export.backends.coreml.interpreter.program import MilFunction, Operation
from mobile_o_export.backends.coreml.interpreter.rounding import Rounding
from mobile_o_export.backends.coreml.interpreter.tensor_type import STRING, Port, fits
from mobile_o_export.backends.coreml.interpreter.weights import Constant, ImmediateSource
from mobile_o_export.errors import ExportError

if TYPE_CHECKING:
    from PIL.Image import Image as Picture
    from torch import Tensor

    from mobile_o_export.backends.coreml.interpreter.plan import Plan, Source, Step
    from mobile_o_export.backends.coreml.interpreter.registry import Held, Implementation, Value

State = dict[str, "Tensor"]
"""States by name. A run replaces entries and never writes into a tensor, so ``dict(state)`` is a snapshot."""


class Interpreter:
    """Runs one function.

    ``rounding`` says whether fp16 results are rounded to fp16 after each operation. With
    ``keep_weights`` the fp32 form of each weight is made once and shared by all interpreters over the
    same package; without, weights are read and decompressed at every use and memory stays small.

    Raises:
        UnsupportedOpError: on construction, where the function needs what is not implemented.
        DamagedPackageError: on construction, where the program contradicts itself.

    """

    def __init__(
        self,
        function: MilFunction,
        *,
        component: str,
        rounding: Rounding = Rounding.TYPED,
        keep_weights: bool = True,
    ) -> None:
        from mobile_o_export.backends.coreml.interpreter.plan import plan_function

        self.function = function
        self.component = component
        self.rounding = rounding
        self.keep_weights = keep_weights
        self._plan: Plan = plan_function(function, component)

    def make_state(self) -> State:
        """The function's states, all zero; hand the same one to every function that is to share them."""
        import torch

        from mobile_o_export.backends.coreml.interpreter.values import held_dtype

        return {
            port.name: torch.zeros([size or 0 for size in port.shape], dtype=held_dtype(port.dtype))
            for port in self.function.states
        }

    def run(
        self,
        inputs: Mapping[str, NDArray[Any] | Picture],
        *,
        state: State | None = None,
        also: Collection[str] = (),
    ) -> dict[str, Any]:
        """The function's outputs by name, in their declared types (fp16 as fp32 under ``Rounding.FP32``).

        A classifier gives its class as a ``str`` or ``int``, and a dictionary of each class's probability.
        An output that the package declares as a picture is an array, too: its ``ImagePort`` in the function's
        ``image_outputs`` makes the picture of it.

        ``inputs`` holds one array an input, of its shape and type; under ``Rounding.FP32`` an fp16
        input may come as fp32. An input that the package declares as a picture may come as one of Pillow's.
        ``state`` is updated in place, entry by entry. ``also`` names results on the way, outside of nested
        blocks, that are given as well.

        Raises:
            InputError: a name, shape or type that does not fit, or no state where one is needed.
            EvaluationError: an operation failed.

        """
        import torch

        from mobile_o_export.backends.coreml.interpreter.values import from_numpy, settle

        arrays = self._arrays(inputs)
        self._check(arrays, state)
        kinds = self._kinds(also)
        environment: dict[str, Held] = {}
        kept: dict[str, Held | None] = dict.fromkeys(also)
        with torch.no_grad():
            for port in self.function.inputs:
                given = arrays[port.name]
                held = from_numpy(np.ascontiguousarray(given).reshape(given.shape))
                environment[port.name] = settle(held, port.dtype, self.rounding)
            results = self._run(self._plan, environment, state if state is not None else {}, kept)
        found = {name: self._given(value, kinds[name]) for name, value in kept.items() if value is not None}
        return found | {
            port.name: self._given(value, port.dtype)
            for port, value in zip(self.function.outputs, results, strict=True)
        }

    def restored(self, seen: set[Hashable] | None = None) -> Iterator[tuple[str, NDArray[Any]]]:
        """What every ``constexpr_*`` operation that is used gives, by the operation's name; each once.

        A set that is handed to several functions of one package keeps weights that they share from being
        restored again.
        """
        from mobile_o_export.backends.coreml.interpreter.plan import derived_sources
        from mobile_o_export.backends.coreml.interpreter.values import to_numpy

        for source in derived_sources(self._plan, set() if seen is None else seen):
            kind = source.operation.outputs[source.output].type.dtype
            yield source.operation.name, to_numpy(self._tensor(source, {}), kind, self.rounding)

    def _given(self, value: Held, dtype: str) -> Any:
        """A result as its caller gets it."""
        from mobile_o_export.backends.coreml.interpreter.registry import Labels, TensorList
        from mobile_o_export.backends.coreml.interpreter.values import to_numpy, to_python

        if isinstance(value, TensorList):
            raise InputError(f"{self._where}: a list is no result that can be given; ask for its elements")
        return to_python(value) if isinstance(value, Labels) else to_numpy(value, dtype, self.rounding)

    @property
    def _where(self) -> str:
        return f"function {self.function.name!r} of component {self.component!r}"

    def _kinds(self, names: Collection[str]) -> dict[str, str]:
        """The element types of results on the way; a run that asks for none does not look."""
        if not names:
            return {}
        outputs = (output for step in self._plan.steps for output in step.operation.outputs)
        kinds = {output.name: output.type.dtype for output in outputs if output.name in names}
        if unknown := sorted(set(names) - kinds.keys()):
            raise InputError(f"{self._where} has no result {', '.join(unknown)} on the way")
        return kinds

    def _arrays(self, inputs: Mapping[str, NDArray[Any] | Picture]) -> dict[str, NDArray[Any]]:
        """``inputs`` with pictures as the arrays that the program takes."""
        dtypes = {port.name: port.dtype for port in self.function.inputs}
        arrays: dict[str, NDArray[Any]] = {}
        for name, value in inputs.items():
            if isinstance(value, np.ndarray):
                arrays[name] = value
            elif name in self.function.images:
                arrays[name] = self.function.images[name].array(value).astype(dtypes[name])
            else:
                raise InputError(f"input {name!r} of {self._where} is a {type(value).__name__}, not an array")
        return arrays

    def _check(self, inputs: Mapping[str, NDArray[Any]], state: State | None) -> None:
        wanted = {port.name for port in self.function.inputs}
        if missing := sorted(wanted - set(inputs)):
            raise InputError(f"{self._where} also needs the inputs {', '.join(missing)}")
        if extra := sorted(set(inputs) - wanted):
            raise InputError(
                f"{self._where} has no inputs {', '.join(extra)}; it takes {', '.join(sorted(wanted))}"
            )
        for port in self.function.inputs:
            array = inputs[port.name]
            self._check_shape("input", port, tuple(array.shape))
            limits = self.function.limits.get(port.name)
            if limits is not None and not limits.fits(tuple(array.shape)):
                raise InputError(f"input {port.name!r} of {self._where} is {limits}, not {array.shape}")
            accepted = {port.dtype}
            if self.rounding is Rounding.FP32 and port.dtype == "float16":
                accepted.add("float32")
            if array.dtype.name not in accepted:
                raise InputError(
                    f"input {port.name!r} of {self._where} is {port.dtype}, not {array.dtype.name}"
                )
        for port in self.function.states:
            if state is None or port.name not in state:
                raise InputError(f"{self._where} needs the state {port.name!r}; start from make_state()")
            self._check_shape("state", port, tuple(state[port.name].shape))

    def _check_shape(self, kind: str, port: Port, shape: tuple[int, ...]) -> None:
        if not fits(shape, port.shape):
            raise InputError(f"{kind} {port.name!r} of {self._where} has shape {port.shape}, not {shape}")

    def _run(
        self,
        plan: Plan,
        environment: dict[str, Held],
        state: State,
        kept: dict[str, Held | None] | None = None,
    ) -> list[Held]:
        """The plan's results; ``environment`` loses a variable after its last use, ``kept`` keeps its own."""
        for step in plan.steps:
            # No local name may hold a result: it would outlive its last use by one step.
            names = [output.name for output in step.operation.outputs]
            environment.update(zip(names, self._evaluate(step, environment, state), strict=True))
            if kept:
                kept.update({name: environment[name] for name in names if name in kept})
            for name in step.frees:
                environment.pop(name, None)
        return [self._held(source, environment) for source in plan.outputs]

    def _evaluate(self, step: Step, environment: dict[str, Held], state: State) -> tuple[Held, ...]:
        operation = step.operation
        try:
            if step.implementation is None:
                return self._control(step, environment, state)
            return self._call(
                operation, step.implementation, step.inputs, environment, keep=self.keep_weights
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
        sources: Mapping[str, tuple[Source, ...]],
        environment: Mapping[str, Held],
        *,
        keep: bool,
    ) -> tuple[Held, ...]:
        """The operation's results; ``keep`` is of its constants."""
        import torch

        from mobile_o_export.backends.coreml.interpreter.registry import Call
        from mobile_o_export.backends.coreml.interpreter.values import held_dtype, settle

        arguments = {
            name: tuple(self._value(source, environment, keep=keep) for source in values)
            for name, values in sources.items()
        }
        types = tuple(output.type for output in operation.outputs)
        result = implementation.evaluate(Call(operation.type, operation.name, arguments, types))
        results = result if isinstance(result, tuple) else (result,)
        if len(results) != len(types):
            raise EvaluationError(
                f"op {operation.type!r} ({operation.name}) in {self._where} gave {len(results)} results, "
                f"the program declares {len(types)}"
            )
        settled: list[Held] = []
        for value, declared in zip(results, types, strict=True):
            if not isinstance(value, torch.Tensor):
                settled.append(value)
                continue
            if not declared.fits(tuple(value.shape)):
                raise EvaluationError(
                    f"op {operation.type!r} ({operation.name}) in {self._where} gave the shape "
                    f"{tuple(value.shape)}, the program declares {declared}"
                )
            exact = implementation.moves_data and value.dtype is held_dtype(declared.dtype)
            settled.append(value if exact else settle(value, declared.dtype, self.rounding))
        return tuple(settled)

    def _control(self, step: Step, environment: dict[str, Held], state: State) -> tuple[Held, ...]:
        """The operations that touch states or run blocks."""
        kind = step.operation.type
        if kind in ("read_state", "write_state"):
            (source,) = step.inputs["input"]
            name = getattr(source, "name", None)
            if name not in {port.name for port in self.function.states}:
                raise EvaluationError(f"{kind} {step.operation.name} in {self._where} names no state")
            if kind == "read_state":
                return (state[name],)
            state[name] = self._tensor(step.inputs["data"][0], environment)
            return ()
        if kind == "cond":
            (predicate,) = step.inputs["pred"]
            branch = step.blocks[0] if bool(self._tensor(predicate, environment)) else step.blocks[1]
            return tuple(self._run(branch, dict(environment), state))
        test, body = step.blocks
        values = [self._held(source, environment) for source in step.inputs["loop_vars"]]
        while True:
            entered = {**environment, **dict(zip(test.inputs, values, strict=True))}
            (again,) = self._run(test, entered, state)
            if not again:
                return tuple(values)
            entered = {**environment, **dict(zip(body.inputs, values, strict=True))}
            values = self._run(body, entered, state)

    def _value(self, source: Source, environment: Mapping[str, Held], *, keep: bool) -> Value:
        if isinstance(source, Constant) and isinstance(source.source, ImmediateSource):
            given = source.source.value
            if isinstance(given, str):
                return given
            if isinstance(given, tuple):
                from mobile_o_export.backends.coreml.interpreter.registry import Labels

                return Labels(given)
            if source.type.dtype == STRING:
                raise EvaluationError(f"{self._where} uses a tensor of strings, which nothing here reads")
        return self._held(source, environment, keep=keep)

    def _tensor(self, source: Source, environment: Mapping[str, Held], *, keep: bool | None = None) -> Tensor:
        """A variable or constant that has to be a tensor."""
        import torch

        value = self._held(source, environment, keep=keep)
        if not isinstance(value, torch.Tensor):
            raise EvaluationError(f"{self._where} uses a list where a tensor belongs")
        return value

    def _held(self, source: Source, environment: Mapping[str, Held], *, keep: bool | None = None) -> Held:
        """A variable or constant; ``keep`` is of constants, by default as the interpreter was told."""
        from mobile_o_export.backends.coreml.interpreter.plan import Derived

        store = self.function.weights
        keep = self.keep_weights if keep is None else keep
        if isinstance(source, Constant):
            return store.tensor(source, keep=keep)
        if isinstance(source, Derived):
            derived = source

            def decompress() -> tuple[Tensor, ...]:
                # What it is restored from is not asked for again; a constexpr operation gives tensors.
                made = self._call(derived.operation, derived.implementation, derived.inputs, {}, keep=False)
                return cast("tuple[Tensor, ...]", made)

            # Rounded and unrounded weights differ, so interpreters of either kind keep their own.
            return store.derived((derived.key, self.rounding), decompress, keep=keep)[derived.output]
        return environment[source.name]
