"""Evaluate one function of an ML Program with torch on the CPU."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mobile_o_export.backends.coreml.interpreter.errors import InputError
from mobile_o_export.backends.coreml.interpreter.program import MilFunction
from mobile_o_export.backends.coreml.interpreter.rounding import Rounding
from mobile_o_export.backends.coreml.interpreter.tensor_type import Port, fits

if TYPE_CHECKING:
    from PIL.Image import Image as Picture
    from torch import Tensor

    from mobile_o_export.backends.coreml.interpreter.plan import Plan
    from mobile_o_export.backends.coreml.interpreter.registry import Held

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
        from mobile_o_export.backends.coreml.interpreter.evaluate import Evaluator
        from mobile_o_export.backends.coreml.interpreter.plan import plan_function

        self.function = function
        self.component = component
        self.rounding = rounding
        self._plan: Plan = plan_function(function, component)
        self._evaluator = Evaluator(function, self._where, rounding, keep_weights=keep_weights)

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
            results = self._evaluator.run(self._plan, environment, state if state is not None else {}, kept)
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
            yield source.operation.name, to_numpy(self._evaluator.restored(source), kind, self.rounding)

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
