"""Compressed weights and quantized activations.

Sources: defs/iOS16/constexpr_ops.py, defs/iOS17/quantization_ops.py, defs/iOS18/compression.py.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from mobile_o_export.backends.coreml.interpreter import bits
from mobile_o_export.backends.coreml.interpreter.errors import EvaluationError
from mobile_o_export.backends.coreml.interpreter.kernels import look_up
from mobile_o_export.backends.coreml.interpreter.registry import Call, Result, implements

_INTEGER_RANGES = {"int8": (-128, 127), "uint8": (0, 255), "int4": (-8, 7), "uint4": (0, 15)}


def _along(values: Tensor, x: Tensor, axis: int) -> Tensor:
    """A scalar, or a vector [x.shape[axis]], as fp32 in a shape that broadcasts over x."""
    values = values.float()
    if values.dim() == 0:
        return values
    shape = [1] * x.dim()
    shape[axis] = -1
    return values.reshape(shape)


def _shifted_and_scaled(data: Tensor, scale: Tensor, offset: Tensor | None) -> Tensor:
    """``scale * (data - offset)``, each scale covering a block of data.shape / scale.shape elements."""
    # [d0, d1] as [s0, b0, s1, b1] against a scale of [s0, 1, s1, 1]: no repeated copy of the scales.
    split: list[int] = []
    spread: list[int] = []
    for size, count in zip(data.shape, scale.shape, strict=True):
        split += [count, size // count]
        spread += [count, 1]
    blocks = data.float().reshape(split)
    if offset is not None:
        blocks = blocks - offset.float().reshape(spread)
    return (blocks * scale.float().reshape(spread)).reshape(data.shape)


def _looked_up(indices: Tensor, lut: Tensor, vector_axis: int | None) -> Tensor:
    """Dense values of ``indices`` [i...] through ``lut`` [l..., palette, vector], l dividing i.

    With vectors longer than 1 each index stands for a run of elements along ``vector_axis``.
    """
    *groups, palette, vector = lut.shape
    shape = list(indices.shape)
    if vector == 1 and math.prod(groups) == math.prod(groups[:1]):
        return _looked_up_by_rows(indices, lut.reshape(-1, palette))
    split: list[int] = []
    for size, count in zip(shape, groups, strict=True):
        split += [count, size // count]
    # Number each element's table, then one flat look-up.
    table = torch.arange(math.prod(groups), dtype=torch.int32).reshape([n for g in groups for n in (g, 1)])
    flat = (table * palette + indices.to(torch.int32).reshape(split)).reshape(-1)
    dense = lut.reshape(-1, vector).index_select(0, flat).reshape(*shape, vector)
    if vector == 1 or vector_axis is None:
        return dense.squeeze(-1)
    axis = vector_axis % len(shape)
    return dense.movedim(-1, axis + 1).flatten(axis, axis + 1)


def _looked_up_by_rows(indices: Tensor, lut: Tensor) -> Tensor:
    """Dense values of ``indices`` through ``lut`` [groups, palette], each for a run of the first axis."""
    groups, palette = lut.shape
    # Compiled code reads whatever lies behind a palette.
    if indices.numel() and int(indices.max()) >= palette:
        raise EvaluationError(f"an index is beyond the {palette} values of its palette; export it again")
    dense = torch.empty(indices.shape, dtype=lut.dtype)
    rows = indices.contiguous().numpy().reshape(groups, -1)
    look_up(lut.contiguous().numpy(), rows, dense.numpy().reshape(groups, -1))
    return dense


def _dense(nonzero: Tensor, mask: Tensor) -> Tensor:
    """``nonzero`` [count] spread over the places where ``mask`` is set, 0 elsewhere."""
    dense = torch.zeros(mask.shape, dtype=nonzero.dtype)
    dense[mask.bool()] = nonzero
    return dense


def _vector_axis(call: Call) -> int | None:
    return call.integer("vector_axis", 0) if call.has("vector_axis") else None


def _unpacked(packed: Tensor, width: int, shape: list[int]) -> Tensor:
    values = bits.unpack(packed.numpy(), width, math.prod(shape), signed=False)
    return torch.from_numpy(np.ascontiguousarray(values)).reshape(shape)


@implements("constexpr_affine_dequantize", "quantized_data zero_point scale axis")
def _affine_dequantize(call: Call) -> Result:
    data, axis = call.tensor("quantized_data"), call.integer("axis", 0)
    zero_point = _along(call.tensor("zero_point"), data, axis)
    return (data.float() - zero_point) * _along(call.tensor("scale"), data, axis)


@implements("constexpr_blockwise_shift_scale", "data scale", "offset")
def _blockwise_shift_scale(call: Call) -> Result:
    return _shifted_and_scaled(call.tensor("data"), call.tensor("scale"), call.optional("offset"))


@implements("constexpr_lut_to_dense", "indices lut", "shape vector_axis", exact=True)
def _lut_to_dense(call: Call) -> Result:
    """In iOS 16 the indices are packed bytes and ``shape`` is given; in iOS 18 they are typed uintN."""
    indices, lut = call.tensor("indices"), call.tensor("lut")
    if not call.has("shape"):
        return _looked_up(indices, lut, _vector_axis(call))
    indices = _unpacked(indices, (lut.numel() - 1).bit_length(), call.integers("shape"))
    return _looked_up_by_rows(indices, lut.reshape(1, -1))


@implements("constexpr_sparse_to_dense", "nonzero_data mask", "shape", exact=True)
def _sparse_to_dense(call: Call) -> Result:
    """In iOS 16 the mask is packed bytes and ``shape`` is given; in iOS 18 it is typed uint1."""
    mask = call.tensor("mask")
    if call.has("shape"):
        mask = _unpacked(mask, 1, call.integers("shape"))
    return _dense(call.tensor("nonzero_data"), mask)


@implements("constexpr_lut_to_sparse", "indices_mask indices_nonzero_data lut", "vector_axis", exact=True)
def _lut_to_sparse(call: Call) -> Result:
    mask, axis = call.tensor("indices_mask"), _vector_axis(call)
    dense = _looked_up(_dense(call.tensor("indices_nonzero_data"), mask), call.tensor("lut"), axis)
    if axis is not None:
        mask = mask.repeat_interleave(call.tensor("lut").shape[-1], axis)
    return mask, dense[mask.bool()]


@implements("constexpr_sparse_blockwise_shift_scale", "data_mask nonzero_data scale", "offset")
def _sparse_blockwise_shift_scale(call: Call) -> Result:
    mask = call.tensor("data_mask")
    data = _dense(call.tensor("nonzero_data"), mask)
    dense = _shifted_and_scaled(data, call.tensor("scale"), call.optional("offset"))
    return mask, dense[mask.bool()]


@implements("constexpr_cast", "source_val output_dtype")
def _constexpr_cast(call: Call) -> Result:
    return call.tensor("source_val")


@implements("quantize", "input scale", "zero_point axis output_dtype")
def _quantize(call: Call) -> Result:
    x, axis, dtype = call.tensor("input"), call.integer("axis", 0), call.outputs[0].dtype
    if dtype not in _INTEGER_RANGES:
        raise call.unsupported(f"output_dtype {dtype!r}")
    steps = torch.round(x / _along(call.tensor("scale"), x, axis))
    if call.has("zero_point"):
        steps = steps + _along(call.tensor("zero_point"), x, axis)
    return steps.clamp(*_INTEGER_RANGES[dtype])


@implements("dequantize", "input scale", "zero_point axis")
def _dequantize(call: Call) -> Result:
    x, axis = call.tensor("input"), call.integer("axis", 0)
    steps = x.float()
    if call.has("zero_point"):
        steps = steps - _along(call.tensor("zero_point"), x, axis)
    return steps * _along(call.tensor("scale"), x, axis)
