"""Random checkpoints with the published names and shapes, for tests and for trying the exporter out."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from mobile_o_export.atomic import staged_folder
from mobile_o_export.checkpoint.config import BUILT_IN_DIFFUSION, MobileOConfig
from mobile_o_export.checkpoint.expected import expected_tensors
from mobile_o_export.checkpoint.random_weights import depths, random_tensor
from mobile_o_export.checkpoint.reader import RANDOM_MARKER
from mobile_o_export.checkpoint.safetensors_writer import Entry, shards, write_safetensors
from mobile_o_export.checkpoint.small_tokenizer import write_tokenizer
from mobile_o_export.errors import UsageError
from mobile_o_export.progress import Say, silent

if TYPE_CHECKING:
    from mobile_o_export.model.fastvithd import FastViTHDLayout

Size = Literal["tiny", "0.5b", "1.5b"]
WeightDType = Literal["float32", "float16", "bfloat16"]

Progress = Callable[[str, int, int], None]
"""Called before each tensor with its name, the bytes written so far and the bytes in all."""

_SHARD_BYTES = 4_000_000_000
_SMALL_FILES_BYTES = 10_000_000
"""Room for the tokenizer and the configurations, generously."""

_QWEN2_SPECIAL_ID = 151643
_SANA_600M, _SANA_1600M = BUILT_IN_DIFFUSION


@dataclass(frozen=True)
class _Sizes:
    """What tells one size of checkpoint from another."""

    language: Mapping[str, int]
    vision: tuple[tuple[int, int], ...]
    """Width and depth of each stage; the last two mix by attention."""
    image_size: int
    squeezed: int
    mcp_width: int
    mcp_squeezed: int
    diffusion: str
    special_id: int


_PUBLISHED_VISION = ((96, 2), (192, 12), (384, 24), (768, 4), (1536, 2))

_SIZES: Mapping[Size, _Sizes] = {
    "tiny": _Sizes(
        language={
            "vocab_size": 576,
            "hidden_size": 128,
            "intermediate_size": 256,
            "num_hidden_layers": 6,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 2048,
        },
        vision=((16, 1), (32, 1), (64, 2), (128, 1), (256, 1)),
        image_size=256,
        squeezed=32,
        mcp_width=64,
        mcp_squeezed=16,
        diffusion="diffusion",
        special_id=553,
    ),
    "0.5b": _Sizes(
        language={
            "vocab_size": 151936,
            "hidden_size": 896,
            "intermediate_size": 4864,
            "num_hidden_layers": 24,
            "num_attention_heads": 14,
            "num_key_value_heads": 2,
            "max_position_embeddings": 32768,
        },
        vision=_PUBLISHED_VISION,
        image_size=1024,
        squeezed=192,
        mcp_width=512,
        mcp_squeezed=128,
        diffusion=_SANA_600M,
        special_id=_QWEN2_SPECIAL_ID,
    ),
    "1.5b": _Sizes(
        language={
            "vocab_size": 151936,
            "hidden_size": 1536,
            "intermediate_size": 8960,
            "num_hidden_layers": 28,
            "num_attention_heads": 12,
            "num_key_value_heads": 2,
            "max_position_embeddings": 32768,
        },
        vision=_PUBLISHED_VISION,
        image_size=1024,
        squeezed=192,
        mcp_width=512,
        mcp_squeezed=128,
        diffusion=_SANA_1600M,
        special_id=_QWEN2_SPECIAL_ID,
    ),
}

_TINY_DIFFUSION = Path(__file__).parent / "data" / "tiny"
"""SANA of 3 layers and 64 channels, DC-AE of 4 stages: for the ``tiny`` checkpoint's ``diffusion`` folder."""


def init_checkpoint(
    out: Path,
    size: Size,
    seed: int,
    dtype: WeightDType = "float16",
    progress: Progress | None = None,
    say: Say = silent,
) -> None:
    """Write a checkpoint of random weights to the new folder ``out``.

    Names, shapes and files are the published ones; the same size, seed and dtype give the same bytes.
    ``config.json`` is marked, so that nobody takes the weights for trained ones. ``say`` is told what of a
    killed run's was removed.

    Raises:
        UsageError: ``out`` exists or cannot be made; ``size``, ``seed`` or ``dtype`` is not a valid value.
        OutOfSpaceError: the disk has not enough room.
    """
    if size not in _SIZES:
        raise UsageError(f"size {size!r} is unknown. Choose one of {', '.join(_SIZES)}.")
    if dtype not in get_args(WeightDType):
        raise UsageError(f"dtype {dtype!r} is unknown. Choose one of {', '.join(get_args(WeightDType))}.")
    if seed < 0:
        raise UsageError(f"seed {seed} is negative. Choose 0 or more.")
    entries = _entries(size, dtype)
    total_bytes = sum(entry.size_bytes for entry in entries)
    with staged_folder(Path(out), total_bytes + _SMALL_FILES_BYTES, say) as folder:
        _write_json(folder / "config.json", _config_json(size, seed, dtype))
        special = _SIZES[size].special_id
        _write_json(folder / "generation_config.json", {"eos_token_id": special + 2, "pad_token_id": special})
        write_tokenizer(folder, special, _SIZES[size].language["max_position_embeddings"])
        if size == "tiny":
            for source in sorted(_TINY_DIFFUSION.glob("*/*.json")):
                target = folder / "diffusion" / source.parent.name / source.name
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(source.read_bytes())
        _write_weights(folder, entries, seed, total_bytes, progress or _silent)


