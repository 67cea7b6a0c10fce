"""Random weights under which every branch of the model speaks.

PyTorch's own initialisation leaves much of this model mute: layer scales of 1e-5, gates at zero, norms at
exactly one. Here each weight matrix keeps the variance of what passes through it, residual branches are
scaled by the depth so that their sum stays bounded at any size, and everything that a model could ignore
when it is constant (biases, norms, running statistics, modulation tables) varies. Each tensor depends on
the seed and on its own name only, so that neither order nor sharding matters.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import sha256
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True)
class Fan:
    """Normal of standard deviation ``gain`` / sqrt(fan in): keeps ``gain`` times the input's deviation.

    ``residual`` divides it by sqrt(depth) as well, for the last weight of a branch that is added to a
    stream ``depth`` times.
    """

    gain: float
    residual: bool = False


@dataclass(frozen=True)
class Around:
    """Normal of ``mean`` and ``deviation``."""

    mean: float
    deviation: float


@dataclass(frozen=True)
class Between:
    """Uniform in ``low``..``high``."""

    low: float
    high: float


@dataclass(frozen=True)
class NearIdentity:
    """A depthwise kernel with 1 at its centre and noise that sums to ``deviation`` / sqrt(depth)."""

    deviation: float


@dataclass(frozen=True)
class Frequencies:
    """As :class:`Fan`, for the columns that read a sinusoidal embedding: cosines, then sines, fast first.

    Columns of angular frequency above 1 / ``period`` fade, as in trained models: otherwise a rounding of
    the timestep to fp16 (a quarter at 500) would be a different timestep.
    """

    gain: float
    period: float


@dataclass(frozen=True)
class Zero:
    """Zeros: counters that nothing reads in inference."""


Recipe = Fan | Around | Between | NearIdentity | Frequencies | Zero

# After GELU or SiLU a unit normal has a root mean square of 0.65 or 0.6, and so has its product with
# another unit normal; 1.6 brings it back to one.
_AFTER_ACTIVATION = 1.6

# Query and key weights above one sharpen attention: with flat scores it would return the mean of all
# positions, which hardly depends on any of them.
_SHARP = 1.3

RULES: tuple[tuple[str, Recipe], ...] = (
    (r".*\.num_batches_tracked", Zero()),
    # Vision tower. Nothing normalises its convolutional stages, so gains have to hold by themselves, and
    # mixers that follow one another without a residual have to stay near the identity, as fused ones are.
    (r".*\.bn\.running_mean", Around(0.0, 0.1)),
    (r".*\.bn\.running_var", Between(0.7, 1.4)),
    (r".*\.layer_scale(_[12])?", Between(0.3, 1.0)),
    (r".*\.network\.\d+\.\d+\.token_mixer\.reparam_conv\.weight", NearIdentity(0.5)),
    (r".*\.network\.\d+\.reparam_conv\.weight", NearIdentity(0.5)),
    (r".*\.convffn\.conv\.conv\.weight", Fan(1.0)),
    (r".*\.convffn\.fc1\.weight", Fan(1.0)),
    (r".*\.convffn\.fc2\.weight", Fan(_AFTER_ACTIVATION, residual=True)),
    (r".*\.token_mixer\.qkv\.weight", Fan(_SHARP)),
    (r".*\.token_mixer\.proj\.weight", Fan(_AFTER_ACTIVATION, residual=True)),
    (r".*\.patch_embed\.0\.reparam_conv\.weight", Fan(2.0)),
    (r".*\.patch_embed\.[12]\.reparam_conv\.weight", Fan(_AFTER_ACTIVATION)),
    (r".*\.proj\.0\.lkb_reparam\.weight", Fan(1.0)),
    (r".*\.proj\.1\.reparam_conv\.weight", Fan(1.35 * _AFTER_ACTIVATION)),
    (r".*\.conv_exp\.reparam_conv\.weight", Fan(2.0)),
    (r".*\.conv_exp\.se\.(reduce|expand)\.weight", Fan(2.0)),
    (r".*\.head\.proj", Around(0.0, 0.03)),
    (r"model\.mm_projector\.0\.weight", Fan(0.8)),
    (r"model\.mm_projector\.2\.weight", Fan(0.8)),
    # LLM.
    (r"model\.embed_tokens\.weight", Around(0.0, 0.7)),
    (r"lm_head\.weight", Fan(2.0)),
    (r"model\.layers\.\d+\.self_attn\.[qk]_proj\.weight", Fan(_SHARP)),
    (r"model\.layers\.\d+\.self_attn\.v_proj\.weight", Fan(1.0)),
    (r"model\.layers\.\d+\.self_attn\.o_proj\.weight", Fan(1.0, residual=True)),
    (r"model\.layers\.\d+\.mlp\.(gate|up)_proj\.weight", Fan(1.0)),
    (r"model\.layers\.\d+\.mlp\.down_proj\.weight", Fan(_AFTER_ACTIVATION, residual=True)),
    # MCP.
    (r".*\.fusion\.layer_weights", Around(0.0, 0.7)),
    (r".*\.fusion\.temperature", Around(1.0, 0.0)),
    (r".*\.channel_attn\.fc\.[02]\.weight", Fan(3.0)),
    (r".*\.fusion\..*\.(depthwise|pointwise)\.weight", Fan(1.0)),
    (r".*\.fusion\.(input_compress|output_proj)\.0\.weight", Fan(1.0)),
    # DiT. The timestep reaches it through the modulation only: shift, scale and gate of deviation 0.5.
    (r"model\.dit\.(.*\.)?scale_shift_table", Around(0.0, 0.3)),
    (r"model\.dit\.time_embed\.emb\.timestep_embedder\.linear_1\.weight", Frequencies(1.8, 50.0)),
    (r"model\.dit\.time_embed\.emb\.timestep_embedder\.linear_2\.weight", Fan(1.4)),
    (r"model\.dit\.time_embed\.linear\.weight", Fan(1.0)),
    (r"model\.dit\.patch_embed\.proj\.weight", Fan(1.0)),
    (r"model\.dit\.caption_projection\.linear_1\.weight", Fan(1.0)),
    (r"model\.dit\.caption_projection\.linear_2\.weight", Fan(_AFTER_ACTIVATION)),
    (r"model\.dit\..*\.attn[12]\.to_[qk]\.weight", Fan(_SHARP)),
    (r"model\.dit\..*\.attn[12]\.to_v\.weight", Fan(_AFTER_ACTIVATION)),
    (r"model\.dit\..*\.attn[12]\.to_out\.0\.weight", Fan(_AFTER_ACTIVATION, residual=True)),
    (r"model\.dit\..*\.ff\.conv_inverted\.weight", Fan(1.0)),
    (r"model\.dit\..*\.ff\.conv_depth\.weight", Fan(_AFTER_ACTIVATION)),
    (r"model\.dit\..*\.ff\.conv_point\.weight", Fan(_AFTER_ACTIVATION, residual=True)),
    (r"model\.dit\.proj_out\.weight", Fan(0.7)),
    # VAE. Each residual branch ends in a norm, whose weight is therefore the branch's scale. Small queries,
    # keys and values keep the linear attention's sums over 4096 positions within fp16.
    (r"model\.vae\..*\.(attn\.norm_out|conv_out\.norm|\d+\.\d+\.norm)\.weight", Around(0.5, 0.08)),
    (r"model\.vae\..*\.attn\.to_[qk]\.weight", Fan(0.01)),
    (r"model\.vae\..*\.attn\.to_v\.weight", Fan(0.1)),
    (r"model\.vae\..*\.attn\.to_out\.weight", Fan(1.0)),
    (r"model\.vae\..*\.to_qkv_multiscale\.\d+\.proj_(in|out)\.weight", Fan(1.0)),
    (r"model\.vae\..*\.conv_out\.conv_inverted\.weight", Fan(0.7)),
    (r"model\.vae\..*\.conv_out\.conv_(depth|point)\.weight", Fan(_AFTER_ACTIVATION)),
    (r"model\.vae\..*\.\d+\.conv1\.weight", Fan(0.7)),
    (r"model\.vae\..*\.\d+\.conv2\.weight", Fan(_AFTER_ACTIVATION)),
    (r"model\.vae\..*_blocks\.\d+\.\d+\.conv\.weight", Fan(0.5)),
    (r"model\.vae\.(encoder|decoder)\.conv_in\.weight", Fan(0.5)),
    (r"model\.vae\.encoder\.conv_out\.weight", Fan(0.5)),
    (r"model\.vae\.decoder\.conv_out\.weight", Fan(0.6)),
    # What is left: norms and biases of every component.
    (r"(.*norm|.*norm_out|.*\.bn|.*\.(input_compress|output_proj)\.1)\.weight", Around(1.0, 0.15)),
    (r".*\.bias", Around(0.0, 0.1)),
)
"""Name pattern → recipe; the first that matches counts."""

_COMPILED = tuple((re.compile(pattern), recipe) for pattern, recipe in RULES)

_BLOCK = re.compile(r"(?P<stack>.*?\.(?:layers|transformer_blocks|network\.\d+))\.(?P<index>\d+)\..*")


def recipe_for(name: str) -> Recipe:
    """How the tensor of this published name is drawn.

    Raises:
        KeyError: no rule covers the name.
    """
    for pattern, recipe in _COMPILED:
        if pattern.fullmatch(name):
            return recipe
    raise KeyError(f"no rule of random_weights.RULES covers {name}")


def depths(names: Iterable[str]) -> dict[str, int]:
    """How many blocks each stack of residual blocks has: ``model.layers`` → 24."""
    found: dict[str, set[str]] = {}
    for name in names:
        if match := _BLOCK.fullmatch(name):
            found.setdefault(match["stack"], set()).add(match["index"])
    return {stack: len(indices) for stack, indices in found.items()}


def random_tensor(name: str, shape: tuple[int, ...], seed: int, depth: dict[str, int]) -> NDArray[np.float32]:
    """The tensor ``name`` of a random checkpoint, in fp32 (zeros where the published dtype is int64).

    Args:
        name: its published name.
        shape: its sizes.
        seed: the checkpoint's seed.
        depth: :func:`depths` of all names.
    """
    recipe = recipe_for(name)
    key = int.from_bytes(sha256(f"{seed}\0{name}".encode()).digest()[:16], "little")
    generator = np.random.Generator(np.random.PCG64(key))
    if isinstance(recipe, Zero):
        return np.zeros(shape, np.float32)
    if isinstance(recipe, Between):
        return generator.uniform(recipe.low, recipe.high, shape).astype(np.float32)
    values = np.asarray(generator.standard_normal(shape, dtype=np.float32))
    match = _BLOCK.fullmatch(name)
    # Two branches a block add to the stream.
    share = (2 * depth[match["stack"]]) ** -0.5 if match else 1.0
    match recipe:
        case Around(mean, deviation):
            return np.asarray(values * np.float32(deviation) + np.float32(mean))
        case Fan(gain, residual):
            fan_in = int(np.prod(shape[1:]))
            return values * np.float32(gain * fan_in**-0.5 * (share if residual else 1.0))
        case NearIdentity(deviation):
            values *= np.float32(deviation * int(np.prod(shape[1:])) ** -0.5 * share)
            values[:, 0, shape[2] // 2, shape[3] // 2] += 1
            return values
        case Frequencies(gain, period):
            half = shape[1] // 2
            frequency = np.tile(10000.0 ** (-np.arange(half) / half), 2)
            columns = gain * shape[1] ** -0.5 / (1.0 + frequency * period)
            return np.asarray(values * columns.astype(np.float32))
