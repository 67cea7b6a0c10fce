"""Activations (defs/iOS15/activation.py)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from mobile_o_export.backends.coreml.interpreter.registry import Call, Result, implements


def _plain(op_type: str, function: Callable[[Tensor], Tensor], *, exact: bool = False) -> None:
    @implements(op_type, "x", exact=exact)
    def _evaluate(call: Call) -> Result:
        return function(call.tensor("x"))


def _with_alpha(op_type: str, function: Callable[[Tensor, Tensor], Tensor]) -> None:
    @implements(op_type, "x alpha")
    def _evaluate(call: Call) -> Result:
        return function(call.tensor("x"), call.tensor("alpha"))


def _with_alpha_and_beta(op_type: str, function: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
    @implements(op_type, "x alpha beta")
    def _evaluate(call: Call) -> Result:
        return function(call.tensor("x"), call.tensor("alpha"), call.tensor("beta"))


def _per_channel(values: Tensor, x: Tensor) -> Tensor:
    """``values`` [C] in a shape that broadcasts over ``x`` [B, C, ...]."""
    return values.reshape(1, -1, *([1] * (x.dim() - 2)))


def _softplus(x: Tensor) -> Tensor:
    return torch.logaddexp(x, torch.zeros((), dtype=x.dtype))


_plain("relu", torch.relu, exact=True)
_plain("relu6", functional.relu6)
_plain("sigmoid", torch.sigmoid)
_plain("silu", functional.silu)
_plain("softplus", _softplus)
_plain("softsign", functional.softsign)
_with_alpha("elu", lambda x, alpha: torch.where(x < 0, alpha * torch.expm1(x), x))
_with_alpha("leaky_relu", lambda x, alpha: torch.where(x < 0, alpha * x, x))
_with_alpha("thresholded_relu", lambda x, alpha: torch.where(x < alpha, 0.0, x))
_with_alpha("prelu", lambda x, alpha: torch.where(x > 0, x, _per_channel(alpha, x) * x))
_with_alpha_and_beta("linear_activation", lambda x, alpha, beta: alpha * x + beta)
_with_alpha_and_beta("sigmoid_hard", lambda x, alpha, beta: (alpha * x + beta).clamp(0, 1))
_with_alpha_and_beta("scaled_tanh", lambda x, alpha, beta: alpha * torch.tanh(beta * x))
_with_alpha_and_beta(
    "clamped_relu", lambda x, alpha, beta: torch.minimum(torch.where(x >= 0, x, alpha * x), beta)
)
_with_alpha_and_beta(
    "softplus_parametric",
    lambda x, alpha, beta: _per_channel(alpha, x) * _softplus(x * _per_channel(beta, x)),
)


@implements("gelu", "x", "mode")
def _gelu(call: Call) -> Result:
    x, mode = call.tensor("x"), call.text("mode", "EXACT")
    if mode == "EXACT":
        return functional.gelu(x)
    if mode == "TANH_APPROXIMATION":
        return functional.gelu(x, approximate="tanh")
    if mode == "SIGMOID_APPROXIMATION":
        return x * torch.sigmoid(1.702 * x)
    raise call.unsupported(f"mode {mode!r}")


@implements("softmax", "x", "axis")
def _softmax(call: Call) -> Result:
    return torch.softmax(call.tensor("x"), call.integer("axis", -1))
