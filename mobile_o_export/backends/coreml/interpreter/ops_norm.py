"""Normalizations (defs/iOS15/normalization.py)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from mobile_o_export.backends.coreml.interpreter.registry import Call, Result, implements

_EPSILON = 1e-5
_L2_EPSILON = 1e-6


def _standardized(x: Tensor, axes: list[int], epsilon: float) -> Tensor:
    centred = x - x.mean(axes, keepdim=True)
    return centred / torch.sqrt(centred.square().mean(axes, keepdim=True) + epsilon)


def _affine(call: Call, x: Tensor, shape: list[int]) -> Tensor:
    """``x * gamma + beta``, each given as ``shape`` so that it broadcasts, or left out."""
    gamma, beta = call.optional("gamma"), call.optional("beta")
    if gamma is not None:
        x = x * gamma.reshape(shape)
    return x if beta is None else x + beta.reshape(shape)


@implements("layer_norm", "x", "axes gamma beta epsilon")
def _layer_norm(call: Call) -> Result:
    """gamma, beta in the shape of the normalized axes, in their order in x."""
    x = call.tensor("x")
    axes = sorted(axis % x.dim() for axis in call.integers("axes") or range(x.dim()))
    shape = [size if axis in axes else 1 for axis, size in enumerate(x.shape)]
    return _affine(call, _standardized(x, axes, call.number("epsilon", _EPSILON)), shape)


@implements("instance_norm", "x", "gamma beta epsilon")
def _instance_norm(call: Call) -> Result:
    """For x [B, C, spatial...]; gamma, beta [C]."""
    x = call.tensor("x")
    spatial = list(range(2, x.dim()))
    normalized = _standardized(x, spatial, call.number("epsilon", _EPSILON))
    return _affine(call, normalized, [1, x.shape[1]] + [1] * len(spatial))


@implements("batch_norm", "x mean variance", "gamma beta epsilon")
def _batch_norm(call: Call) -> Result:
    """For x [B, C, spatial...]; mean, variance, gamma, beta [C]."""
    return functional.batch_norm(
        call.tensor("x"),
        call.tensor("mean"),
        call.tensor("variance"),
        call.optional("gamma"),
        call.optional("beta"),
        eps=call.number("epsilon", _EPSILON),
    )


@implements("l2_norm", "x", "epsilon")
def _l2_norm(call: Call) -> Result:
    """Over the last three axes, whatever the rank."""
    x = call.tensor("x")
    total = x.square().sum((-3, -2, -1), keepdim=True)
    return x / torch.sqrt(total + call.number("epsilon", _L2_EPSILON))


@implements("local_response_norm", "x size", "alpha beta k")
def _local_response_norm(call: Call) -> Result:
    """As the documentation has it, over axis 1; a test of coremltools expects other numbers of [1, 3, 2]."""
    return functional.local_response_norm(
        call.tensor("x"),
        call.integer("size", 1),
        alpha=call.number("alpha", 1e-4),
        beta=call.number("beta", 0.75),
        k=call.number("k", 1.0),
    )
