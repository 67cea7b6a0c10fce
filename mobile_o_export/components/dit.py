"""dit: ``denoise(latent, timestep, conditioning) → velocity``, diffusers' SANA transformer."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from mobile_o_export.components import building
from mobile_o_export.components.base import FunctionSpec
from mobile_o_export.components.mcp import conditioning_spec
from mobile_o_export.components.sizes import DIT_PREFIX, sizes
from mobile_o_export.components.stateless import StatelessComponent
from mobile_o_export.tensors import DType, Role, TensorSpec

if TYPE_CHECKING:
    from mobile_o_export.checkpoint import Checkpoint


def latent_spec(checkpoint: Checkpoint, name: str, description: str) -> TensorSpec:
    """A tensor in the VAE's latent space."""
    s = sizes(checkpoint)
    shape = (1, s.latent_channels, s.latent, s.latent)
    return TensorSpec(name, shape, DType.FLOAT32, "B C Y X", Role.LATENT, None, description)


def denoise(checkpoint: Checkpoint) -> FunctionSpec:
    """The contract of ``denoise``."""
    timestep = TensorSpec(
        "timestep",
        (1,),
        DType.FLOAT32,
        "B",
        Role.TIMESTEP,
        (0.0, 1000.0),
        "as the scheduler lists them, not divided by 1000",
    )
    inputs = (latent_spec(checkpoint, "latent", "the noisy latent"), timestep, conditioning_spec(checkpoint))
    velocity = latent_spec(checkpoint, "velocity", "the flow's direction, which the scheduler integrates")
    return FunctionSpec("denoise", inputs, (velocity,))


class Denoise(nn.Module):
    """SANA's forward pass with positional arguments."""

    def __init__(self, transformer: nn.Module) -> None:
        super().__init__()
        self.transformer = transformer

    def forward(
        self,
        latent: torch.Tensor,
        timestep: torch.Tensor,
        conditioning: torch.Tensor,
        conditioning_mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """``latent`` [B, C, Y, X], ``timestep`` [B], ``conditioning`` [B, S, F] → velocity [B, C, Y, X].

        ``conditioning_mask`` [B, S] is 1 where a position is real; the reference passes none.
        """
        out: torch.Tensor = self.transformer(
            hidden_states=latent,
            timestep=timestep,
            encoder_hidden_states=conditioning,
            encoder_attention_mask=conditioning_mask,
            return_dict=False,
        )[0]
        return out


def load(checkpoint: Checkpoint, dtype: torch.dtype | None) -> nn.Module:
    """The transformer, called as :class:`Denoise` says."""
    from diffusers import SanaTransformer2DModel

    transformer = building.build(
        lambda: SanaTransformer2DModel.from_config(checkpoint.config.diffusion.transformer),
        checkpoint.state_dict(DIT_PREFIX, dtype),
    )
    return Denoise(transformer).eval()


def elementary(module: nn.Module) -> nn.Module:
    """The transformer, its patches put together without axes of their own."""
    from mobile_o_export.model.elementary import ElementaryDenoise

    assert isinstance(module, Denoise)
    return ElementaryDenoise(module.transformer).eval()


COMPONENT = StatelessComponent("dit", denoise, load, mask_name="conditioning_mask", elementary=elementary)
