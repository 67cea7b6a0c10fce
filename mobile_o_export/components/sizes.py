"""The sizes behind the letters of ``tensors``, read from a checkpoint's configuration and shapes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mobile_o_export.checkpoint import Checkpoint

VISION_PREFIX = "model.vision_tower.vision_tower.model."
PROJECTOR_PREFIX = "model.mm_projector."
MCP_PREFIX = "model.diffusion_connector.fusion."
DIT_PREFIX = "model.dit."
DECODER_PREFIX = "model.vae.decoder."


@dataclass(frozen=True)
class Sizes:
    """Every size that a contract names; the attribute is the letter's meaning."""

    image: int
    image_tokens: int
    hidden: int
    vocabulary: int
    conditioning_layers: int
    layers: int
    kv_heads: int
    head: int
    latent_channels: int
    latent: int
    decoded: int
    conditioning: int


def sizes(checkpoint: Checkpoint) -> Sizes:
    """The sizes of ``checkpoint``; reads no tensor data."""
    config, shapes = checkpoint.config, checkpoint.tensors
    language, transformer = config.language, config.diffusion.transformer
    # The stem halves the image twice, and each stage but the first halves it again.
    downsamples = sum(
        name.startswith(f"{VISION_PREFIX}network.") and name.endswith("proj.0.lkb_reparam.weight")
        for name in shapes
    )
    latent = transformer["sample_size"]
    return Sizes(
        image=config.image_size,
        image_tokens=(config.image_size // 2 ** (2 + downsamples)) ** 2,
        hidden=language["hidden_size"],
        vocabulary=language["vocab_size"],
        conditioning_layers=config.conditioning_layers,
        layers=language["num_hidden_layers"],
        kv_heads=language["num_key_value_heads"],
        head=language["hidden_size"] // language["num_attention_heads"],
        latent_channels=transformer["in_channels"],
        latent=latent,
        decoded=latent * 2 ** (len(config.diffusion.vae["decoder_block_out_channels"]) - 1),
        conditioning=transformer["caption_channels"],
    )
