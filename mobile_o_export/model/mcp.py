"""The Mobile Conditioning Projector (arXiv 2602.20161): last K hidden states of the LLM → DiT conditioning.

A prompt shorter than the sequence it is run at gives the unpadded result: ``mask`` keeps the padding out
of the two places where positions meet, the edges of the depthwise convolutions and the pooling of the
channel attention.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn
from torch.nn import functional


class SeparableConv(nn.Module):
    """Depthwise then pointwise convolution over the sequence, layer norm, hardswish."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv1d(width, width, 3, padding=1, groups=width, bias=False)
        self.pointwise = nn.Conv1d(width, width, 1, bias=False)
        self.norm = nn.LayerNorm(width)

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """``x`` [B, S, width], ``mask`` [B, S, 1] of 0 and 1 or None → [B, S, width]."""
        if mask is not None:
            # The convolution must see zeros past the end, as it does at the edge of an unpadded prompt.
            x = x * mask
        mixed = self.pointwise(self.depthwise(x.transpose(1, 2))).transpose(1, 2)
        return functional.hardswish(self.norm(mixed))


class ChannelAttention(nn.Module):
    """Scales each channel by a gate computed from its mean over the sequence."""

    def __init__(self, width: int, squeezed: int) -> None:
        super().__init__()
        self.fc = nn.Sequential(
            nn.Linear(width, squeezed, bias=False), nn.Hardswish(), nn.Linear(squeezed, width, bias=False)
        )

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """``x`` [B, S, width], ``mask`` [B, S, 1] or None → [B, S, width]."""
        if mask is None:
            mean = x.mean(dim=1, keepdim=True)
        else:
            mean = (x * mask).sum(dim=1, keepdim=True) / mask.sum(dim=1, keepdim=True)
        return x * functional.hardsigmoid(self.fc(mean))


class RefinementBlock(nn.Module):
    """A separable convolution and channel attention around a residual, then layer norm."""

    def __init__(self, width: int, squeezed: int) -> None:
        super().__init__()
        self.conv = SeparableConv(width)
        self.channel_attn = ChannelAttention(width, squeezed)
        self.norm = nn.LayerNorm(width)

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """``x`` [B, S, width], ``mask`` [B, S, 1] or None → [B, S, width]."""
        out: torch.Tensor = self.norm(x + self.channel_attn(self.conv(x, mask), mask))
        return out


class MobileConditioningProjector(nn.Module):
    """Hidden states of K layers, fused by learned weights and refined over the sequence."""

    shares: torch.Tensor | None

    def __init__(
        self,
        hidden_size: int,
        conditioning_layers: int,
        conditioning_width: int,
        width: int = 512,
        squeezed: int = 128,
        blocks: int = 2,
    ) -> None:
        super().__init__()
        self.layer_weights = nn.Parameter(torch.zeros(conditioning_layers))
        self.temperature = nn.Parameter(torch.ones(()))
        self.register_buffer("shares", None, persistent=False)
        self.input_compress = nn.Sequential(
            nn.Linear(hidden_size, width), nn.LayerNorm(width), nn.Hardswish()
        )
        self.sequence_refiners = nn.ModuleList(RefinementBlock(width, squeezed) for _ in range(blocks))
        self.output_proj = nn.Sequential(
            nn.Linear(width, conditioning_width), nn.LayerNorm(conditioning_width)
        )

    @classmethod
    def layout(cls, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
        """The constructor's arguments for tensors of these names and shapes."""
        width, hidden_size = shapes["input_compress.0.weight"]
        return {
            "hidden_size": hidden_size,
            "conditioning_layers": shapes["layer_weights"][0],
            "conditioning_width": shapes["output_proj.0.weight"][0],
            "width": width,
            "squeezed": shapes["sequence_refiners.0.channel_attn.fc.0.weight"][0],
            "blocks": sum(name.endswith("conv.depthwise.weight") for name in shapes),
        }

    def forward(self, hidden_states: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """The DiT's conditioning.

        Args:
            hidden_states: [B, K, S, D], the last K entries of Hugging Face's ``hidden_states``.
            mask: [B, S], 1 where a position is real and 0 where it is padding; None where all are real.

        Returns:
            [B, S, F]; at padded positions the values mean nothing.
        """
        shares = self._shares() if self.shares is None else self.shares
        fused = (hidden_states * shares.view(1, -1, 1, 1)).sum(dim=1)
        column = None if mask is None else mask.unsqueeze(-1)
        x = self.input_compress(fused)
        for block in self.sequence_refiners:
            x = block(x, column)
        out: torch.Tensor = self.output_proj(x)
        return out

    def fuse_for_inference(self) -> None:
        """Keeps the layers' shares as numbers, so that no graph computes them again."""
        self.shares = self._shares().detach()

    def _shares(self) -> torch.Tensor:
        """Of each layer in what is fused, [K]."""
        return functional.softmax(self.layer_weights / self.temperature, dim=0)
