"""FastViTHD as it is trained: branches with batch norms in the place of each fused convolution.

The checkpoint holds the re-parameterised tower, one convolution for every set of branches (arXiv 2303.14189,
section 3.2). Convolutions without norms between them learn slowly, so that training has the branches, and
:func:`fold` adds them up, exactly in real arithmetic.
"""

from __future__ import annotations

import torch
from torch import nn

from mobile_o_export.model.fastvithd import FastViTHD

FUSED = ("reparam_conv", "lkb_reparam")
"""What the fused convolutions are called in their parents."""


class Branches(nn.Module):
    """norm(convolution), and norm(identity) where input and output have one shape."""

    def __init__(self, fused: nn.Conv2d) -> None:
        super().__init__()
        self.conv = nn.Conv2d(
            fused.in_channels,
            fused.out_channels,
            fused.kernel_size,  # type: ignore[arg-type]
            fused.stride,  # type: ignore[arg-type]
            fused.padding,
            groups=fused.groups,
            bias=False,
        )
        nn.init.kaiming_normal_(self.conv.weight, nonlinearity="relu")
        self.norm = nn.BatchNorm2d(fused.out_channels)
        same = fused.in_channels == fused.out_channels and fused.stride == (1, 1)
        self.skip = nn.BatchNorm2d(fused.in_channels) if same else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``x`` [B, inputs, Y, X] → [B, outputs, Y/stride, X/stride]."""
        out: torch.Tensor = self.norm(self.conv(x))
        return out if self.skip is None else out + self.skip(x)

    @torch.no_grad()
    def folded(self) -> nn.Conv2d:
        """One convolution that computes the same with the norms' running statistics."""
        weight, bias = _folded(self.conv.weight, self.norm)
        if self.skip is not None:
            identity = torch.zeros_like(self.conv.weight)
            per_group = self.conv.in_channels // self.conv.groups
            middle_y, middle_x = (size // 2 for size in self.conv.kernel_size)
            for channel in range(self.conv.out_channels):
                identity[channel, channel % per_group, middle_y, middle_x] = 1
            skip_weight, skip_bias = _folded(identity, self.skip)
            weight, bias = weight + skip_weight, bias + skip_bias
        out = nn.Conv2d(
            self.conv.in_channels,
            self.conv.out_channels,
            self.conv.kernel_size,  # type: ignore[arg-type]
            self.conv.stride,  # type: ignore[arg-type]
            self.conv.padding,  # type: ignore[arg-type]
            groups=self.conv.groups,
        )
        out.weight.copy_(weight)
        out.bias.copy_(bias)  # type: ignore[union-attr]
        return out


def _folded(weight: torch.Tensor, norm: nn.BatchNorm2d) -> tuple[torch.Tensor, torch.Tensor]:
    """norm(Wx) = (g·W)x + (b − g·m) with g = weight / sqrt(var + eps)."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    gain = norm.weight / torch.sqrt(norm.running_var + norm.eps)
    return weight * gain.view(-1, 1, 1, 1), norm.bias - gain * norm.running_mean


def unfold(encoder: FastViTHD) -> FastViTHD:
    """Replaces every fused convolution by new branches, in place."""
    for parent in list(encoder.modules()):
        for name in FUSED:
            if isinstance(fused := getattr(parent, name, None), nn.Conv2d):
                setattr(parent, name, Branches(fused))
    return encoder


def fold(encoder: FastViTHD) -> FastViTHD:
    """Replaces all branches by the convolutions that they add up to, in place."""
    for parent in list(encoder.modules()):
        for name in FUSED:
            if isinstance(branches := getattr(parent, name, None), Branches):
                setattr(parent, name, branches.folded())
    return encoder
