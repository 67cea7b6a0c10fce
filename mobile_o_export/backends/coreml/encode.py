"""Compressed weights in ML Programs: ``constexpr_lut_to_dense`` and ``constexpr_blockwise_shift_scale``."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from mobile_o_export.compression.palettes import Palettes
from mobile_o_export.compression.placed import Placed

if TYPE_CHECKING:
    from pathlib import Path

    import torch

    from mobile_o_export.compression.placeholders import Kept, Placeholders
    from mobile_o_export.parity.metrics import Array

PASS_NAMESPACE, PASS_NAME = "mobile_o_export", "encode_weights"
"""What coremltools' registry knows the pass by."""

HELD = "weight_key"
"""The attribute of a constant whose value is held back. coremltools takes constants of two keys for different
ones, whatever they hold."""


class Encoder:
    """Puts the weights of one component into its programs, where placeholders keep their places.

    Attributes:
        weights: what the placeholders stand for.
        held: makes the values that constants of programs only stand for, by their keys.
    """

    def __init__(self, weights: Placeholders) -> None:
        self.weights = weights
        self.held: dict[str, Callable[[], Array]] = {}
        self._placed: dict[str, Placed] = {}
        self._found: set[str] = set()

    def held_by(self, operation: Any) -> str | None:
        """The key of a constant's value, if it is held back."""
        return getattr(operation, HELD, None)

    def require(self, used: Iterable[torch.Tensor], where: str) -> None:
        """Raises ExportError where a placeholder among ``used`` was not found in the last program."""
        self.weights.require(self._found, used, where)

    def require_all(self, component: str) -> None:
        """Raises ExportError where a compressed weight was found in no program."""
        self.weights.require_all({placed.weight.name for placed in self._placed.values()}, component)

    def encode_last(self, pipeline: Any) -> None:
        """Appends to coremltools' ``pipeline`` a pass that encodes, after weights became fp16."""
        from coremltools.converters.mil.mil.passes.graph_pass import AbstractGraphPass
        from coremltools.converters.mil.mil.passes.pass_registry import register_pass

        encode = self.encode

        @register_pass(namespace=PASS_NAMESPACE, override=True, name=PASS_NAME)
        class EncodeWeights(AbstractGraphPass):  # type: ignore[misc]
            def apply(self, prog: Any) -> None:
                encode(prog)

        pipeline.append_pass(f"{PASS_NAMESPACE}::{PASS_NAME}")

    def encode(self, program: Any) -> None:
        """Replaces the placeholders of a MIL ``program``, whose constants have their last types."""
        self._found = set()
        for function in program.functions.values():
            self._encode(function)

    def _encode(self, block: Any) -> None:
        for operation in block.operations:
            for inner in operation.blocks:
                self._encode(inner)
        # Once for all: leaving a block is another look at all of its operations.
        with block:
            for operation in list(_constants(block)):
                value = operation.outputs[0].val
                placed = self.weights.find(value)
                if placed is None:
                    continue
                if not isinstance(placed, Placed):
                    self._hold(operation, placed)
                    self._found.add(placed.name)
                elif value.dtype == np.float16:  # no palette is of fp32
                    self._restore(operation, placed)
                    self._found.add(placed.weight.name)

    def _hold(self, operation: Any, kept: Kept) -> None:
        """Has a constant stand for a floating-point weight."""
        dtype = operation.outputs[0].val.dtype.type
        key = f"{kept.name} {kept.axes} {dtype.__name__}"
        self.held[key] = lambda: kept.numbers(dtype)
        setattr(operation, HELD, key)

    def _restore(self, operation: Any, placed: Placed) -> None:
        """Replaces a constant by an operation that restores a compressed weight."""
        block = operation.enclosing_block
        restored = _restoring(placed, operation)
        (numbers,) = (restored.op.inputs[name] for name in ("indices", "data") if name in restored.op.inputs)
        key = f"{placed.weight.name} {placed.axes}"
        self.held[key] = placed.numbers
        setattr(numbers.op, HELD, key)
        block.replace_uses_of_var_after_op(
            anchor_op=operation, old_var=operation.outputs[0], new_var=restored
        )
        block.remove_ops([operation])
        self._placed[restored.op.name] = placed

    def stored(self, package: Path, component: str) -> Iterator[tuple[str, str, Array]]:
        """What the weights in a saved ``package`` restore: name, place, numbers in the parameters' axes."""
        from mobile_o_export.backends.coreml.contents import restored
        from mobile_o_export.backends.coreml.interpreter import load_mlpackage

        for place, operation, values in restored(load_mlpackage(package), component):
            if placed := self._placed.get(operation):
                yield placed.weight.name, place, placed.returned(values)
            del values  # not kept while the next is restored


def _constants(block: Any) -> Iterator[Any]:
    """The floating-point tensors of a block."""
    for operation in block.operations:
        if operation.op_type == "const":
            value = operation.outputs[0].val
            if isinstance(value, np.ndarray) and value.dtype in (np.float16, np.float32) and value.size:
                yield operation


def _restoring(placed: Placed, operation: Any) -> Any:
    """The value of a new operation that restores a weight where ``operation`` has it as a constant.

    Its indices or integers are as large as they will be, and all zero.
    """
    from coremltools.converters.mil.mil import Builder
    from coremltools.converters.mil.mil.types.type_mapping import string_to_nptype

    bits = placed.weight.form.precision.weight_bits
    palette = isinstance(placed.weight.data, Palettes)
    # NumPy has no type below a byte: coremltools marks them in the metadata of int8 and uint8.
    kind = string_to_nptype(f"uint{bits}" if palette else f"int{bits}")
    zeros = np.broadcast_to(np.zeros([], kind), placed.shape)
    place = {"before_op": operation, "name": f"{operation.name}_compressed"}
    if palette:
        return Builder.constexpr_lut_to_dense(indices=zeros, lut=placed.tables()[..., None], **place)
    return Builder.constexpr_blockwise_shift_scale(data=zeros, scale=placed.tables(), **place)
