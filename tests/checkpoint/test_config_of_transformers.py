"""A configuration means what transformers takes it for, or is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from transformers import Qwen2Config

from mobile_o_export.checkpoint import MobileOConfig
from mobile_o_export.errors import CheckpointError

DEFAULT = {"rope_type": "default"}
ABSENT = object()

SAME = {
    "as it is": {},
    "theta alone": {"rope_theta": 5e3},
    "theta beside parameters with another": {"rope_parameters": {**DEFAULT, "rope_theta": 5e5}},
    "parameters without theta": {"rope_parameters": DEFAULT},
    "parameters alone": {"rope_theta": ABSENT, "rope_parameters": {**DEFAULT, "rope_theta": 5e5}},
    "scaling beside parameters": {
        "rope_scaling": {"type": "default", "rope_theta": 7e4},
        "rope_parameters": {**DEFAULT, "rope_theta": 5e5},
    },
    "empty scaling beside parameters": {
        "rope_scaling": {},
        "rope_parameters": {**DEFAULT, "rope_theta": 5e5},
    },
    "heads of keys not said": {"num_key_value_heads": None},
    "another epsilon": {"rms_norm_eps": 1e-5},
    "no kinds of layers": {"layer_types": ABSENT},
    "a window that is off": {"use_sliding_window": False, "sliding_window": 64, "max_window_layers": 2},
    "size of heads as it follows": {"head_dim": 32},
    "several ends": {"eos_token_id": [555, 554]},
    # LLaVA's scripts write them; the MobileCLIP tower of apple/ml-fastvlm (ce11b7f) reads none.
    "of other towers": {
        "mm_vision_select_layer": -2,
        "mm_vision_select_feature": "patch",
        "mm_patch_merge_type": "flat",
        "mm_use_im_patch_token": False,
        "image_grid_pinpoints": None,
        "tokenizer_padding_side": "right",
    },
}

REFUSED = {
    # transformers would take 10000 and 1e-6, of which no Mobile-O was trained with the first.
    "no theta": ({"rope_theta": ABSENT}, "rope_theta is missing"),
    "no epsilon": ({"rms_norm_eps": ABSENT}, "rms_norm_eps is missing"),
    "YaRN": ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "rope_scaling is 'yarn'"),
    "YaRN of version 5": (
        {"rope_parameters": {"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e6}},
        "rope_parameters is 'yarn'",
    ),
    "linear": (
        {"rope_scaling": {"type": "linear", "factor": 2.0}},
        "rope_scaling is 'linear'",
    ),
    "a window": ({"use_sliding_window": True}, "use_sliding_window is True"),
    "layers with a window": ({"layer_types": ["sliding_attention"] * 6}, "layer_types is"),
    "another size of heads": ({"head_dim": 64}, "head_dim is 64"),
    "another activation": ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
    "quantised": ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "quantization_config is"),
    "tokens around an image": ({"mm_use_im_start_end": True}, "mm_use_im_start_end is True"),
    "layers of no list": ({"layer_types": 6}, "layer_types is 6"),
}


@pytest.fixture
def edited(reference_folder: Path, tmp_path: Path) -> Any:
    """Writes the fixture's configuration with changes; its folder and what is in it."""

    def edit(changes: dict[str, Any]) -> tuple[Path, dict[str, Any]]:
        folder = Path(shutil.copytree(reference_folder, tmp_path / "checkpoint"))
        config = json.loads((folder / "config.json").read_text())
        config = {key: value for key, value in {**config, **changes}.items() if value is not ABSENT}
        (folder / "config.json").write_text(json.dumps(config))
        return folder, config

    return edit


@pytest.mark.filterwarnings("ignore:`rope_scaling` is deprecated:FutureWarning")
@pytest.mark.parametrize("name", SAME)
def test_what_is_read_is_what_transformers_reads(edited: Any, name: str) -> None:
    folder, raw = edited(SAME[name])
    theirs = Qwen2Config.from_dict(json.loads(json.dumps(raw)))
    ours = Qwen2Config(**MobileOConfig.load(folder).language)
    for key in (
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "hidden_act",
        "rms_norm_eps",
        "layer_types",
        "eos_token_id",
        "pad_token_id",
        "sliding_window",
    ):
        assert getattr(ours, key) == getattr(theirs, key), key
    assert ours.rope_parameters["rope_theta"] == theirs.rope_parameters["rope_theta"]
    assert ours.rope_parameters["rope_type"] == theirs.rope_parameters["rope_type"] == "default"


@pytest.mark.parametrize("name", REFUSED)
def test_what_would_be_another_model_is_refused(edited: Any, name: str) -> None:
    changes, message = REFUSED[name]
    with pytest.raises(CheckpointError) as caught:
        MobileOConfig.load(edited(changes)[0])
    assert message in str(caught.value)


@pytest.mark.parametrize(
    "model_type", ["mobile_o_inference", "mobileo_inference", "Mobile-O", "mobile_o", "llava_qwen2"]
)
def test_types_that_mobile_o_s_scripts_write(edited: Any, model_type: str) -> None:
    folder, _ = edited({"model_type": model_type})
    assert MobileOConfig.load(folder).raw["model_type"] == model_type


def test_a_vision_language_model_alone(edited: Any) -> None:
    folder, _ = edited(
        {"model_type": "llava_qwen2", "diffusion_name_or_path": ABSENT, "vlm_num_layers": ABSENT}
    )
    message = "has no diffusion_name_or_path and no vlm_num_layers, .*FastVLM"
    with pytest.raises(CheckpointError, match=message):
        MobileOConfig.load(folder)
