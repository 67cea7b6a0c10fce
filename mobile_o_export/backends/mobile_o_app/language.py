"""``llm/``: Qwen2 and the vision projector as MLX loads them, their configuration and tokenizer."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mobile_o_export.backends.base import Artifact, GraphFile, LowerRequest
from mobile_o_export.backends.mobile_o_app.configuration import CONFIG_FILE
from mobile_o_export.backends.mobile_o_app.mlx import (
    WEIGHTS_FILE,
    quantized_tensors,
    read_weights,
    write_weights,
)
from mobile_o_export.backends.mobile_o_app.tokenizer import write_tokenizer
from mobile_o_export.compression.half import within_half
from mobile_o_export.members import MemberName
from mobile_o_export.precision import Affine, Precision
from mobile_o_export.progress import Say
from mobile_o_export.tensors import Role
from mobile_o_export.tokenizer import Tokenizer

if TYPE_CHECKING:
    import torch

    from mobile_o_export.checkpoint import Checkpoint
    from mobile_o_export.components.base import Component, GraphOptions, GraphSpec
    from mobile_o_export.compression.recipe import Recipe
    from mobile_o_export.parity.metrics import Array

LANGUAGE = "llm"
"""The component, and the folder."""

FILE = MemberName(f"{LANGUAGE}/{WEIGHTS_FILE}")
"""Where its weights are, and the projector's."""

OURS, THEIRS = "qwen.", "language_model."
"""How names of Qwen2's parameters begin: in the component's module, and in MLX."""

HEAD = "qwen.lm_head.weight"

CHECKPOINT_PROJECTOR = "model.mm_projector."
PROJECTOR = "multi_modal_projector"
LINEARS = {"0": "linear_0", "2": "linear_2"}
"""The projector's layers: in a checkpoint, and in MLX."""

GROUP_SIZES = (32, 64, 128)
"""MLX has kernels for these."""

IMAGE_TOKEN, PUBLISHED_IMAGE_TOKEN = "<image>", 151648
"""What stands in a prompt for image features; its id where a tokenizer does not say."""

PUBLISHED_TOWER = "mobileclip_l_1024"


def language_specs(
    component: Component, checkpoint: Checkpoint, options: GraphOptions
) -> tuple[GraphSpec, ...]:
    """``embed`` and ``model``; masks, positions and the KV cache are the app's own affair."""
    made = (Role.MASK, Role.POSITION, Role.CACHE)
    return tuple(
        replace(
            spec,
            inputs=tuple(tensor for tensor in spec.inputs if tensor.role not in made),
            outputs=tuple(tensor for tensor in spec.outputs if tensor.role not in made),
            feeds={},
        )
        for spec in component.graphs(checkpoint, options)
    )


def language_refusal(recipe: Recipe, component: Component, checkpoint: Checkpoint) -> str:
    """Why MLX cannot hold the weights at the precisions of ``recipe``, or an empty string."""
    from mobile_o_export.compression.compress import weights_of
    from mobile_o_export.compression.form import Form

    kinds = _kinds(recipe)
    others = [kind for kind in recipe.precisions if not kind.floating and kind.weights not in kinds]
    if recipe.floating != Precision.FP16 or others or len(kinds) > 1:
        return "llm/ holds fp16 and affine integers of one kind: give w4_affine_b64, w8_affine_b64 or fp16"
    if blocks := [kind.block for kind in kinds if kind.block not in GROUP_SIZES]:
        return f"MLX has groups of {', '.join(map(str, GROUP_SIZES))} weights, not of {blocks[0]}"
    if not kinds:
        return ""
    for name, weight in weights_of(component.load(checkpoint.outline())):
        precision, shape = recipe.of(name), tuple(weight.shape)
        if len(shape) == 2 and not precision.floating and not Form.exists(precision, shape):
            return f"{name} has rows of {shape[1]} weights, which {precision} does not divide into blocks"
    return ""


def _kinds(recipe: Recipe) -> list[Affine]:
    """The affine integers that ``recipe`` names, each once."""
    weights = (precision.weights for precision in recipe.precisions)
    return [kind for kind in weights if isinstance(kind, Affine)]


