"""The table from MIL op names to functions, and what such a function is given."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from torch import Tensor

from mobile_o_export.backends.coreml.interpreter.errors import EvaluationError, UnsupportedOpError
from mobile_o_export.backends.coreml.interpreter.tensor_type import TensorType


@dataclass(frozen=True, eq=False)
class TensorList:
    """A list of tensors; None stands for an element that nothing has written yet."""

    elements: tuple[Tensor | None, ...]
    dynamic: bool
    """Whether it grows when something is written behind its end."""


@dataclass(frozen=True)
class Labels:
    """Names or numbers of classes, and the probability of each where a classifier gives them."""

    names: tuple[str | int, ...]
    probabilities: tuple[float, ...] | None = None


Other = TypeVar("Other", TensorList, Labels)

Held = Tensor | TensorList | Labels
"""What a variable may be."""

Value = Held | str
Result = Held | tuple[Held, ...]


@dataclass(frozen=True, eq=False)
class Call:
    """One operation about to be evaluated: its arguments by parameter, and its declared outputs."""

    op_type: str
    op_name: str
    arguments: Mapping[str, tuple[Value, ...]]
    outputs: tuple[TensorType, ...]
    settings: Mapping[str, Sequence[float]] = field(default_factory=dict)
    """The arguments that stand in the program as numbers, flattened: read once, not at every call."""

    def has(self, name: str) -> bool:
        """Whether the program gives this parameter."""
        return bool(self.arguments.get(name))

    def tensor(self, name: str) -> Tensor:
        """The tensor given for ``name``."""
        (value,) = self.tensors(name)
        return value

    def optional(self, name: str) -> Tensor | None:
        """The tensor given for ``name``, or ``None``."""
        return self.tensor(name) if self.has(name) else None

    def tensors(self, name: str) -> tuple[Tensor, ...]:
        """Every tensor given for ``name``, in order."""
        values = self.arguments.get(name, ())
        found = tuple(value for value in values if isinstance(value, Tensor))
        if not values or len(found) != len(values):
            raise EvaluationError(f"{self.op_type} {self.op_name} lacks the tensor {name!r}")
        return found

    def tensor_list(self, name: str) -> TensorList:
        """The list given for ``name``."""
        return self._other(name, TensorList, "list")

    def labels(self, name: str) -> tuple[str | int, ...]:
        """The classes given for ``name``."""
        return self._other(name, Labels, "list of classes").names

    def _other(self, name: str, kind: type[Other], what: str) -> Other:
        (value,) = self.arguments[name]
        if not isinstance(value, kind):
            raise EvaluationError(f"{self.op_type} {self.op_name}: {name!r} is no {what}")
        return value

    def text(self, name: str, default: str) -> str:
        """The string given for ``name``, or ``default``."""
        if not self.has(name):
            return default
        value = self.arguments[name][0]
        if not isinstance(value, str):
            raise EvaluationError(f"{self.op_type} {self.op_name}: {name!r} is no string")
        return value

    def number(self, name: str, default: float) -> float:
        """The scalar given for ``name`` as a float, or ``default``."""
        return float(self._scalar(name)) if self.has(name) else default

    def integer(self, name: str, default: int) -> int:
        """The scalar given for ``name`` as an int, or ``default``."""
        return int(self._scalar(name)) if self.has(name) else default

    def flag(self, name: str, default: bool) -> bool:
        """The scalar given for ``name`` as a bool, or ``default``."""
        return bool(self._scalar(name)) if self.has(name) else default

    def integers(self, name: str) -> list[int]:
        """The values given for ``name`` flattened to a list of ints; empty where none are given."""
        return [int(value) for value in self._numbers(name)] if self.has(name) else []

    def _scalar(self, name: str) -> float:
        (value,) = self._numbers(name)
        return value

    def _numbers(self, name: str) -> Sequence[float]:
        known = self.settings.get(name)
        return self.tensor(name).flatten().tolist() if known is None else known

    def unsupported(self, what: str) -> UnsupportedOpError:
        """The error to raise for an option that no implementation covers."""
        return UnsupportedOpError(f"{self.op_type} {self.op_name}: {what} is not implemented")


Evaluate = Callable[[Call], Result]


@dataclass(frozen=True)
class Implementation:
    """A function for one op, and the parameters it knows.

    ``exact`` marks ops whose results are elements of their inputs, or 0, or such without their sign: nothing
    to round, and a view may stay a view. ``other_results`` marks ops that give something else than tensors.
    """

    evaluate: Evaluate
    required: frozenset[str]
    optional: frozenset[str]
    exact: bool
    other_results: bool


OPS: dict[str, Implementation] = {}


def implements(
    op_type: str,
    required: str,
    optional: str = "",
    *,
    exact: bool = False,
    other_results: bool = False,
) -> Callable[[Evaluate], Evaluate]:
    """Register the decorated function for ``op_type``; parameter names are separated by blanks."""

    def register(evaluate: Evaluate) -> Evaluate:
        if op_type in OPS:
            raise ValueError(f"{op_type} is implemented twice")
        OPS[op_type] = Implementation(
            evaluate, frozenset(required.split()), frozenset(optional.split()), exact, other_results
        )
        return evaluate

    return register
