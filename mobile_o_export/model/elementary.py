"""Exact rewrites for engines that take floats in tensors of four axes at the most, and no gathers.

GPU delegates are such engines. Each rewrite computes what the original computes, to the last bit; goldens
come from the original modules, so parity judges these too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn import functional

from mobile_o_export.errors import ConfigError
from mobile_o_export.model.llm import MASKED_SCORE

if TYPE_CHECKING:
    from diffusers.models.autoencoders.autoencoder_dc import DCUpBlock2d, Decoder
    from diffusers.models.transformers.sana_transformer import SanaTransformer2DModel

FACTOR = 2
"""By which a block of DC-AE's decoder enlarges."""


def distances(position: torch.Tensor, count: int) -> torch.Tensor:
    """Each index less ``position`` [1], integers → [1, count], fp32; exact in fp16 up to 2048.

    A product and a sum, since GPU delegates lay a vector out along the batch, and add a constant one to it
    wrongly.
    """
    indices = torch.arange(count, dtype=torch.float32)
    return functional.linear(position.to(torch.float32).view(1, 1), -torch.ones(count, 1), indices)


def one_hot(distance: torch.Tensor) -> torch.Tensor:
    """1 where ``distance``, of whole numbers, is 0, and 0 elsewhere."""
    return functional.relu(1 - distance.abs())


def later_mask(distance: torch.Tensor) -> torch.Tensor:
    """The additive mask of one query: distances of the keys from it [1, T] → [1, 1, 1, T]."""
    later = functional.relu(distance) - functional.relu(distance - 1)
    return (later * MASKED_SCORE)[None, None]


class BlendedCache:
    """A cache of fixed capacity of which one position is replaced, by products with a one-hot."""

    def __init__(self, past: list[tuple[torch.Tensor, torch.Tensor]], here: torch.Tensor) -> None:
        """``past`` are keys and values [B, H, T, E] of each layer, ``here`` is [1, T]."""
        self.past = past
        self.present: list[tuple[torch.Tensor, torch.Tensor]] = []
        self.here = here.view(1, 1, -1, 1)

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """[B, H, 1, E] → the whole cache [B, H, T, E] with the position replaced."""
        old_keys, old_values = self.past[layer_idx]
        keep = 1 - self.here
        keys = old_keys * keep + key_states * self.here
        values = old_values * keep + value_states * self.here
        self.present.append((keys, values))
        return keys, values


class ElementaryDenoise(nn.Module):
    """SANA's forward pass; patches of one position need no axes of their own."""

    def __init__(self, transformer: SanaTransformer2DModel) -> None:
        super().__init__()
        if transformer.config.patch_size != 1:
            raise ConfigError(
                f"a DiT with patches of {transformer.config.patch_size} positions has tensors of six axes, "
                "which GPUs do not take. Choose another target."
            )
        self.transformer = transformer

    def forward(
        self,
        latent: torch.Tensor,
        timestep: torch.Tensor,
        conditioning: torch.Tensor,
        conditioning_mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """As ``components.dit.Denoise``: [B, C, Y, X], [B], [B, S, F], [B, S] → velocity [B, C, Y, X]."""
        dit = self.transformer
        batch, _, height, width = latent.shape
        hidden = dit.patch_embed(latent)
        modulation, embedded = dit.time_embed(timestep, batch_size=batch, hidden_dtype=hidden.dtype)
        prompt = dit.caption_norm(dit.caption_projection(conditioning))
        bias = None
        if conditioning_mask is not None:
            bias = ((1 - conditioning_mask.to(hidden.dtype)) * -10000.0).unsqueeze(1)
        for block in dit.transformer_blocks:
            hidden = block(hidden, None, prompt, bias, modulation, height, width)
        hidden = dit.proj_out(dit.norm_out(hidden, embedded, dit.scale_shift_table))
        out: torch.Tensor = hidden.reshape(batch, height, width, -1).permute(0, 3, 1, 2)
        return out


class ElementaryUpBlock(nn.Module):
    """A block of DC-AE's decoder that enlarges by two, its shortcut without an axis of copies."""

    def __init__(self, block: DCUpBlock2d) -> None:
        super().__init__()
        self.conv = block.conv
        self.interpolate, self.shortcut, self.repeats = block.interpolate, block.shortcut, block.repeats

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[1, C, Y, X] → [1, out, 2Y, 2X]."""
        if self.interpolate:
            out: torch.Tensor = self.conv(functional.interpolate(x, scale_factor=FACTOR, mode="nearest"))
        else:
            out = functional.pixel_shuffle(self.conv(x), FACTOR)
        return out + enlarged(x, self.repeats) if self.shortcut else out


def enlarged(x: torch.Tensor, repeats: int) -> torch.Tensor:
    """Each channel ``repeats`` times, then as pixel shuffle lays them: [1, C, Y, X] → [1, C r / 4, 2Y, 2X].

    Output channel o at (2y + i, 2x + j) is input channel (4 o + 2 i + j) // r.
    """
    _, channels, height, width = x.shape
    if repeats % FACTOR**2 == 0:
        return functional.interpolate(repeated(x, repeats // FACTOR**2), scale_factor=FACTOR, mode="nearest")
    if repeats == FACTOR:
        rows = x.reshape(channels // FACTOR, FACTOR, height, width).permute(0, 2, 1, 3)
        rows = rows.reshape(1, channels // FACTOR, FACTOR * height, width)
        return functional.interpolate(rows, scale_factor=(1, FACTOR), mode="nearest")
    return functional.pixel_shuffle(repeated(x, repeats), FACTOR)


def repeated(x: torch.Tensor, repeats: int) -> torch.Tensor:
    """Each channel ``repeats`` times in a row: [1, C, Y, X] → [1, C r, Y, X]."""
    if repeats == 1:
        return x
    _, channels, height, width = x.shape
    one = x.reshape(channels, 1, height * width)
    return torch.cat([one] * repeats, dim=1).reshape(1, channels * repeats, height, width)


class ElementaryDecoder(nn.Module):
    """DC-AE's decoder with such blocks; its parameters keep their names."""

    def __init__(self, decoder: Decoder) -> None:
        super().__init__()
        from diffusers.models.autoencoders.autoencoder_dc import DCUpBlock2d

        self.conv_in, self.up_blocks = decoder.conv_in, decoder.up_blocks
        self.norm_out, self.conv_act, self.conv_out = decoder.norm_out, decoder.conv_act, decoder.conv_out
        self.repeats = decoder.in_shortcut_repeats if decoder.in_shortcut else 0
        for parent in list(self.modules()):
            for name, child in list(parent.named_children()):
                if isinstance(child, DCUpBlock2d):
                    setattr(parent, name, ElementaryUpBlock(child))

    def forward(self, latent: torch.Tensor) -> torch.Tensor:
        """[1, C, Y, X] → [1, 3, 32Y, 32X]."""
        x = self.conv_in(latent)
        if self.repeats:
            x = x + repeated(latent, self.repeats)
        for block in reversed(self.up_blocks):
            x = block(x)
        out: torch.Tensor = self.conv_out(self.conv_act(self.norm_out(x.movedim(1, -1)).movedim(-1, 1)))
        return out
