"""Compressed weights in ONNX graphs: where each is used decides the form that it is stored in.

By the standard, integers behind ``DequantizeLinear``, a scale a channel or a block. ONNX Runtime multiplies
what it finds there by activations that it makes int8 (``session.qdq_matmulnbits_accuracy_level`` is 4 where
nobody sets it), so for it matrices are in operators that say what activations are: ``nbits``, ``dynamic``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from mobile_o_export.backends.onnx import dynamic, nbits
from mobile_o_export.backends.onnx.edits import add_constant, gathers, hold, products
from mobile_o_export.backends.onnx.external import Stored
from mobile_o_export.backends.onnx.half import store_as_half
from mobile_o_export.backends.onnx.readback import restored
from mobile_o_export.backends.onnx.steps import match_types
from mobile_o_export.compression.placeholders import Kept
from mobile_o_export.precision import Activations

if TYPE_CHECKING:
    from pathlib import Path

    import torch

    from mobile_o_export.compression.placed import Placed
    from mobile_o_export.compression.placeholders import Placeholders
    from mobile_o_export.parity.metrics import Array


class Encoder:
    """Encodes the weights of one component wherever its graphs hold them.

    Attributes:
        weights: what the placeholders stand for.
        for_onnxruntime: whether operators may be ONNX Runtime's own.
        as_half: whether fp32 initializers are stored as fp16 where that loses nothing.
    """

    def __init__(
        self, weights: Placeholders, *, for_onnxruntime: bool = False, as_half: bool = False
    ) -> None:
        self.weights = weights
        self.for_onnxruntime = for_onnxruntime
        self.as_half = as_half
        self._placed: dict[tuple[str, str], Placed] = {}

    def encode(self, graph: Any, used: Iterable[torch.Tensor] = ()) -> None:
        """Replaces the initializers of an onnx_ir ``graph`` that are placeholders.

        Raises:
            ExportError: a placeholder among ``used`` is none of them.
        """
        import onnx_ir

        match_types(graph)
        found = set()
        for name, value in list(graph.initializers.items()):
            if value.dtype not in (onnx_ir.DataType.FLOAT, onnx_ir.DataType.FLOAT16):
                continue
            placed = self.weights.find(value.const_value.numpy())
            if placed is None:
                continue
            if isinstance(placed, Kept):
                found.add(placed.name)
                hold(value, placed)
                continue
            found.add(placed.weight.name)
            # Between QuantizeLinear and its product, runtimes look for the standard's form.
            calibrated = placed.weight.input_scale is not None
            own = self.for_onnxruntime and not calibrated
            stored = _encode_for_onnxruntime(graph, name, value, placed) if own else None
            self._placed[graph.name, f"{name}.integers"] = stored or _dequantize(
                graph, name, value, placed, unsigned=self.for_onnxruntime and calibrated
            )
            del graph.initializers[name]
        self.weights.require(found, used, graph.name)
        if self.as_half:
            store_as_half(graph)

    def require_all(self, component: str) -> None:
        """Raises ExportError where a compressed weight was found in no graph."""
        self.weights.require_all({placed.weight.name for placed in self._placed.values()}, component)

    def stored(self, file: Path, graph: str) -> Iterator[tuple[str, str, Array]]:
        """What the weights in a saved ``file`` restore: name, place, numbers in the parameters' axes."""
        placed = {name: place for (home, name), place in self._placed.items() if home == graph}
        for name, values in restored(Stored(file), placed):
            yield placed[name].weight.name, f"{graph}/{name}", placed[name].returned(values)


def _encode_for_onnxruntime(graph: Any, name: str, value: Any, placed: Placed) -> Placed | None:
    """Puts a matrix into ONNX Runtime's operators; None, and nothing done, where none of them fits.

    Returns:
        The weight as it is stored.
    """
    if (rows := gathers(value)) and nbits.fits(placed):
        nbits.gather(graph, name, value, placed, rows)
        return placed
    uses = products(value)
    if not uses or len({use.transposed for use in uses}) > 1:
        return None
    upright, turned = (placed, _turned(placed)) if uses[0].transposed else (_turned(placed), placed)
    integer_inputs = placed.weight.form.precision.activations is Activations.DYNAMIC
    if integer_inputs and dynamic.fits(turned):
        dynamic.multiply(graph, name, turned, uses)
        return turned
    if nbits.fits(upright):
        accuracy = nbits.Accuracy.INT8 if integer_inputs else nbits.Accuracy.FP32
        nbits.multiply(graph, name, value, upright, uses, accuracy)
        return upright
    return None


def _turned(placed: Placed) -> Placed:
    """The same matrix as a transposed constant."""
    return replace(placed, axes=placed.axes[::-1], shape=placed.shape[::-1])


def _dequantize(graph: Any, name: str, value: Any, placed: Placed, *, unsigned: bool) -> Placed:
    """Puts ``DequantizeLinear`` of integers in the place of the initializer ``value``."""
    import onnx_ir

    scales = placed.tables().astype(value.dtype.numpy())
    spread = [axis for axis, count in enumerate(scales.shape) if count > 1]
    sizes = [size // count for size, count in zip(placed.shape, scales.shape, strict=True)]
    blocked = [axis for axis in spread if sizes[axis] > 1]
    if blocked:
        # One scale for each block along this axis, and for each index of the others.
        (axis,) = blocked
        attributes = {"axis": axis, "block_size": sizes[axis]}
    else:
        axis = spread[0] if spread else 0
        attributes, scales = {"axis": axis}, scales.reshape(-1)
    if unsigned:
        kind, numbers = onnx_ir.DataType.UINT8, dynamic.unsigned(placed)
    else:
        four = placed.weight.form.precision.weight_bits == 4
        kind, numbers = onnx_ir.DataType.INT4 if four else onnx_ir.DataType.INT8, placed.numbers()
    inputs = [
        add_constant(graph, f"{name}.integers", numbers, kind),
        add_constant(graph, f"{name}.scales", scales, value.dtype),
    ]
    if unsigned:
        middles = np.full(scales.shape, dynamic.MIDDLE)
        inputs.append(add_constant(graph, f"{name}.middles", middles, kind))
    node = onnx_ir.node(
        "DequantizeLinear",
        inputs,
        attributes,
        outputs=[onnx_ir.val(f"{name}.restored", value.dtype, value.shape)],
        name=f"{name}/DequantizeLinear",
    )
    onnx_ir.convenience.replace_all_uses_with(value, node.outputs[0])
    graph.insert_before(graph[0], node)
    return placed
