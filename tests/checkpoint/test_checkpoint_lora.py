"""What an adapter's merge leaves and what it refuses; test_adapter_flavours.py compares it with PEFT's."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mobile_o_export.checkpoint import Checkpoint
from mobile_o_export.errors import CheckpointError


def test_merge_keeps_the_stored_dtype(reference_folder: Path, adapter: Path) -> None:
    merged = Checkpoint.open(reference_folder, adapter).state_dict("model.layers.")
    assert {tensor.dtype for tensor in merged.values()} == {torch.float16}


def test_adapter_is_part_of_the_digest(reference_folder: Path, adapter: Path) -> None:
    plain = Checkpoint.open(reference_folder).digest
    merged = Checkpoint.open(reference_folder, adapter).digest
    _edit(adapter, lora_alpha=64)
    assert len({plain, merged, Checkpoint.open(reference_folder, adapter).digest}) == 3


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    """A minimal adapter on one projection, to be damaged."""
    from safetensors.torch import save_file

    folder = tmp_path / "adapter"
    folder.mkdir()
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    prefix = "base_model.model.model.layers.0.self_attn.q_proj"
    factors = {f"{prefix}.lora_A.weight": torch.ones(2, 128), f"{prefix}.lora_B.weight": torch.ones(128, 2)}
    save_file(factors, folder / "adapter_model.safetensors")
    return folder


def test_minimal_adapter(reference_folder: Path, adapter: Path) -> None:
    name = "layers.0.self_attn.q_proj.weight"
    plain = Checkpoint.open(reference_folder).state_dict("model.", torch.float32)[name]
    merged = Checkpoint.open(reference_folder, adapter).state_dict("model.", torch.float32)[name]
    # alpha / r = 2, and B A = 2 everywhere.
    torch.testing.assert_close(merged, plain + 4)


def _edit(adapter: Path, **changes: Any) -> None:
    config = adapter / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"peft_type": "IA3"}, "peft_type is 'IA3'"),
        ({"use_dora": True}, "use_dora"),
        ({"lora_bias": True}, "lora_bias"),
        ({"trainable_token_indices": [1, 2]}, "trainable_token_indices"),
        ({"init_lora_weights": "pissa_niter_16"}, "changed the base weights"),
        ({"r": None}, "r is None"),
        ({"lora_alpha": -1}, "lora_alpha is -1"),
        ({"r": 4}, "does not fit rank 4"),
        ({"r": 2.0}, "r is 2.0, and a whole number from 1 to 16777216 is needed"),
        ({"r": True}, "r is True, and a whole number"),
        ({"r": 10**200}, "and a whole number from 1 to"),
        ({"lora_alpha": 0}, "lora_alpha is 0, and a number from 1e-06 to 1e+06 is needed; 0 would leave the"),
        ({"lora_alpha": float("inf")}, "lora_alpha is inf, and a number from"),
        ({"lora_alpha": 1e-300}, "lora_alpha is 1e-300, and a number from"),
        ({"lora_alpha": "4"}, "lora_alpha is '4', and a number from"),
        ({"lora_alpha": float("nan")}, "cannot be read as JSON (NaN is not a number)"),
        ({"use_rslora": "false"}, "use_rslora is 'false', and true or false is needed"),
        ({"fan_in_fan_out": 1}, "fan_in_fan_out is 1, and true or false is needed"),
        ({"rank_pattern": ["q_proj"]}, "rank_pattern is ['q_proj'], and a table of patterns is needed"),
        ({"rank_pattern": {"q_proj": 2.5}}, "rank_pattern of 'q_proj' is 2.5, and a whole number from 1"),
        ({"rank_pattern": {"q_proj": None}}, "rank_pattern of 'q_proj' is None, and a whole number"),
        ({"rank_pattern": {"q_proj": 4}}, "does not fit rank 4"),
        (
            {"alpha_pattern": {"q_proj": 0}},
            "alpha_pattern of 'q_proj' is 0, and a number from 1e-06 to 1e+06",
        ),
        ({"alpha_pattern": {"q_proj": 0.0}}, "0 would leave the adapter without effect"),
        ({"alpha_pattern": {"q_proj": -4}}, "alpha_pattern of 'q_proj' is -4, and a number"),
        ({"alpha_pattern": {"q_proj": True}}, "alpha_pattern of 'q_proj' is True, and a number"),
        ({"alpha_pattern": {"(": 4}}, "alpha_pattern: '(' is not a regular expression: missing ), un"),
        ({"alpha_pattern": {"(?=q)": 4}}, "'(?=q)' uses assert, which is not read. Merge it with PEFT"),
        (
            {"rank_pattern": {"a" * 257: 4}},
            "rank_pattern: a pattern has 257 characters, and 256 are read. Me",
        ),
        ({"rank_pattern": dict.fromkeys(map(str, range(2049)), 4)}, "it holds 2049 patterns, and 2048 are"),
    ],
)
def test_unsupported_setting(
    reference_folder: Path, adapter: Path, changes: dict[str, Any], message: str
) -> None:
    _edit(adapter, **changes)
    with pytest.raises(CheckpointError) as caught:
        Checkpoint.open(reference_folder, adapter)
    assert message in str(caught.value)


A, B = (f"base_model.model.model.layers.0.self_attn.q_proj.lora_{side}.weight" for side in "AB")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop(B), "has only lora_A"),
        (lambda t: t.update({B: torch.ones(64, 2)}), "does not fit model.layers.0.self_attn.q_proj.weight"),
        (lambda t: t.update({A.replace("layers.0", "layers.9"): torch.ones(2, 128)}), "matches no weight"),
        (lambda t: t.update({"model.norm.weight": torch.ones(128)}), "matches no weight"),
        (lambda t: t.update({"base_model.model.model.norm.weight": torch.ones(7)}), "has the shape (7,)"),
        (lambda t: t.clear(), "holds no tensors"),
    ],
)
def test_tensor_without_a_place(
    reference_folder: Path, adapter: Path, change: Callable[[Any], Any], message: str
) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(adapter / "adapter_model.safetensors")
    change(tensors)
    save_file(
        {name: tensor.clone() for name, tensor in tensors.items()}, adapter / "adapter_model.safetensors"
    )
    with pytest.raises(CheckpointError) as caught:
        Checkpoint.open(reference_folder, adapter)
    assert message in str(caught.value)


def test_nan_in_the_adapter(reference_folder: Path, adapter: Path) -> None:
    from safetensors.torch import save_file

    save_file(
        {A: torch.ones(2, 128) * float("nan"), B: torch.ones(128, 2)}, adapter / "adapter_model.safetensors"
    )
    with pytest.raises(CheckpointError, match=r"lora_A\.weight holds NaN"):
        Checkpoint.open(reference_folder, adapter).component_state_dict("llm")


def test_missing_and_pickled_adapter(reference_folder: Path, adapter: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such folder"):
        Checkpoint.open(reference_folder, tmp_path / "nowhere")
    (adapter / "adapter_model.safetensors").rename(adapter / "adapter_model.bin")
    with pytest.raises(CheckpointError, match="only safetensors is read"):
        Checkpoint.open(reference_folder, adapter)
    (adapter / "adapter_config.json").unlink()
    with pytest.raises(CheckpointError, match="adapter_config"):
        Checkpoint.open(reference_folder, adapter)


@pytest.mark.parametrize("option", ["alpha_pattern", "rank_pattern"])
def test_a_pattern_that_would_backtrack_for_ever_is_matched_all_the_same(
    reference_folder: Path, adapter: Path, option: str
) -> None:
    """``re.match`` takes twice as long for every letter of the module's name; nothing ends it."""
    _edit(adapter, **{option: {"([a-z_0-9.]+)+!": 8}})
    plain = Checkpoint.open(reference_folder).state_dict("model.", torch.float32)
    merged = Checkpoint.open(reference_folder, adapter).state_dict("model.", torch.float32)
    name = "layers.0.self_attn.q_proj.weight"
    # The pattern fits no module: the scale stays alpha / r = 2.
    torch.testing.assert_close(merged[name], plain[name] + 4)


def test_the_same_weight_twice(reference_folder: Path, adapter: Path) -> None:
    from safetensors.torch import load_file, save_file

    path = adapter / "adapter_model.safetensors"
    again = A.replace("q_proj.", "q_proj.base_layer.")
    save_file({**load_file(path), again: torch.ones(2, 128)}, path)
    with pytest.raises(CheckpointError, match=r"is a second lora_A of model\.layers\.0\.self_attn\.q_proj"):
        Checkpoint.open(reference_folder, adapter)