def write_language(
    request: LowerRequest, specs: Sequence[GraphSpec], checkpoint: Checkpoint, folder: Path, progress: Say
) -> Artifact:
    """Writes ``llm/`` into ``folder``.

    Raises:
        ExportError: a weight is not finite in fp16.
        GateError: a weight read back is not what was compressed.
    """
    from mobile_o_export.compression.check import check_weights
    from mobile_o_export.compression.compress import compress_module

    recipe, what = request.recipe, f"{LANGUAGE} for {request.target}"
    module = request.component.load(checkpoint, stored=True)
    compressed = compress_module(module, recipe, what, progress, keep=False)
    parameters = {**dict(module.named_parameters()), **_projector(checkpoint)}
    if _tied(checkpoint):
        del parameters[HEAD]
        compressed.pop(HEAD, None)
    # By the names in the file: each parameter, and what it was compressed to, if it was.
    weights = {
        _filed(name): (parameter.detach(), compressed.get(name)) for name, parameter in parameters.items()
    }
    place = folder / LANGUAGE
    place.mkdir()
    progress("packing the weights")
    tensors: dict[str, Array] = {}
    for name, (values, weight) in weights.items():
        if weight is None:
            tensors[name] = within_half(values.float().numpy(), "stored").astype(np.float16)
        else:
            tensors |= quantized_tensors(name, weight)
    write_weights(place, tensors)
    write_tokenizer(checkpoint.tokenizer_files, place)
    _write_config(checkpoint, recipe, weights, place)
    progress("reading the weights back")
    read = ((weights[name][1], name, values) for name, values in read_weights(place))
    stored = ((weight.name, name, values) for weight, name, values in read if weight is not None)
    rows = check_weights(compressed, stored, LANGUAGE)
    return Artifact(tuple(GraphFile(spec, FILE, "") for spec in specs), rows)


def _filed(name: str) -> str:
    """What a parameter is called in the file."""
    return THEIRS + name.removeprefix(OURS) if name.startswith(OURS) else name


def _tied(checkpoint: Checkpoint) -> bool:
    """Whether the head is the embeddings."""
    return "lm_head.weight" not in checkpoint.tensors


def _projector(checkpoint: Checkpoint) -> dict[str, torch.Tensor]:
    """The vision projector's weights, by MLX's names.

    They stay floating point, whatever the llm's precision: MLX quantises the layers that have scales, and all
    that the llm sees of a picture comes through these two.
    """
    tensors = checkpoint.state_dict(CHECKPOINT_PROJECTOR)
    places = ((*name.rpartition(".")[::2], tensor) for name, tensor in tensors.items())
    return {f"{PROJECTOR}.{LINEARS[layer]}.{kind}": tensor for layer, kind, tensor in places}


def _write_config(
    checkpoint: Checkpoint, recipe: Recipe, weights: Mapping[str, tuple[torch.Tensor, Any]], folder: Path
) -> None:
    """``config.json``, with the keys that the app reads."""
    language = checkpoint.config.language
    found = Tokenizer(folder).id_of(IMAGE_TOKEN)
    config: dict[str, Any] = {
        "model_type": "llava_qwen2",
        "hidden_size": language["hidden_size"],
        "num_hidden_layers": language["num_hidden_layers"],
        "intermediate_size": language["intermediate_size"],
        "num_attention_heads": language["num_attention_heads"],
        "num_key_value_heads": language["num_key_value_heads"],
        "rms_norm_eps": language.get("rms_norm_eps", 1e-6),
        "vocab_size": len(weights[f"{THEIRS}model.embed_tokens.weight"][0]),
        "max_position_embeddings": language.get("max_position_embeddings", 32768),
        "rope_theta": language.get("rope_theta", 1e6),
        "tie_word_embeddings": _tied(checkpoint),
        "mm_hidden_size": weights[f"{PROJECTOR}.linear_0.weight"][0].shape[1],
        "mm_vision_tower": checkpoint.config.raw.get("mm_vision_tower", PUBLISHED_TOWER),
        "image_token_index": PUBLISHED_IMAGE_TOKEN if found is None else found,
    }
    for kind in _kinds(recipe):
        config["quantization"] = {"group_size": kind.block, "bits": kind.bits}
    (folder / CONFIG_FILE).write_text(json.dumps(config, indent=4) + "\n")
