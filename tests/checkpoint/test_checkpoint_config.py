from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from mobile_o_export.checkpoint import BUILT_IN_DIFFUSION, MobileOConfig
from mobile_o_export.errors import CheckpointError


def test_reference_config_is_read(reference_folder: Path) -> None:
    config = MobileOConfig.load(reference_folder)
    assert config.image_size == 256
    assert config.conditioning_layers == 4
    assert config.mm_hidden_size == 512
    assert config.language["hidden_size"] == 128
    assert config.language["eos_token_id"] == 555
    assert config.diffusion.transformer["caption_channels"] == 96
    assert config.diffusion.vae["latent_channels"] == 8
    assert config.diffusion.scheduler["flow_shift"] == 3.0


def test_language_builds_a_qwen2_config(reference_folder: Path) -> None:
    from transformers import Qwen2Config

    language = Qwen2Config(**MobileOConfig.load(reference_folder).language)
    assert language.rope_parameters["rope_theta"] == 1e6
    assert language.num_key_value_heads == 2
    assert language.rms_norm_eps == 1e-6


def test_rope_theta_as_transformers_5_writes_it(folder: Path, edit_config: Callable[..., None]) -> None:
    edit_config(rope_theta=None, rope_parameters={"rope_theta": 5e5, "rope_type": "default"})
    assert MobileOConfig.load(folder).language["rope_theta"] == 5e5


def test_a_checkpoint_may_say_its_own_guidance(folder: Path, edit_config: Callable[..., None]) -> None:
    assert MobileOConfig.load(folder).guidance is None
    edit_config(guidance_scale=2)
    assert MobileOConfig.load(folder).guidance == 2.0
    edit_config(guidance_scale=-1)
    with pytest.raises(CheckpointError, match="guidance_scale is -1, and a positive number is needed"):
        MobileOConfig.load(folder)


@pytest.mark.parametrize(
    ("name", "layers", "width"),
    [
        ("Efficient-Large-Model/Sana_600M_512px_diffusers", 28, 1152),
        ("Efficient-Large-Model/Sana_1600M_512px_diffusers", 20, 2240),
        ("/somewhere/else/Sana_600M_512px_diffusers/", 28, 1152),
        ("sana_1600m_512px_diffusers", 20, 2240),
    ],
)
def test_built_in_diffusion_needs_no_files(
    folder: Path, edit_config: Callable[..., None], name: str, layers: int, width: int
) -> None:
    edit_config(diffusion_name_or_path=name)
    diffusion = MobileOConfig.load(folder).diffusion
    assert diffusion.source in BUILT_IN_DIFFUSION
    assert diffusion.transformer["num_layers"] == layers
    assert diffusion.transformer["cross_attention_dim"] == width


