"""FastViTHD, the vision encoder, in its re-parameterised form.

FastVLM (arXiv 2412.13303) describes the architecture: a convolutional stem, three stages of RepMixer
blocks, two of self-attention, each stage halving the resolution (1/64 in all), then a depthwise
expansion with squeeze-and-excitation. Every multi-branch block of training is one convolution here,
as published. Parameter names are those of the checkpoint after
``model.vision_tower.vision_tower.model.``; sizes come from the tensors, so that any width works.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

import torch
from torch import nn
from torch.nn import functional

ATTENTION_HEAD_WIDTH = 32
"""Width of one attention head at every size of FastViT (arXiv 2303.14189, section 3)."""


class Mixer(StrEnum):
    """How the blocks of a stage mix positions."""

    CONVOLUTION = "convolution"
    ATTENTION = "attention"


@dataclass(frozen=True)
class Stage:
    """One resolution of the encoder: ``depth`` blocks of ``width`` channels."""

    width: int
    depth: int
    hidden: int
    mixer: Mixer
    positional: bool


@dataclass(frozen=True)
class FastViTHDLayout:
    """Every size of one FastViTHD."""

    stages: tuple[Stage, ...]
    expanded: int
    squeezed: int
    head: int

    @classmethod
    def from_shapes(cls, shapes: Mapping[str, tuple[int, ...]]) -> FastViTHDLayout:
        """The layout that tensors of these names and shapes make up.

        Raises:
            ValueError: the names are not those of a FastViTHD.
        """
        members: dict[int, set[str]] = {}
        for name in shapes:
            if match := re.match(r"network\.(\d+)\.(.+)", name):
                members.setdefault(int(match[1]), set()).add(match[2])
        if sorted(members) != list(range(len(members))) or not members:
            raise ValueError("the vision tower's network.N blocks are missing or not numbered from 0")
        stages: list[Stage] = []
        positional = False
        for index in sorted(members):
            names = members[index]
            if "reparam_conv.weight" in names:
                positional = True
            elif "proj.0.lkb_reparam.weight" not in names:
                prefix = f"network.{index}"
                hidden, width = shapes[f"{prefix}.0.convffn.fc1.weight"][:2]
                depth = 1 + max(int(name.split(".")[0]) for name in names)
                mixer = Mixer.ATTENTION if "0.token_mixer.qkv.weight" in names else Mixer.CONVOLUTION
                stages.append(Stage(width, depth, hidden, mixer, positional))
                positional = False
        expanded = shapes["conv_exp.reparam_conv.weight"][0]
        squeezed = shapes["conv_exp.se.reduce.weight"][0]
        return cls(tuple(stages), expanded, squeezed, shapes["head.proj"][1])


class SqueezeExcitation(nn.Module):
    """Scales each channel by a gate computed from its mean over the image."""

    def __init__(self, channels: int, squeezed: int) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(channels, squeezed, 1)
        self.expand = nn.Conv2d(squeezed, channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``x`` [B, channels, Y, X] → the same shape."""
        gate = x.mean(dim=(2, 3), keepdim=True)
        return x * torch.sigmoid(self.expand(functional.relu(self.reduce(gate))))


class FusedConv(nn.Module):
    """A MobileOne block after fusion: one convolution, an optional gate, GELU."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1, squeezed: int = 0
    ) -> None:
        super().__init__()
        self.reparam_conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups)
        self.se = SqueezeExcitation(outputs, squeezed) if squeezed else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``x`` [B, inputs, Y, X] → [B, outputs, Y/stride, X/stride]."""
        return functional.gelu(self.se(self.reparam_conv(x)))


