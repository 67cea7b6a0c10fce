"""Elementwise arithmetic, comparison, logic and casts (defs/iOS15/elementwise_{unary,binary}.py)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from mobile_o_export.backends.coreml.interpreter.registry import Call, Result, implements

# Defaults as in each op's ``default_inputs``.
_LOG_EPSILON = 1e-45
_RSQRT_EPSILON = 1e-12
_INVERSE_EPSILON = 1e-4


def _unary(op_type: str, function: Callable[[Tensor], Tensor], *, exact: bool = False) -> None:
    @implements(op_type, "x", exact=exact)
    def _evaluate(call: Call) -> Result:
        return function(call.tensor("x"))


def _binary(op_type: str, function: Callable[[Tensor, Tensor], Tensor]) -> None:
    @implements(op_type, "x y")
    def _evaluate(call: Call) -> Result:
        return function(call.tensor("x"), call.tensor("y"))


_unary("abs", torch.abs, exact=True)
_unary("acos", torch.acos)
_unary("asin", torch.asin)
_unary("atan", torch.atan)
_unary("atanh", torch.atanh)
_unary("ceil", torch.ceil)
_unary("cos", torch.cos)
_unary("cosh", torch.cosh)
_unary("erf", torch.erf)
_unary("exp", torch.exp)
_unary("exp2", torch.exp2)
_unary("floor", torch.floor)
_unary("logical_not", torch.logical_not)
_unary("round", torch.round)  # Half to even, as numpy.round in the op's value inference.
_unary("sign", torch.sign)
_unary("sin", torch.sin)
_unary("sinh", torch.sinh)
_unary("sqrt", torch.sqrt)
_unary("square", torch.square)
_unary("tan", torch.tan)
_unary("tanh", torch.tanh)
_unary("identity", lambda x: x, exact=True)

_binary("add", torch.add)
_binary("sub", torch.sub)
_binary("mul", torch.mul)
_binary("real_div", torch.true_divide)
_binary("floor_div", torch.floor_divide)
_binary("mod", torch.remainder)  # Sign of the divisor, as Python's %.
_binary("pow", torch.pow)
_binary("maximum", torch.maximum)
_binary("minimum", torch.minimum)
_binary("equal", torch.eq)
_binary("not_equal", torch.ne)
_binary("less", torch.lt)
_binary("less_equal", torch.le)
_binary("greater", torch.gt)
_binary("greater_equal", torch.ge)
_binary("logical_and", torch.logical_and)
_binary("logical_or", torch.logical_or)
_binary("logical_xor", torch.logical_xor)


@implements("log", "x", "epsilon")
def _log(call: Call) -> Result:
    return torch.log(call.tensor("x") + call.number("epsilon", _LOG_EPSILON))


@implements("rsqrt", "x", "epsilon")
def _rsqrt(call: Call) -> Result:
    return torch.rsqrt(call.tensor("x") + call.number("epsilon", _RSQRT_EPSILON))


@implements("inverse", "x", "epsilon")
def _inverse(call: Call) -> Result:
    return torch.reciprocal(call.tensor("x") + call.number("epsilon", _INVERSE_EPSILON))


@implements("clip", "x alpha beta")
def _clip(call: Call) -> Result:
    return torch.minimum(torch.maximum(call.tensor("x"), call.tensor("alpha")), call.tensor("beta"))


@implements("threshold", "x alpha")
def _threshold(call: Call) -> Result:
    return torch.maximum(call.tensor("x"), call.tensor("alpha"))


@implements("cast", "x dtype")
def _cast(call: Call) -> Result:
    x = call.tensor("x")
    # The declared output type does the rest; only "nonzero is true" differs from a truncation.
    return x != 0 if call.outputs[0].dtype == "bool" and x.dtype is not torch.bool else x


@implements("select", "cond a b", exact=True)
def _select(call: Call) -> Result:
    return torch.where(call.tensor("cond"), call.tensor("a"), call.tensor("b"))
