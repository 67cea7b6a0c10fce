"""The small Mobile-O that is trained here: its sizes, its modules, and the checkpoint that they become."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from branches import fold, unfold
from torch import nn

from mobile_o_export.checkpoint.safetensors_writer import Entry, arranged, write_safetensors
from mobile_o_export.model.fastvithd import FastViTHD, FastViTHDLayout, Mixer, Projector, Stage
from mobile_o_export.model.mcp import MobileConditioningProjector

IMAGE_SIZE = 192
"""Of the vision encoder: 9 image tokens."""

CONDITIONING_LAYERS = 4
SPECIAL_ID = 553
"""Of ``<|endoftext|>``; the bytes and merges come before it."""

LANGUAGE: Mapping[str, Any] = {
    "vocab_size": 576,
    "hidden_size": 128,
    "intermediate_size": 384,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "rope_theta": 1_000_000.0,
    "tie_word_embeddings": False,
    "attention_dropout": 0.0,
    "initializer_range": 0.02,
    "use_sliding_window": False,
    "pad_token_id": SPECIAL_ID,
    "eos_token_id": SPECIAL_ID + 2,
}
VISION = FastViTHDLayout(
    stages=(
        Stage(16, 1, 48, Mixer.CONVOLUTION, positional=False),
        Stage(32, 1, 96, Mixer.CONVOLUTION, positional=False),
        Stage(64, 1, 192, Mixer.CONVOLUTION, positional=False),
        Stage(192, 1, 384, Mixer.ATTENTION, positional=True),
        Stage(192, 1, 384, Mixer.ATTENTION, positional=True),
    ),
    expanded=384,
    squeezed=32,
    head=16,
)
LATENT_CHANNELS, LATENT_SIDE = 8, 8
TRANSFORMER: Mapping[str, Any] = {
    "_class_name": "SanaTransformer2DModel",
    "in_channels": LATENT_CHANNELS,
    "out_channels": LATENT_CHANNELS,
    "num_attention_heads": 6,
    "attention_head_dim": 32,
    "num_layers": 6,
    "num_cross_attention_heads": 6,
    "cross_attention_head_dim": 32,
    "cross_attention_dim": 192,
    "caption_channels": 192,
    "mlp_ratio": 2.5,
    "dropout": 0.0,
    "attention_bias": False,
    "sample_size": LATENT_SIDE,
    "patch_size": 1,
    "norm_elementwise_affine": False,
    "norm_eps": 1e-6,
    "interpolation_scale": None,
    "guidance_embeds": False,
    "guidance_embeds_scale": 0.1,
    "qk_norm": None,
    "timestep_scale": 1.0,
}
MCP_WIDTH, MCP_SQUEEZED = 128, 32
GUIDANCE = 2.0
"""The published model's 1.2 follows captions less well here."""

VAE: Mapping[str, Any] = {
    "_class_name": "AutoencoderDC",
    "in_channels": 3,
    "latent_channels": LATENT_CHANNELS,
    "attention_head_dim": 32,
    "encoder_block_types": ["ResBlock", "ResBlock", "ResBlock", "EfficientViTBlock"],
    "decoder_block_types": ["ResBlock", "ResBlock", "ResBlock", "EfficientViTBlock"],
    "encoder_block_out_channels": [16, 32, 64, 128],
    "decoder_block_out_channels": [16, 32, 64, 128],
    "encoder_layers_per_block": [1, 1, 1, 1],
    "decoder_layers_per_block": [1, 1, 2, 2],
    "encoder_qkv_multiscales": [[], [], [], [5]],
    "decoder_qkv_multiscales": [[], [], [], [5]],
    "downsample_block_type": "Conv",
    "upsample_block_type": "interpolate",
    "decoder_norm_types": "rms_norm",
    "decoder_act_fns": "silu",
    "encoder_out_shortcut": True,
    "decoder_in_shortcut": True,
    "decoder_conv_act_fn": "relu",
}
SCHEDULER: Mapping[str, Any] = {
    "_class_name": "DPMSolverMultistepScheduler",
    "algorithm_type": "dpmsolver++",
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "beta_start": 0.0001,
    "final_sigmas_type": "zero",
    "flow_shift": 3.0,
    "lower_order_final": True,
    "num_train_timesteps": 1000,
    "prediction_type": "flow_prediction",
    "solver_order": 2,
    "solver_type": "midpoint",
    "timestep_spacing": "linspace",
    "use_flow_sigmas": True,
}

LICENCE = """\
These weights were trained from nothing by examples/demo_checkpoint of mobile-o-export, on pictures and
sentences that it makes itself. They hold nothing of the published Mobile-O weights and may be used under the
Apache License, Version 2.0: https://www.apache.org/licenses/LICENSE-2.0
"""

