"""What an app needs beside the graphs: tokenizer, scheduler, preprocessing, prompts, numbers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mobile_o_export.components.sizes import sizes
from mobile_o_export.pipelines import prompts, tasks

if TYPE_CHECKING:
    from mobile_o_export.checkpoint import Checkpoint

LICENCE_NOTICE = "LICENCE-WEIGHTS.txt"


def write_configs(checkpoint: Checkpoint, folder: Path) -> None:
    """Writes ``tokenizer/``, ``config/`` and the weights' licence notice into ``folder``."""
    tokenizer = folder / "tokenizer"
    tokenizer.mkdir()
    for path in checkpoint.tokenizer_files:
        shutil.copyfile(path, tokenizer / path.name)
    config = folder / "config"
    config.mkdir()
    for name, content in _configs(checkpoint).items():
        (config / f"{name}.json").write_text(json.dumps(content, indent=1) + "\n")
    (folder / LICENCE_NOTICE).write_text(checkpoint.licence, encoding="utf-8")


def _configs(checkpoint: Checkpoint) -> dict[str, Any]:
    model, s = checkpoint.config, sizes(checkpoint)
    return {
        "scheduler": dict(model.diffusion.scheduler),
        "preprocessing": {
            "image_size": s.image,
            "square_first": model.image_aspect_ratio == "pad",
            "resize": "shortest edge to image_size, bicubic, the long edge rounded down",
            "crop": "centre, image_size × image_size",
            "rescale_factor": 1 / 255,
            "mean": [0.0, 0.0, 0.0],
            "std": [1.0, 1.0, 1.0],
            "channels": "RGB",
        },
        "pipeline": {
            "guidance": tasks.DEFAULT_GUIDANCE,
            "steps": tasks.DEFAULT_STEPS,
            "vae_scaling_factor": model.diffusion.vae["scaling_factor"],
            "latent_shape": [1, s.latent_channels, s.latent, s.latent],
            "image_tokens": s.image_tokens,
            "conditioning_layers": s.conditioning_layers,
            "eos_token_id": model.language.get("eos_token_id"),
            "pad_token_id": model.language.get("pad_token_id"),
            "unconditional": "the MCP applied to zeroed hidden states of the prompt's length",
        },
        "prompts": {
            "image_token": prompts.IMAGE_TOKEN,
            "generate": prompts.generation("{prompt}"),
            "edit": prompts.editing("{prompt}"),
            "describe": prompts.understanding("{question}"),
        },
    }
