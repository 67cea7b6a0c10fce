"""What coremltools does again and again, or with every number of a weight, left out during a conversion."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import numpy as np

if TYPE_CHECKING:
    from mobile_o_export.parity.metrics import Array

LARGEST_HALF = float(np.finfo(np.float16).max)
INFINITE = 1e38
"""What coremltools takes for an infinity, which fp16 has as well."""


@contextmanager
def spared() -> Iterator[None]:
    """Has coremltools (9.0) convert with less to do, to the same program.

    A program is checked a few times on its way, not after each of a hundred passes: its checks go over every
    use of every value and took a quarter of a conversion. Those that stay follow each removal of dead code
    and precede the writing. Nor is the program printed for a silent log. Each pass noted for every value
    which compressed weights it comes from: another sixth, for nothing while there are none, as there are not
    before a conversion's last pass.

    Of placeholders, arrays whose rows are one in memory, a cast or a look for large numbers takes that one.
    """
    from coremltools.converters.mil.mil import Block, Program
    from coremltools.converters.mil.mil.ops.defs.iOS15.elementwise_unary import cast
    from coremltools.converters.mil.mil.passes.defs.quantization import FP16ComputePrecision

    whole, noted = Program.validate, Block._propagate_nonreplaceable_vars
    value = cast.get_cast_value.__func__

    def validate(self: Any, check_essential_scope: bool = False) -> None:
        if check_essential_scope:
            whole(self, check_essential_scope)

    def note(self: Any) -> None:
        if _compressed(self):
            noted(self)

    def cast_value(cls: Any, variable: Any, dtype: Any) -> Any:
        given = variable.val
        if not isinstance(given, np.ndarray) or given.ndim == 0 or 0 not in given.strides:
            return value(cls, variable, dtype)
        return np.broadcast_to(value(cls, _Value(_once(given)), dtype), given.shape)

    with ExitStack() as changes:
        changes.enter_context(patch.object(Program, "validate", validate))
        changes.enter_context(patch.object(Block, "indented_str", lambda *_, **__: ""))
        changes.enter_context(patch.object(Block, "_propagate_nonreplaceable_vars", note))
        changes.enter_context(patch.object(cast, "get_cast_value", classmethod(cast_value)))
        changes.enter_context(patch.object(FP16ComputePrecision, "fp16_overflow", staticmethod(_overflows)))
        yield


class _Value:
    """A variable of nothing but a value."""

    def __init__(self, value: Array) -> None:
        self.val = self.sym_val = value


def _once(array: Array) -> Array:
    """``array`` without what it repeats."""
    return array[tuple(slice(None) if stride else slice(0, 1) for stride in array.strides)]


def _overflows(operation: Any) -> bool:
    """Whether fp16 cannot hold a constant fp32 input of ``operation``; it can hold infinities."""
    for given in operation.inputs.values():
        for variable in given if isinstance(given, list | tuple) else [given]:
            constant = variable.op is not None and variable.op.op_type == "const"
            if not constant or not variable.is_tensor_or_scalar_of(dtype="fp32"):
                continue
            magnitudes = np.abs(_once(np.asarray(variable.op.val.val)))
            if (magnitudes[magnitudes < INFINITE] > LARGEST_HALF).any():
                return True
    return False


def _compressed(block: Any) -> bool:
    """Whether a weight of ``block`` or of one within is compressed."""
    return any(
        operation.op_type.startswith("constexpr_") or any(_compressed(inner) for inner in operation.blocks)
        for operation in block.operations
    )
