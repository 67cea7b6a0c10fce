"""Matrix products and attention (defs/iOS15/linear.py, defs/iOS18/transformers.py)."""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor
from torch.nn import functional

from mobile_o_export.backends.coreml.interpreter.registry import Call, Result, implements


def _alike(*tensors: Tensor) -> list[Tensor]:
    """The tensors in one type: a product of integers and floats is one of floats."""
    dtype = functools.reduce(torch.promote_types, (tensor.dtype for tensor in tensors))
    return [tensor.to(dtype) for tensor in tensors]


@implements("linear", "x weight", "bias")
def _linear(call: Call) -> Result:
    given = (call.tensor("x"), call.tensor("weight"), call.optional("bias"))
    return functional.linear(*_alike(*(tensor for tensor in given if tensor is not None)))


@implements("matmul", "x y", "transpose_x transpose_y")
def _matmul(call: Call) -> Result:
    x, y = call.tensor("x"), call.tensor("y")
    # A transposition "has no effect when x is 1-D".
    if call.flag("transpose_x", False) and x.dim() > 1:
        x = x.transpose(-1, -2)
    if call.flag("transpose_y", False) and y.dim() > 1:
        y = y.transpose(-1, -2)
    return torch.matmul(*_alike(x, y))


@implements("einsum", "values equation")
def _einsum(call: Call) -> Result:
    return torch.einsum(call.text("equation", ""), *_alike(*call.tensors("values")))


@implements("scaled_dot_product_attention", "query key value", "attn_mask")
def _attention(call: Call) -> Result:
    """Softmax(QK^T / sqrt(E) + mask) V: query [B, *, L, E], key [B, *, S, E], value [B, *, S, EV].

    Written out, so that a row masked out whole gives NaN as the op's definition says; torch's own
    function gives 0 there.
    """
    query, key, mask = call.tensor("query"), call.tensor("key"), call.optional("attn_mask")
    scores = torch.matmul(query / math.sqrt(query.shape[-1]), key.transpose(-1, -2))
    if mask is not None and mask.dtype is torch.bool:
        scores = scores.masked_fill(~mask, -math.inf)
    elif mask is not None:
        scores = scores + mask
    return torch.matmul(torch.softmax(scores, -1), call.tensor("value"))
