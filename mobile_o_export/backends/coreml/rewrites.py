"""What coremltools 9.0 turns into something else without a word: spelled out otherwise, or refused.

Found by lowering each operator alone (tests/backends/test_operators_alone.py), which also holds the faults
themselves: a version that mends one fails there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import fx, nn

from mobile_o_export.errors import LoweringError

HALF_LEAST = 2.0**-24
"""fp16's smallest number above 0; coremltools raises positive constants below it to it when it casts."""


class TanhGELU(nn.Module):
    """GELU's tanh form, written out: 0.5·x·(1 + tanh(√(2/π)·(x + 0.044715·x³)))."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``x`` of any shape → the same shape."""
        return 0.5 * x * (1.0 + torch.tanh(math.sqrt(2.0 / math.pi) * x * (1.0 + 0.044715 * x * x)))


def spell_out_tanh_gelu(module: nn.Module) -> None:
    """Replaces GELU(approximate="tanh") in place.

    coremltools 9 drops ``approximate`` on its torch.export path and emits the exact GELU, which differs by
    up to 4.7e-4. SANA's caption projection has one.
    """
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.GELU) and child.approximate == "tanh":
                setattr(parent, name, TanhGELU())


def _divided(x: torch.Tensor) -> torch.Tensor:
    return torch.full((), 1.0, dtype=x.dtype, device=x.device) / x


DECOMPOSITIONS: Mapping[Any, Callable[..., Any]] = {torch.ops.aten.reciprocal.default: _divided}
"""``1 / x`` would become MIL's ``inverse``, 1 / (x + 1e-4): 20 dB at x = 1e-3, and wrong below."""


def refuse_misread(graph: fx.Graph, what: str, *, half: bool) -> None:
    """Raises LoweringError where ``graph`` holds an operator that would be computed otherwise than it says.

    Args:
        graph: an exported program's, decomposed.
        what: it is, for the message.
        half: whether coremltools will cast it to fp16.
    """
    for node in graph.nodes:
        if node.op == "call_function" and (reason := _misread(node, half=half)):
            raise LoweringError(
                f"{what}: {node.target} cannot be left to coremltools: {reason}. Write it with others."
            )


def _misread(node: fx.Node, *, half: bool) -> str:
    """How coremltools misreads ``node``, or an empty string."""
    aten, target = torch.ops.aten, node.target
    if target in (aten.add.Tensor, aten.sub.Tensor, aten.add.Scalar, aten.sub.Scalar):
        alpha = node.kwargs.get("alpha", node.args[2] if len(node.args) > 2 else 1)
        if alpha != 1:
            return "it drops alpha"
    if target in (aten._upsample_bilinear2d_aa.default, aten._upsample_bilinear2d_aa.vec):
        return "it drops the antialias"
    if target in (aten.argmax.default, aten.argmin.default):
        dim = node.kwargs.get("dim", node.args[1] if len(node.args) > 1 else None)
        if dim is None:
            return "without a dim it reduces the last axis instead of all"
    if target is aten.gelu.default and node.kwargs.get("approximate", "none") == "tanh":
        return "it makes the exact GELU of the tanh form"
    if target in (aten._log_softmax.default, aten.log_softmax.int):
        return "it ends at -103, where the softmax under the logarithm becomes 0"
    if target in (aten.rms_norm.default, aten._fused_rms_norm.default):
        return "it gives NaN for a row of zeros"
    if half:
        numbers = [value for value in (*node.args, *node.kwargs.values()) if isinstance(value, float)]
        if tiny := next((value for value in numbers if 0 < value < HALF_LEAST), None):
            return f"in fp16 it raises {tiny:g} to {HALF_LEAST:.2g}"
    return ""