PREFIXES = {
    "llm": "",
    "vision": "model.vision_tower.vision_tower.model.",
    "projector": "model.mm_projector.",
    "mcp": "model.diffusion_connector.fusion.",
    "dit": "model.dit.",
    "vae": "model.vae.",
}
"""What the published checkpoint calls each module's tensors."""


class CrossAttention:
    """SANA's cross-attention spelled out: in bf16 on CPUs PyTorch's fused kernel takes twice as long."""

    def __call__(
        self,
        attn: Any,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        attention_mask: torch.Tensor,
    ) -> torch.Tensor:
        """``hidden_states`` [B, N, W] look at ``encoder_hidden_states`` [B, S, W] under a mask [B, 1, S]."""

        def heads(x: torch.Tensor) -> torch.Tensor:
            return x.unflatten(-1, (attn.heads, -1)).transpose(1, 2)

        query = heads(attn.to_q(hidden_states))
        key, value = heads(attn.to_k(encoder_hidden_states)), heads(attn.to_v(encoder_hidden_states))
        scores = query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1]) + attention_mask[:, None]
        mixed = scores.softmax(-1).to(value.dtype) @ value
        out: torch.Tensor = attn.to_out[0](mixed.transpose(1, 2).flatten(-2))
        return out


def build(names: Iterable[str]) -> nn.ModuleDict:
    """New modules by the names of ``PREFIXES``, the vision tower with the branches of its training."""
    from diffusers import AutoencoderDC, SanaTransformer2DModel
    from transformers import Qwen2Config, Qwen2ForCausalLM

    width = LANGUAGE["hidden_size"]
    makers = {
        "llm": lambda: Qwen2ForCausalLM(Qwen2Config(**LANGUAGE, attn_implementation="eager")),
        "vision": lambda: unfold(FastViTHD(VISION)),
        "projector": lambda: Projector(VISION.expanded, width),
        "mcp": lambda: MobileConditioningProjector(
            width, CONDITIONING_LAYERS, TRANSFORMER["caption_channels"], MCP_WIDTH, MCP_SQUEEZED
        ),
        "dit": lambda: _spelled_out(SanaTransformer2DModel.from_config(dict(TRANSFORMER))),
        "vae": lambda: AutoencoderDC.from_config(dict(VAE)),
    }
    return nn.ModuleDict({name: makers[name]() for name in names})


def _spelled_out(dit: nn.Module) -> nn.Module:
    for block in dit.transformer_blocks:  # type: ignore[union-attr]
        block.attn2.set_processor(CrossAttention())  # type: ignore[operator, union-attr]
    return dit


def write_checkpoint(
    out: Path, modules: Mapping[str, nn.Module], tokenizer: Path, scaling_factor: float, origin: str
) -> None:
    """The published layout in the new folder ``out``: fp16 weights, configurations, the tokenizer's files."""
    out.mkdir(parents=True)
    fold(modules["vision"])
    tensors = {
        PREFIXES[name] + key: value.detach()
        for name, module in modules.items()
        for key, value in module.state_dict().items()
    }
    half = {
        name: value.half() if value.is_floating_point() else value for name, value in sorted(tensors.items())
    }
    entries = arranged(
        Entry(name, tuple(value.shape), str(value.dtype).removeprefix("torch."))
        for name, value in half.items()
    )
    data = (half[entry.name].contiguous().reshape(-1).view(torch.uint8).numpy().data for entry in entries)
    write_safetensors(out / "model.safetensors", entries, data)
    for file in sorted(tokenizer.iterdir()):
        shutil.copyfile(file, out / file.name)
    config = {
        **LANGUAGE,
        "model_type": "mobile_o_inference",
        "architectures": ["MobileOForInferenceLM"],
        "torch_dtype": "float16",
        "mm_vision_tower": f"mobileclip_l_{IMAGE_SIZE}",
        "mm_hidden_size": VISION.expanded,
        "mm_projector_type": "mlp2x_gelu",
        "vlm_num_layers": CONDITIONING_LAYERS,
        "diffusion_name_or_path": "diffusion",
        "guidance_scale": GUIDANCE,
        "trained_by": origin,
    }
    _write_json(out / "config.json", config)
    (out / "LICENSE").write_text(LICENCE, encoding="utf-8")
    ends = {"eos_token_id": LANGUAGE["eos_token_id"], "pad_token_id": SPECIAL_ID}
    _write_json(out / "generation_config.json", ends)
    vae = {**VAE, "scaling_factor": scaling_factor}
    _write_json(out / "diffusion" / "transformer" / "config.json", TRANSFORMER)
    _write_json(out / "diffusion" / "vae" / "config.json", vae)
    _write_json(out / "diffusion" / "scheduler" / "scheduler_config.json", SCHEDULER)


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
