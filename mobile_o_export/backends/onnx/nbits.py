"""Blocks of integers in ONNX Runtime's own operators: ``MatMulNBits`` and ``GatherBlockQuantized``.

Both take rows [N, K] of integers above a zero point of 2**(bits - 1), a scale for each block of a row. A
block is a power of two and at least 16; at 512 some versions computed zeros (microsoft/onnxruntime#28551).
So where a row has one scale only, its blocks repeat it.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING, Any

import numpy as np

from mobile_o_export.backends.onnx.edits import (
    CONTRIBUTED,
    Product,
    add_constant,
    replace_node,
    replace_product,
)

if TYPE_CHECKING:
    from mobile_o_export.compression.placed import Placed
    from mobile_o_export.parity.metrics import Array

BLOCKS_OPSET = 21
"""The first opset whose own operators have int4 and scales of blocks."""

BLOCKS = (16, 32, 64, 128, 256)
"""Weights that may share a scale."""


class Accuracy(IntEnum):
    """``accuracy_level``: the least that activations are computed in."""

    FP32 = 1
    INT8 = 4


@dataclass(frozen=True)
class Rows:
    """A weight in blocks.

    Attributes:
        packed: uint8 [N, blocks, block · bits / 8], the first of a byte's integers in its low bits.
        scales: float [N, blocks].
        attributes: of both operators.
    """

    packed: Array
    scales: Array
    attributes: dict[str, int]


def fits(placed: Placed) -> bool:
    """Whether the rows of ``placed``, a matrix [N, K], are whole bytes and have scales of their own."""
    whole = placed.shape[1] * placed.weight.form.precision.weight_bits % 8 == 0
    return whole and len(placed.tables()) == placed.shape[0]


def pack(placed: Placed) -> Rows:
    """The rows of ``placed``, a matrix [N, K]."""
    numbers, scales = placed.numbers(), placed.tables()
    bits = placed.weight.form.precision.weight_bits
    (count, width), groups = numbers.shape, scales.shape[1]
    if groups > 1:
        block = width // groups
    else:
        # The last block of a row is padded, and a scale takes two bytes.
        block = min(BLOCKS, key=lambda size: -(-width // size) * (size * bits // 8 + 2))
        groups = -(-width // block)
        scales = np.repeat(scales, groups, axis=1)
    zero = 1 << (bits - 1)
    codes = np.full((count, groups * block), zero, np.uint8)
    codes[:, :width] = (numbers.astype(np.int16) + zero).astype(np.uint8)
    if bits == 4:
        codes = codes[:, ::2] | (codes[:, 1::2] << 4)
    packed = codes.reshape(count, groups, -1)
    return Rows(packed, scales, {"bits": bits, "block_size": block})


def multiply(
    graph: Any, name: str, value: Any, placed: Placed, uses: list[Product], accuracy: Accuracy
) -> None:
    """Replaces products of the initializer ``value``, called ``name``, by ``MatMulNBits``.

    Args:
        graph: an onnx_ir graph.
        name: of the stored tensors, with suffixes.
        value: the initializer.
        placed: the weight as a matrix [N, K].
        uses: the products.
        accuracy: of the activations.
    """
    import onnx_ir

    rows = pack(placed)
    integers = add_constant(graph, f"{name}.integers", rows.packed, onnx_ir.DataType.UINT8)
    scales = add_constant(graph, f"{name}.scales", rows.scales, value.dtype)
    count, width = placed.shape
    attributes = {**rows.attributes, "N": count, "K": width, "accuracy_level": int(accuracy)}
    for use in uses:
        node = onnx_ir.node(
            "MatMulNBits",
            [use.activations, integers, scales],
            attributes,
            domain=CONTRIBUTED,
            name=use.node.name,
        )
        replace_product(graph, use, [node])
    graph.opset_imports[CONTRIBUTED] = 1


def gather(graph: Any, name: str, value: Any, placed: Placed, uses: list[Any]) -> None:
    """Replaces ``Gather`` of rows of the initializer ``value`` by ``GatherBlockQuantized``; as ``multiply``.

    Behind ``DequantizeLinear`` ONNX Runtime would restore the whole table at every call.
    """
    import onnx_ir

    rows = pack(placed)
    # One row as one run of bytes; a last block that is padded would lengthen what is gathered.
    flat = rows.packed.reshape(placed.shape[0], -1)[:, : placed.shape[1] * rows.attributes["bits"] // 8]
    integers = add_constant(graph, f"{name}.integers", flat, onnx_ir.DataType.UINT8)
    scales = add_constant(graph, f"{name}.scales", rows.scales, value.dtype)
    for use in uses:
        node = onnx_ir.node(
            "GatherBlockQuantized",
            [integers, use.inputs[1], scales],
            {**rows.attributes, "gather_axis": 0, "quantize_axis": 1},
            domain=CONTRIBUTED,
            name=use.name,
        )
        replace_node(graph, use, [node])
    graph.opset_imports[CONTRIBUTED] = 1
