"""vae_decoder: ``decode(latent) → image``, the decoder half of diffusers' AutoencoderDC."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from mobile_o_export.components import building
from mobile_o_export.components.base import FunctionSpec
from mobile_o_export.components.dit import latent_spec
from mobile_o_export.components.sizes import DECODER_PREFIX, sizes
from mobile_o_export.components.stateless import StatelessComponent
from mobile_o_export.tensors import DType, Role, TensorSpec

if TYPE_CHECKING:
    from mobile_o_export.checkpoint import Checkpoint


def decode(checkpoint: Checkpoint) -> FunctionSpec:
    """The contract of ``decode``."""
    s = sizes(checkpoint)
    scaling = checkpoint.config.diffusion.vae["scaling_factor"]
    latent = latent_spec(checkpoint, "latent", f"the last denoised latent divided by {scaling}")
    image = TensorSpec(
        "image",
        (1, 3, s.decoded, s.decoded),
        DType.FLOAT32,
        "B 3 O O",
        Role.IMAGE,
        None,
        "RGB, nominally -1..1 and not clipped; (image + 1) / 2 is the picture",
    )
    return FunctionSpec("decode", (latent,), (image,))


def load(checkpoint: Checkpoint, dtype: torch.dtype | None) -> nn.Module:
    """The decoder: latent [B, C, Y, X] → image [B, 3, 32Y, 32X]."""
    from diffusers import AutoencoderDC

    def decoder() -> nn.Module:
        whole: nn.Module = AutoencoderDC.from_config(checkpoint.config.diffusion.vae)
        return whole.get_submodule("decoder")

    return building.build(decoder, checkpoint.state_dict(DECODER_PREFIX, dtype))


def elementary(module: nn.Module) -> nn.Module:
    """The decoder without axes of copies."""
    from diffusers.models.autoencoders.autoencoder_dc import Decoder

    from mobile_o_export.model.elementary import ElementaryDecoder

    assert isinstance(module, Decoder)
    return ElementaryDecoder(module).eval()


COMPONENT = StatelessComponent("vae_decoder", decode, load, elementary=elementary)
