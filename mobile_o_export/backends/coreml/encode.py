"""Compressed weights in ML Programs: ``constexpr_lut_to_dense`` and ``constexpr_blockwise_shift_scale``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from mobile_o_export.compression.palettes import Palettes

if TYPE_CHECKING:
    from pathlib import Path

    from mobile_o_export.compression.recognise import Placed, Recogniser
    from mobile_o_export.parity.metrics import Array

PASS_NAMESPACE, PASS_NAME = "mobile_o_export", "encode_weights"
"""What coremltools' registry knows the pass by."""


class Encoder:
    """Encodes the compressed weights of one component wherever its programs hold them."""

    def __init__(self, weights: Recogniser) -> None:
        self.weights = weights
        self._placed: dict[str, Placed] = {}

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
        """Replaces the constants of a MIL ``program`` that hold restored weights."""
        for function in program.functions.values():
            for operation in list(_constants(function)):
                placed = self.weights.find(operation.outputs[0].val)
                if placed is None:
                    continue
                block = operation.enclosing_block
                with block:
                    restored = _restoring(placed, operation)
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


def _constants(block: Any) -> Iterator[Any]:
    """The fp16 tensors of a block and of those inside."""
    for operation in block.operations:
        for inner in operation.blocks:
            yield from _constants(inner)
        if operation.op_type == "const":
            value = operation.outputs[0].val
            if isinstance(value, np.ndarray) and value.dtype == np.float16:
                yield operation


def _restoring(placed: Placed, operation: Any) -> Any:
    """The value of a new operation that restores a weight where ``operation`` has it as a constant."""
    from coremltools.converters.mil.mil import Builder
    from coremltools.converters.mil.mil.types.type_mapping import string_to_nptype

    bits = placed.weight.form.precision.weight_bits
    place = {"before_op": operation, "name": f"{operation.name}_compressed"}
    # NumPy has no type below a byte: coremltools marks them in the metadata of int8 and uint8.
    if isinstance(placed.weight.data, Palettes):
        indices = placed.numbers().astype(string_to_nptype(f"uint{bits}"))
        return Builder.constexpr_lut_to_dense(indices=indices, lut=placed.tables()[..., None], **place)
    integers = placed.numbers().astype(string_to_nptype(f"int{bits}"))
    return Builder.constexpr_blockwise_shift_scale(data=integers, scale=placed.tables(), **place)