def published_layout(size: Size) -> FastViTHDLayout:
    """The vision encoder's sizes in a checkpoint of this size."""
    from mobile_o_export.model.fastvithd import FastViTHDLayout, Mixer, Stage

    sizes = _SIZES[size]
    last = len(sizes.vision) - 2
    stages = tuple(
        Stage(width, depth, 4 * width, Mixer.CONVOLUTION if index < last else Mixer.ATTENTION, index >= last)
        for index, (width, depth) in enumerate(sizes.vision)
    )
    return FastViTHDLayout(stages, 2 * sizes.vision[-1][0], sizes.squeezed, 768)


def _config_json(size: Size, seed: int, dtype: str) -> dict[str, Any]:
    sizes = _SIZES[size]
    return {
        **sizes.language,
        "use_sliding_window": False,
        "sliding_window": None,
        "max_window_layers": sizes.language["num_hidden_layers"],
        "hidden_act": "silu",
        "initializer_range": 0.02,
        "rms_norm_eps": 1e-06,
        "use_cache": True,
        "rope_theta": 1000000.0,
        "attention_dropout": 0.0,
        "tie_word_embeddings": False,
        "pad_token_id": sizes.special_id,
        "eos_token_id": sizes.special_id + 2,
        "mm_vision_tower": f"mobileclip_l_{sizes.image_size}",
        "mm_hidden_size": 2 * sizes.vision[-1][0],
        "mm_projector_type": "mlp2x_gelu",
        "diffusion_name_or_path": sizes.diffusion,
        "vlm_num_layers": 4,
        "unfreeze_mm_vision_tower": True,
        "model_type": "mobile_o_inference",
        "architectures": ["MobileOForInferenceLM"],
        "torch_dtype": dtype,
        RANDOM_MARKER: {"size": size, "seed": seed},
    }


def _entries(size: Size, dtype: str) -> list[Entry]:
    """Every tensor to write, in the modules' order."""
    # The small diffusion folder is not written yet; the one it is copied from has the same content.
    raw = _config_json(size, 0, dtype) | (
        {"diffusion_name_or_path": str(_TINY_DIFFUSION)} if size == "tiny" else {}
    )
    config = MobileOConfig.from_json(raw, Path())
    sizes = _SIZES[size]
    shapes = expected_tensors(config, published_layout(size), sizes.mcp_width, sizes.mcp_squeezed)
    return [
        Entry(name, shape, "int64" if name.endswith(".num_batches_tracked") else dtype)
        for name, shape in shapes.items()
    ]


def _write_weights(
    folder: Path, entries: list[Entry], seed: int, total_bytes: int, progress: Progress
) -> None:
    depth = depths(entry.name for entry in entries)
    files = shards(entries, _SHARD_BYTES)
    done_bytes = 0

    def contents(group: list[Entry]) -> Iterator[bytes | memoryview]:
        nonlocal done_bytes
        for entry in group:
            progress(entry.name, done_bytes, total_bytes)
            yield _tensor_bytes(entry, seed, depth)
            done_bytes += entry.size_bytes

    for file, group in files.items():
        write_safetensors(folder / file, group, contents(group))
    if len(files) > 1:
        weight_map = {entry.name: file for file, group in files.items() for entry in group}
        index = {"metadata": {"total_size": total_bytes}, "weight_map": dict(sorted(weight_map.items()))}
        _write_json(folder / "model.safetensors.index.json", index)


def _tensor_bytes(entry: Entry, seed: int, depth: dict[str, int]) -> memoryview:
    import torch

    values = torch.from_numpy(random_tensor(entry.name, entry.shape, seed, depth))
    stored = values.to(getattr(torch, entry.dtype)).contiguous().reshape(-1)
    # numpy knows no bfloat16, so the bytes are taken, not the numbers.
    return stored.view(torch.uint8).numpy().data


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=1), encoding="utf-8")


def _silent(name: str, done_bytes: int, total_bytes: int) -> None:
    """No progress."""
