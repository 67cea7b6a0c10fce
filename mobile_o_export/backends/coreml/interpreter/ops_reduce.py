"""Reductions, sorting and scans (defs/iOS15/reduction.py, tensor_operation.py)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from mobile_o_export.backends.coreml.interpreter.registry import Call, Result, implements

Reduce = Callable[[Tensor, list[int], bool], Tensor]


def _reduction(op_type: str, reduce: Reduce, *, exact: bool = False) -> None:
    @implements(op_type, "x", "axes keep_dims", exact=exact)
    def _evaluate(call: Call) -> Result:
        x = call.tensor("x")
        axes = call.integers("axes") or list(range(x.dim()))
        return reduce(x, axes, call.flag("keep_dims", False))


def _mean(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    return (x if x.is_floating_point() else x.double()).mean(axes, keepdim=keep)


def _prod(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    for axis in sorted((axis % x.dim() for axis in axes), reverse=True):
        x = x.prod(axis, keepdim=keep)
    return x


def _sum(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    return x.sum(axes, keepdim=keep)


_reduction("reduce_mean", _mean)
_reduction("reduce_sum", _sum)
_reduction("reduce_prod", _prod)
_reduction("reduce_max", lambda x, axes, keep: x.amax(axes, keepdim=keep), exact=True)
_reduction("reduce_min", lambda x, axes, keep: x.amin(axes, keepdim=keep), exact=True)
_reduction("reduce_l1_norm", lambda x, axes, keep: _sum(x.abs(), axes, keep))
_reduction("reduce_l2_norm", lambda x, axes, keep: _sum(x.square(), axes, keep).sqrt())
_reduction("reduce_log_sum", lambda x, axes, keep: _sum(x, axes, keep).log())
_reduction("reduce_log_sum_exp", lambda x, axes, keep: torch.logsumexp(x, axes, keepdim=keep))
_reduction("reduce_sum_square", lambda x, axes, keep: _sum(x.square(), axes, keep))


def _arg(op_type: str, function: Callable[[Tensor, int, bool], Tensor]) -> None:
    @implements(op_type, "x", "axis keep_dims output_dtype")
    def _evaluate(call: Call) -> Result:
        return function(call.tensor("x"), call.integer("axis", -1), call.flag("keep_dims", False))


_arg("reduce_argmax", lambda x, axis, keep: x.argmax(axis, keepdim=keep))
_arg("reduce_argmin", lambda x, axis, keep: x.argmin(axis, keepdim=keep))


@implements("argsort", "x", "axis ascending")
def _argsort(call: Call) -> Result:
    descending = not call.flag("ascending", False)
    return call.tensor("x").argsort(dim=call.integer("axis", -1), descending=descending, stable=True)


@implements("topk", "x", "k axis ascending sort return_indices output_indices_dtype")
def _topk(call: Call) -> Result:
    """The k largest, or with ``ascending`` smallest, sorted; ties in the order of the input."""
    x, axis = call.tensor("x"), call.integer("axis", -1)
    values, indices = x.sort(dim=axis, descending=not call.flag("ascending", False), stable=True)
    k = call.integer("k", 1)
    top = values.narrow(axis, 0, k)
    return (top, indices.narrow(axis, 0, k)) if call.flag("return_indices", True) else top


@implements("cumsum", "x", "axis exclusive reverse")
def _cumsum(call: Call) -> Result:
    x, axis = call.tensor("x"), call.integer("axis", 0)
    reverse = call.flag("reverse", False)
    if reverse:
        x = x.flip(axis)
    total = x.cumsum(axis, dtype=x.dtype)
    if call.flag("exclusive", False):
        total = total - x
    return total.flip(axis) if reverse else total
