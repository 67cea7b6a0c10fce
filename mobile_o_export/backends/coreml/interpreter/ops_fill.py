"""Tensors made from little or nothing (defs/iOS15-16/tensor_operation.py)."""

from __future__ import annotations

import math

import torch

from mobile_o_export.backends.coreml.interpreter.registry import Call, Result, implements
from mobile_o_export.backends.coreml.interpreter.values import held_dtype


def _value(call: Call, name: str, default: float) -> float | int | bool:
    value: float | int | bool = call.tensor(name).item() if call.has(name) else default
    return value


@implements("fill", "shape", "value", exact=True)
def _fill(call: Call) -> Result:
    dtype = held_dtype(call.outputs[0].dtype)
    return torch.full(call.integers("shape"), _value(call, "value", 0.0), dtype=dtype)


@implements("fill_like", "ref_tensor", "value", exact=True)
def _fill_like(call: Call) -> Result:
    dtype = held_dtype(call.outputs[0].dtype)
    return torch.full(call.tensor("ref_tensor").shape, _value(call, "value", 0.0), dtype=dtype)


@implements("range_1d", "start end step")
def _range_1d(call: Call) -> Result:
    start, end, step = (call.tensor(name) for name in ("start", "end", "step"))
    count = math.ceil((end.item() - start.item()) / step.item())
    return start + step * torch.arange(max(0, count), dtype=start.dtype)


@implements("one_hot", "indices one_hot_vector_size", "axis on_value off_value", exact=True)
def _one_hot(call: Call) -> Result:
    indices, axis = call.tensor("indices"), call.integer("axis", -1)
    axis %= indices.dim() + 1
    classes = torch.arange(call.integer("one_hot_vector_size", 0))
    hit = indices.unsqueeze(axis) == classes.reshape(-1, *([1] * (indices.dim() - axis)))
    dtype = held_dtype(call.outputs[0].dtype)
    on = torch.tensor(_value(call, "on_value", 1), dtype=dtype)
    return torch.where(hit, on, torch.tensor(_value(call, "off_value", 0), dtype=dtype))


@implements("band_part", "x", "lower upper", exact=True)
def _band_part(call: Call) -> Result:
    """Zero but for ``lower`` diagonals below and ``upper`` above the main one; negative means all."""
    x, lower, upper = call.tensor("x"), call.integer("lower", -1), call.integer("upper", -1)
    below = torch.arange(x.shape[-2]).unsqueeze(1) - torch.arange(x.shape[-1])
    keep = torch.ones_like(below, dtype=torch.bool)
    if lower >= 0:
        keep &= below <= lower
    if upper >= 0:
        keep &= -below <= upper
    return torch.where(keep, x, torch.zeros((), dtype=x.dtype))


@implements("non_zero", "x")
def _non_zero(call: Call) -> Result:
    """Indices of the elements that are not 0, [count, rank]."""
    return call.tensor("x").nonzero()
