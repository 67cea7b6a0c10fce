"""The connector without a mask: what is padding shows in the numbers themselves."""

from __future__ import annotations

import torch
from torch import nn


class MaskedByZeros(nn.Module):
    """A projector whose padding is known by its zeros.

    The app pads a prompt's hidden states with zeros before the connector and says no length. A real position
    is never zero in all layers, since the last of them comes from a norm; so a position of zeros is padding.
    But where everything is zero, which asks for the unconditional branch, nothing tells the two apart, and
    every position counts as real.
    """

    def __init__(self, projector: nn.Module) -> None:
        super().__init__()
        self.projector = projector

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """``hidden_states`` [B, K, S, D] → conditioning [B, S, F]."""
        real = (hidden_states.abs().amax(dim=(1, 3)) > 0).to(hidden_states.dtype)
        # All ones where no position is real.
        mask = torch.maximum(real, 1 - real.amax(dim=1, keepdim=True))
        out: torch.Tensor = self.projector(hidden_states, mask)
        return out