class FusedDepthwise(nn.Module):
    """A depthwise convolution into which the identity, norms and scales were fused; no activation."""

    def __init__(self, channels: int, kernel: int) -> None:
        super().__init__()
        self.reparam_conv = nn.Conv2d(channels, channels, kernel, 1, kernel // 2, groups=channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``x`` [B, channels, Y, X] → the same shape."""
        out: torch.Tensor = self.reparam_conv(x)
        return out


class LargeKernelConv(nn.Module):
    """A fused 7×7 grouped convolution of stride 2, then GELU."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.lkb_reparam = nn.Conv2d(inputs, outputs, 7, 2, 3, groups=inputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``x`` [B, inputs, Y, X] → [B, outputs, Y/2, X/2]."""
        return functional.gelu(self.lkb_reparam(x))


class Downsample(nn.Module):
    """Halves the resolution between two stages."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.proj = nn.Sequential(LargeKernelConv(inputs, outputs), FusedConv(outputs, outputs, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``x`` [B, inputs, Y, X] → [B, outputs, Y/2, X/2]."""
        out: torch.Tensor = self.proj(x)
        return out


class DepthwiseNorm(nn.Module):
    """The 7×7 depthwise convolution and batch norm in front of a feed-forward network."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 7, 1, 3, groups=channels, bias=False)
        self.bn = nn.BatchNorm2d(channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``x`` [B, channels, Y, X] → the same shape."""
        out: torch.Tensor = self.bn(self.conv(x))
        return out


class ConvFeedForward(nn.Module):
    """Depthwise convolution and norm, then a two-layer 1×1 network."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.conv = DepthwiseNorm(channels)
        self.fc1 = nn.Conv2d(channels, hidden, 1)
        self.fc2 = nn.Conv2d(hidden, channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``x`` [B, channels, Y, X] → the same shape."""
        out: torch.Tensor = self.fc2(functional.gelu(self.fc1(self.conv(x))))
        return out


def scaled(scale: nn.Parameter | None, x: torch.Tensor) -> torch.Tensor:
    """``scale`` [channels, 1, 1] times ``x`` [B, channels, Y, X]; or ``x`` alone."""
    return x if scale is None else scale * x


class ConvBlock(nn.Module):
    """A RepMixer block: depthwise mixing, then a scaled residual feed-forward network."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.token_mixer = FusedDepthwise(channels, 3)
        self.convffn = ConvFeedForward(channels, hidden)
        self.layer_scale = nn.Parameter(torch.ones(channels, 1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``x`` [B, channels, Y, X] → the same shape."""
        x = self.token_mixer(x)
        return x + scaled(self.layer_scale, self.convffn(x))


class ChannelNorm(nn.Module):
    """Layer norm over the channel axis of an image."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``x`` [B, channels, Y, X] → the same shape."""
        last = x.permute(0, 2, 3, 1)
        return functional.layer_norm(last, (last.shape[-1],), self.weight, self.bias, 1e-5).permute(
            0, 3, 1, 2
        )


class SelfAttention(nn.Module):
    """Multi-head self-attention over all positions of an image."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.heads = channels // ATTENTION_HEAD_WIDTH
        self.qkv = nn.Linear(channels, 3 * channels, bias=False)
        self.proj = nn.Linear(channels, channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``x`` [B, channels, Y, X] → the same shape."""
        batch, channels, height, width = x.shape
        tokens = x.flatten(2).transpose(1, 2)
        # No more than four axes, which is all that GPU delegates take.
        query, key, value = (
            part.view(batch, height * width, self.heads, ATTENTION_HEAD_WIDTH).transpose(1, 2)
            for part in self.qkv(tokens).chunk(3, dim=-1)
        )
        mixed = functional.scaled_dot_product_attention(query, key, value)
        mixed = mixed.transpose(1, 2).reshape(batch, height * width, channels)
        out: torch.Tensor = self.proj(mixed)
        return out.transpose(1, 2).view(batch, channels, height, width)


class AttentionBlock(nn.Module):
    """Self-attention, then a feed-forward network, both as scaled residuals."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.norm = ChannelNorm(channels)
        self.token_mixer = SelfAttention(channels)
        self.convffn = ConvFeedForward(channels, hidden)
        self.layer_scale_1 = nn.Parameter(torch.ones(channels, 1, 1))
        self.layer_scale_2 = nn.Parameter(torch.ones(channels, 1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``x`` [B, channels, Y, X] → the same shape."""
        x = x + scaled(self.layer_scale_1, self.token_mixer(self.norm(x)))
        return x + scaled(self.layer_scale_2, self.convffn(x))


class PoolHead(nn.Module):
    """The classifier's projection: in every published checkpoint, read by nothing in Mobile-O."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.proj = nn.Parameter(torch.zeros(inputs, outputs))


class FastViTHD(nn.Module):
    """The vision tower: image → one feature vector a 64×64 patch."""

    def __init__(self, layout: FastViTHDLayout) -> None:
        super().__init__()
        first, last = layout.stages[0].width, layout.stages[-1].width
        self.patch_embed = nn.Sequential(
            FusedConv(3, first, 3, 2), FusedConv(first, first, 3, 2, groups=first), FusedConv(first, first, 1)
        )
        network: list[nn.Module] = []
        previous: Stage | None = None
        for stage in layout.stages:
            if previous is not None:
                network.append(Downsample(previous.width, stage.width))
            if stage.positional:
                network.append(FusedDepthwise(stage.width, 7))
            block = AttentionBlock if stage.mixer is Mixer.ATTENTION else ConvBlock
            network.append(nn.Sequential(*(block(stage.width, stage.hidden) for _ in range(stage.depth))))
            previous = stage
        self.network = nn.Sequential(*network)
        self.conv_exp = FusedConv(last, layout.expanded, 3, groups=last, squeezed=layout.squeezed)
        self.head = PoolHead(layout.expanded, layout.head)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """``image`` [B, 3, R, R] in 0..1 → features [B, N, expanded] with N = (R / 64)²."""
        features: torch.Tensor = self.conv_exp(self.network(self.patch_embed(image)))
        return features.flatten(2).transpose(1, 2)


class Projector(nn.Sequential):
    """``mm_projector`` of type ``mlp2x_gelu``: vision features [B, N, expanded] → [B, N, D]."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(nn.Linear(inputs, outputs), nn.GELU(), nn.Linear(outputs, outputs))


def fuse_for_inference(encoder: FastViTHD) -> None:
    """Folds batch norms and layer scales into the convolutions next to them, in place.

    The pooled head goes: no feature comes from it.

    norm(conv(x)) = (g·W)x + (b − g·m) with g = weight / sqrt(var + eps), and s·(Wx + b) = (s·W)x + s·b: exact
    in real arithmetic, and fewer operations on a device.
    """
    for module in encoder.modules():
        if isinstance(module, DepthwiseNorm) and isinstance(module.bn, nn.BatchNorm2d):
            module.conv = nn.utils.fuse_conv_bn_eval(module.conv, module.bn)
            module.bn = nn.Identity()  # type: ignore[assignment]
        elif isinstance(module, ConvBlock):
            _scale_output(module.convffn.fc2, module, "layer_scale")
        elif isinstance(module, AttentionBlock):
            _scale_output(module.token_mixer.proj, module, "layer_scale_1")
            _scale_output(module.convffn.fc2, module, "layer_scale_2")
    del encoder.head


def _scale_output(layer: nn.Conv2d | nn.Linear, block: nn.Module, name: str) -> None:
    """Moves the layer scale ``block.<name>`` into ``layer``, whose output it multiplies."""
    scale = getattr(block, name).detach().flatten()
    assert layer.bias is not None
    layer.weight = nn.Parameter(
        layer.weight * scale.view(-1, *[1] * (layer.weight.dim() - 1)), requires_grad=False
    )
    layer.bias = nn.Parameter(layer.bias * scale, requires_grad=False)
    setattr(block, name, None)