def test_absolute_diffusion_folder(folder: Path, edit_config: Callable[..., None], tmp_path: Path) -> None:
    elsewhere = shutil.move(folder / "diffusion", tmp_path / "elsewhere")
    edit_config(diffusion_name_or_path=str(elsewhere))
    assert MobileOConfig.load(folder).diffusion.transformer["num_layers"] == 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "qwen2"}, "model_type is 'qwen2'"),
        ({"model_type": None}, "model_type is None"),
        ({"hidden_size": None}, "hidden_size is missing"),
        ({"hidden_size": "128"}, "hidden_size is '128'"),
        ({"num_attention_heads": 3}, "do not divide"),
        ({"rope_theta": None}, "rope_theta is missing"),
        ({"rope_scaling": {"type": "yarn", "factor": 4.0}}, "rope_scaling is 'yarn'"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ({"use_sliding_window": True}, "use_sliding_window"),
        ({"mm_vision_tower": None}, "mm_vision_tower is missing"),
        ({"mm_vision_tower": "mobileclip_l"}, "image size of 0"),
        ({"mm_vision_tower": "mobileclip_l_250"}, "multiple of 64"),
        ({"mm_projector_type": "linear"}, "mm_projector_type is 'linear'"),
        ({"image_aspect_ratio": "anyres"}, "image_aspect_ratio is 'anyres'"),
        ({"vlm_num_layers": 8}, "vlm_num_layers is 8"),
        ({"vlm_num_layers": 0}, "vlm_num_layers is 0"),
        ({"diffusion_name_or_path": "stabilityai/sdxl"}, "Sana_600M_512px_diffusers"),
    ],
)
def test_bad_value_is_named(
    folder: Path, edit_config: Callable[..., None], changes: dict[str, object], message: str
) -> None:
    edit_config(**changes)
    with pytest.raises(CheckpointError) as caught:
        MobileOConfig.load(folder)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("file", "key", "value", "message"),
    [
        ("transformer/config.json", "_class_name", "PixArtTransformer2DModel", "SanaTransformer2DModel"),
        ("transformer/config.json", "in_channels", 4, "latent channels"),
        ("transformer/config.json", "num_layers", None, "num_layers is None"),
        ("vae/config.json", "scaling_factor", 0, "scaling_factor is 0"),
        ("scheduler/scheduler_config.json", "prediction_type", "epsilon", "flow_prediction"),
    ],
)
def test_bad_diffusion_value_is_named(folder: Path, file: str, key: str, value: object, message: str) -> None:
    path = folder / "diffusion" / file
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
    with pytest.raises(CheckpointError, match=message):
        MobileOConfig.load(folder)


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff\xfe\x00", b"[" * 100_000])
def test_damaged_json(folder: Path, content: bytes) -> None:
    (folder / "config.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"config\.json"):
        MobileOConfig.load(folder)


def test_missing_json(folder: Path) -> None:
    (folder / "diffusion/vae/config.json").unlink()
    with pytest.raises(CheckpointError, match=r"vae/config\.json: no such file"):
        MobileOConfig.load(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mm_vision_tower": "mobileclip_l_0"}, "gives an image size of 0, and the encoder needs a positive"),
        (
            {"mm_vision_tower": "mobileclip_l_64000"},
            "gives an image size of 64000, and the encoder needs a p",
        ),
        ({"mm_vision_tower": "mobileclip_l_" + "1" * 5000}, "gives an image size of 0"),
        ({"num_hidden_layers": 10**6}, "num_hidden_layers is 1000000, and a positive whole number up to 256"),
        ({"vocab_size": 2**40}, "vocab_size is 1099511627776, and a positive whole number up to 16777216"),
        ({"rope_theta": 10**200}, "and a positive number up to 1e+12 is needed"),
        (
            {"max_position_embeddings": -1},
            "max_position_embeddings is -1, and a positive whole number is nee",
        ),
        ({"eos_token_id": "stop"}, "eos_token_id is 'stop', and a token's id, or a list of some, is needed"),
        ({"eos_token_id": [1, 2**40]}, "eos_token_id is [1, 1099511627776], and a token's id, or a list"),
        ({"pad_token_id": -1}, "pad_token_id is -1, and a token's id"),
        ({"tie_word_embeddings": "false"}, "tie_word_embeddings is 'false', and true or false is needed"),
        (
            {"guidance_scale": 1e9},
            "guidance_scale is 1000000000.0, and a positive number up to 100 is needed",
        ),
    ],
)
def test_a_number_that_no_model_has(
    folder: Path, edit_config: Callable[..., None], changes: dict[str, object], message: str
) -> None:
    edit_config(**changes)
    with pytest.raises(CheckpointError) as caught:
        MobileOConfig.load(folder)
    assert message in str(caught.value)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("file", "changes", "message"),
    [
        (
            "transformer",
            {"num_layers": 10**6},
            "num_layers is 1000000, and a positive whole number up to 256",
        ),
        (
            "transformer",
            {"sample_size": 2**20},
            "sample_size is 1048576, and a positive whole number up to 10",
        ),
        (
            "transformer",
            {"mlp_ratio": 1e30},
            "mlp_ratio is 1e+30, and nothing of a network is beyond ±16777216",
        ),
        ("vae", {"decoder_layers_per_block": [10**9] * 4}, "decoder_layers_per_block is [1000000000, "),
        ("vae", {"decoder_block_out_channels": []}, "decoder_block_out_channels is [], and a list of 1 to 8"),
        ("vae", {"encoder_layers_per_block": 3}, "encoder_layers_per_block is 3, and a list of 1 to 8 whole"),
        ("vae", {"scaling_factor": 0}, "scaling_factor is 0, and a positive number is needed"),
    ],
)
def test_a_number_that_no_picture_model_has(
    folder: Path, file: str, changes: dict[str, object], message: str
) -> None:
    path = folder / "diffusion" / file / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(CheckpointError) as caught:
        MobileOConfig.load(folder)
    assert message in str(caught.value)


@pytest.mark.parametrize("name", ["x" * 5000, "~nobody-of-that-name/sana", "a\0b"])
def test_a_folder_that_cannot_be(folder: Path, edit_config: Callable[..., None], name: str) -> None:
    edit_config(diffusion_name_or_path=name)
    with pytest.raises(CheckpointError, match="is no local folder and no built-in configuration"):
        MobileOConfig.load(folder)


def test_a_key_that_occurs_twice(folder: Path) -> None:
    path = folder / "config.json"
    path.write_text(path.read_text().replace('"hidden_size"', '"hidden_size": 64, "hidden_size"', 1))
    with pytest.raises(CheckpointError, match=r"cannot be read as JSON \(the key 'hidden_size' occurs twice"):
        MobileOConfig.load(folder)
