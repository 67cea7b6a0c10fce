"""The tensors that a configuration calls for, and the comparison with those that are there.

Names and shapes come from the very modules that the weights are loaded into, built without memory on the
meta device, so that a checkpoint that passes here loads.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from mobile_o_export.checkpoint.config import MobileOConfig
from mobile_o_export.checkpoint.names import HEAD
from mobile_o_export.errors import CheckpointError
from mobile_o_export.quiet import quiet_vendor

if TYPE_CHECKING:
    import torch

    from mobile_o_export.model.fastvithd import FastViTHDLayout

Shapes = Mapping[str, tuple[int, ...]]

_VISION = "model.vision_tower.vision_tower.model."
_MCP = "model.diffusion_connector.fusion."
_VAE_ENCODER = "model.vae.encoder."

_IGNORED = re.compile(r".*\.rotary_emb\.inv_freq")
"""Buffers that old versions of transformers saved and every version computes anew."""

_SHOWN = 5


def expected_tensors(
    config: MobileOConfig,
    vision_layout: FastViTHDLayout,
    mcp_width: int = 512,
    mcp_squeezed: int = 128,
) -> dict[str, tuple[int, ...]]:
    """Every tensor of a complete checkpoint, name → shape, in the published order of components.

    Args:
        config: the sizes of the LLM, the DiT and the VAE.
        vision_layout: the sizes of the vision encoder.
        mcp_width: width of the MCP's refinement blocks; 512 in every published checkpoint.
        mcp_squeezed: width of the bottleneck of their channel attention; 128 in every published checkpoint.

    Raises:
        CheckpointError: transformers or diffusers cannot build a model from the configuration.
    """
    import torch

    from mobile_o_export.model.fastvithd import FastViTHD, Projector
    from mobile_o_export.model.mcp import MobileConditioningProjector

    shapes: dict[str, tuple[int, ...]] = {}

    def add(prefix: str, module: torch.nn.Module) -> None:
        shapes.update({prefix + name: tuple(value.shape) for name, value in module.state_dict().items()})

    language = config.language
    width, conditioning = language["hidden_size"], config.diffusion.transformer["caption_channels"]
    with torch.device("meta"):
        llm, dit, vae = _library_models(config)
        add("", llm)
        add(_VISION, FastViTHD(vision_layout))
        add("model.mm_projector.", Projector(config.mm_hidden_size, width))
        add(
            _MCP,
            MobileConditioningProjector(
                width, config.conditioning_layers, conditioning, width=mcp_width, squeezed=mcp_squeezed
            ),
        )
        add("model.dit.", dit)
        add("model.vae.", vae)
    return shapes


def validate(path: Path, config: MobileOConfig, found: Shapes) -> None:
    """Pass if ``found`` holds exactly the tensors that ``config`` calls for.

    ``lm_head.weight`` may be missing with tied embeddings, and the VAE's encoder as a whole, since nothing
    exports it.

    Raises:
        CheckpointError: names the first few tensors that are missing, misshapen or unexpected.
    """
    from mobile_o_export.model.fastvithd import FastViTHDLayout

    vision = {name.removeprefix(_VISION): shape for name, shape in found.items() if name.startswith(_VISION)}
    try:
        layout = FastViTHDLayout.from_shapes(vision)
        width = found[f"{_MCP}input_compress.0.weight"][0]
        squeezed = found[f"{_MCP}sequence_refiners.0.channel_attn.fc.0.weight"][0]
    except (KeyError, ValueError, IndexError, TypeError) as error:
        what = f"no {error.args[0]}" if isinstance(error, KeyError) else str(error)
        raise CheckpointError(
            f"{path}: the tensors that give the sizes of the vision tower and the MCP are incomplete: "
            f"{what}. Use a complete Mobile-O checkpoint (of type mobile_o_inference)."
        ) from error
    expected = expected_tensors(config, layout, width, squeezed)
    optional = {HEAD} if config.tie_word_embeddings else set()
    if not any(name.startswith(_VAE_ENCODER) for name in found):
        optional |= {name for name in expected if name.startswith(_VAE_ENCODER)}
    missing = [name for name in expected if name not in found and name not in optional]
    unexpected = [name for name in found if name not in expected and not _IGNORED.fullmatch(name)]
    misshapen = [
        f"{name} {found[name]} instead of {shape}"
        for name, shape in expected.items()
        if name in found and found[name] != shape
    ]
    problems = [
        f"{len(names)} {kind}: {', '.join(names[:_SHOWN])}{', …' if len(names) > _SHOWN else ''}"
        for kind, names in (
            ("missing", missing),
            ("of the wrong shape", misshapen),
            ("unexpected", unexpected),
        )
        if names
    ]
    if problems:
        raise CheckpointError(
            f"{path}: its tensors are not those that its config.json calls for. {'; '.join(problems)}. "
            "Restore the config.json that belongs to these weights, or copy the missing files."
        )


def _library_models(config: MobileOConfig) -> tuple[torch.nn.Module, torch.nn.Module, torch.nn.Module]:
    """The LLM, the DiT and the VAE of ``config``, built on the current default device."""
    with quiet_vendor():
        from diffusers import AutoencoderDC, SanaTransformer2DModel
        from transformers import Qwen2Config, Qwen2ForCausalLM

    try:
        return (
            Qwen2ForCausalLM(Qwen2Config(**config.language)),
            SanaTransformer2DModel.from_config(dict(config.diffusion.transformer)),
            AutoencoderDC.from_config(dict(config.diffusion.vae)),
        )
    # Configurations are data, and the libraries raise whatever a wrong value runs into.
    except Exception as error:
        raise CheckpointError(
            f"{config.diffusion.source}, config.json: no model can be built from these configurations "
            f"({type(error).__name__}: {error}). Restore the published ones."
        ) from error
