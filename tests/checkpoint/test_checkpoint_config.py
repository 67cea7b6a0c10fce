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
