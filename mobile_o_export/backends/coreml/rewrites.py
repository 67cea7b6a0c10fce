"""Rewrites around coremltools' own faults, before a module is traced."""

from __future__ import annotations

import math

import torch
from torch import nn


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
