"""Random checkpoints: the published tensors, whole or not at all, and every part of the model audible."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from mobile_o_export.checkpoint import Checkpoint, initialise
from mobile_o_export.checkpoint.initialise import init_checkpoint, published_layout
from mobile_o_export.checkpoint.inspection import inspect
from mobile_o_export.checkpoint.random_weights import RULES, depths, random_tensor, recipe_for
from mobile_o_export.errors import OutOfSpaceError, UsageError
from mobile_o_export.model.fastvithd import FastViTHD, FastViTHDLayout, Projector
from mobile_o_export.model.mcp import MobileConditioningProjector

VISION = "model.vision_tower.vision_tower.model."
FP32 = torch.float32


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("random") / "tiny"
    init_checkpoint(out, "tiny", seed=0)
    return out


def _published(reference_folder: Path, size: str) -> dict[str, tuple[int, ...]]:
    text = (reference_folder.parent / f"mobile-o-{size}.tensors.json").read_text()
    return {name: tuple(shape) for name, shape in json.loads(text).items()}


def test_tiny_has_the_tensors_of_the_reference(tiny: Path, reference_folder: Path) -> None:
    ours, theirs = Checkpoint.open(tiny), Checkpoint.open(reference_folder)
    assert {name: (t.shape, t.dtype) for name, t in ours.tensors.items()} == {
        name: (t.shape, t.dtype) for name, t in theirs.tensors.items()
    }
    assert inspect(ours).random_weights
    assert "random weights" in ours.licence


@pytest.mark.parametrize("size", ["0.5b", "1.5b"])
def test_published_names_and_shapes(reference_folder: Path, size: Any) -> None:
    entries = initialise._entries(size, "float16")
    assert {entry.name: entry.shape for entry in entries} == _published(reference_folder, size)
    assert {entry.dtype for entry in entries if not entry.name.endswith("num_batches_tracked")} == {"float16"}


@pytest.mark.parametrize("size", ["0.5b", "1.5b"])
def test_vision_layout_is_the_published_one(reference_folder: Path, size: Any) -> None:
    published = _published(reference_folder, size)
    vision = {
        name.removeprefix(VISION): shape for name, shape in published.items() if name.startswith(VISION)
    }
    assert published_layout(size) == FastViTHDLayout.from_shapes(vision)


def test_every_name_has_a_rule_and_every_rule_a_name(reference_folder: Path, tiny: Path) -> None:
    names = {*_published(reference_folder, "0.5b"), *Checkpoint.open(tiny).tensors}
    used = {id(recipe_for(name)) for name in names}
    assert [pattern for pattern, recipe in RULES if id(recipe) not in used] == []
    with pytest.raises(KeyError, match="no rule"):
        recipe_for("model.something.new")


def test_only_counters_are_constant(tiny: Path) -> None:
    tensors = Checkpoint.open(tiny).state_dict("", FP32)
    constant = {name for name, t in tensors.items() if t.numel() > 1 and float(t.std()) == 0}
    assert constant == set()
    scales = torch.cat([t.flatten() for name, t in tensors.items() if "layer_scale" in name])
    assert float(scales.min()) >= 0.3


def test_same_seed_same_bytes(tiny: Path, tmp_path: Path) -> None:
    init_checkpoint(tmp_path / "again", "tiny", seed=0)
    init_checkpoint(tmp_path / "other", "tiny", seed=1)
    files = sorted(path.relative_to(tiny) for path in tiny.rglob("*") if path.is_file())
    assert files == sorted(
        p.relative_to(tmp_path / "again") for p in (tmp_path / "again").rglob("*") if p.is_file()
    )
    for file in files:
        assert (tiny / file).read_bytes() == (tmp_path / "again" / file).read_bytes(), file
    assert Checkpoint.open(tiny).digest != Checkpoint.open(tmp_path / "other").digest


def test_tensor_depends_on_seed_and_name_only() -> None:
    names = ["model.layers.0.mlp.up_proj.weight", "model.layers.1.mlp.up_proj.weight"]
    depth = depths(names)
    assert depth == {"model.layers": 2}
    first = random_tensor(names[0], (8, 4), 0, depth)
    random_tensor(names[1], (8, 4), 0, depth)
    assert np.array_equal(first, random_tensor(names[0], (8, 4), 0, depth))
    assert not np.array_equal(first, random_tensor(names[1], (8, 4), 0, depth))
    assert not np.array_equal(first, random_tensor(names[0], (8, 4), 1, depth))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_dtypes(tiny: Path, tmp_path: Path, dtype: Any) -> None:
    init_checkpoint(tmp_path / "out", "tiny", seed=0, dtype=dtype)
    checkpoint = Checkpoint.open(tmp_path / "out")
    assert inspect(checkpoint).dtypes == (dtype,)
    stored = checkpoint.state_dict("model.norm.")["weight"]
    half = Checkpoint.open(tiny).state_dict("model.norm.")["weight"]
    torch.testing.assert_close(stored.float(), half.float(), rtol=2**-8, atol=0)


def test_files_are_aligned_and_read_by_safetensors(tiny: Path) -> None:
    from safetensors.torch import load_file

    assert load_file(tiny / "model.safetensors").keys() == Checkpoint.open(tiny).tensors.keys()
    widths = {"float16": 2, "int64": 8}
    assert all(t.offset_bytes % widths[t.dtype] == 0 for t in Checkpoint.open(tiny).tensors.values())


def test_large_checkpoints_are_sharded(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(initialise, "_SHARD_BYTES", 3_000_000)
    init_checkpoint(tmp_path / "out", "tiny", seed=0)
    files = sorted(path.name for path in (tmp_path / "out").glob("*.safetensors"))
    assert files == [f"model-{number:05}-of-00003.safetensors" for number in (1, 2, 3)]
    assert Checkpoint.open(tmp_path / "out").digest == Checkpoint.open(tiny).digest


def test_progress(tmp_path: Path) -> None:
    calls: list[tuple[str, int, int]] = []
    init_checkpoint(tmp_path / "out", "tiny", 0, progress=lambda *call: calls.append(call))
    assert len(calls) == 429
    assert [done for _, done, _ in calls] == sorted(done for _, done, _ in calls)
    assert calls[0][1] == 0
    assert calls[-1][1] < calls[-1][2]


def test_interruption_leaves_nothing(tmp_path: Path) -> None:
    def interrupt(name: str, done_bytes: int, total_bytes: int) -> None:
        if done_bytes > total_bytes // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        init_checkpoint(tmp_path / "out", "tiny", 0, progress=interrupt)
    assert list(tmp_path.iterdir()) == []


def test_full_disk_is_found_before_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1_000_000))
    with pytest.raises(OutOfSpaceError, match=r"needs 3\.34 GB and its disk has 0\.00 GB"):
        init_checkpoint(tmp_path / "out", "0.5b", 0)
    assert list(tmp_path.iterdir()) == []


def test_existing_folder_is_refused(tiny: Path) -> None:
    before = (tiny / "model.safetensors").stat().st_mtime_ns
    with pytest.raises(UsageError, match="exists already"):
        init_checkpoint(tiny, "tiny", 0)
    assert (tiny / "model.safetensors").stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("7b", 0, "float16"), "size '7b'"),
        (("tiny", -1, "float16"), "negative"),
        (("tiny", 0, "int8"), "dtype 'int8'"),
    ],
)
def test_bad_arguments(tmp_path: Path, arguments: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        init_checkpoint(tmp_path / "out", *arguments)


class TestTokenizer:
    def test_round_trip(self, tiny: Path) -> None:
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_file(str(tiny / "tokenizer.json"))
        text = "<|im_start|>user\nA red cat, 42 émojis 😀\n<|im_end|>"
        ids = tokenizer.encode(text).ids
        assert tokenizer.decode(ids, skip_special_tokens=False) == text
        assert (ids[0], ids[-1]) == (554, 555)
        assert max(ids) < 576
        # Merges are learned: common prompts take far fewer tokens than bytes.
        prompt = "Please generate image based on the following caption: "
        assert len(tokenizer.encode(prompt).ids) < len(prompt) / 3

    def test_all_553_ids_are_taken(self, tiny: Path) -> None:
        vocabulary = json.loads((tiny / "vocab.json").read_text(encoding="utf-8"))
        assert sorted(vocabulary.values()) == list(range(556))

    def test_transformers_reads_it_alike(self, tiny: Path) -> None:
        from tokenizers import Tokenizer
        from transformers import Qwen2Tokenizer

        text = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\nIt's 2 dogs."
        ours = Tokenizer.from_file(str(tiny / "tokenizer.json")).encode(text).ids
        assert Qwen2Tokenizer.from_pretrained(tiny)(text).input_ids == ours

    def test_published_special_ids(self, tmp_path: Path) -> None:
        from tokenizers import Tokenizer

        from mobile_o_export.checkpoint.small_tokenizer import SPECIAL_TOKENS, write_tokenizer

        write_tokenizer(tmp_path, 151643)
        tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
        assert [tokenizer.token_to_id(token) for token in SPECIAL_TOKENS] == [151643, 151644, 151645]
        assert tokenizer.encode("<|im_start|>a<|im_end|>").ids == [151644, 64, 151645]


def _change(a: torch.Tensor, b: torch.Tensor) -> float:
    """How far ``b`` is from ``a``, relative to ``a``."""
    return float((a - b).norm() / a.norm())


def _library_model(tiny: Path, component: str) -> Any:
    from diffusers import AutoencoderDC, SanaTransformer2DModel
    from transformers import Qwen2Config, Qwen2ForCausalLM

    checkpoint = Checkpoint.open(tiny)
    config = checkpoint.config
    model: Any
    if component == "llm":
        model = Qwen2ForCausalLM(Qwen2Config(**config.language))
        model.load_state_dict(checkpoint.component_state_dict("llm", FP32))
    elif component == "dit":
        model = SanaTransformer2DModel.from_config(dict(config.diffusion.transformer))
        model.load_state_dict(checkpoint.state_dict("model.dit.", FP32))
    else:
        model = AutoencoderDC.from_config(dict(config.diffusion.vae))
        model.load_state_dict(checkpoint.state_dict("model.vae.", FP32))
    return model.eval()


def _branches_matter(model: torch.nn.Module, run: Callable[[], torch.Tensor], names: list[str]) -> None:
    """Halving any one of these parameters' influence must show in the output."""
    parameters = dict(model.named_parameters())
    baseline = run()
    for name in names:
        saved = parameters[name].detach().clone()
        parameters[name].data.mul_(0.5)
        assert _change(baseline, run()) > 1e-3, name
        parameters[name].data.copy_(saved)


class TestNothingIsSilent:
    """Each bound is a third or less of what was measured on seed 0; a silenced branch gives 0."""

    @torch.no_grad()
    def test_vision_encoder(self, tiny: Path) -> None:
        checkpoint = Checkpoint.open(tiny)
        state = checkpoint.state_dict(VISION, FP32)
        model = FastViTHD(FastViTHDLayout.from_shapes({name: tuple(t.shape) for name, t in state.items()}))
        model.load_state_dict(state)
        model.eval()
        generator = torch.Generator().manual_seed(0)
        coarse = torch.rand(2, 3, 16, 16, generator=generator)
        image, other = torch.nn.functional.interpolate(coarse, size=256).split(1)
        features = model(image)
        assert 0.2 < float(features.std()) < 5
        assert _change(features, model(other)) > 0.2
        assert float(features.std(dim=1).mean()) > 0.1
        patched = image.clone()
        patched[..., 100:116, 100:116] = 0
        assert _change(features, model(patched)) > 0.01
        scales = [name for name in state if "layer_scale" in name or name.endswith("se.expand.weight")]
        _branches_matter(model, lambda: model(image), scales)
        projector = Projector(checkpoint.config.mm_hidden_size, checkpoint.config.language["hidden_size"])
        projector.load_state_dict(checkpoint.state_dict("model.mm_projector.", FP32))
        assert 0.05 < float(projector(features).std()) < 3

    @torch.no_grad()
    def test_llm_and_mcp(self, tiny: Path) -> None:
        checkpoint = Checkpoint.open(tiny)
        model = _library_model(tiny, "llm")
        ids = torch.arange(7, 55)[None]
        other = ids.clone()
        other[0, 20] = 300

        def run(tokens: torch.Tensor = ids) -> torch.Tensor:
            return model(input_ids=tokens).logits

        logits = run()
        assert 1 < float(logits.std()) < 4
        assert _change(logits[:, -1], run(other)[:, -1]) > 0.02
        assert _change(logits[:, -1], run(ids.flip(1).roll(-1, 1))[:, -1]) > 0.1
        outputs = [
            f"model.layers.{layer}.{name}.weight"
            for layer in range(6)
            for name in ("self_attn.o_proj", "mlp.down_proj")
        ]
        _branches_matter(model, run, outputs)

        hidden = model(input_ids=ids, output_hidden_states=True).hidden_states
        assert all(0.3 < float(state.std()) < 2 for state in hidden)
        mcp = MobileConditioningProjector(128, 4, 96, width=64, squeezed=16)
        mcp.load_state_dict(checkpoint.state_dict("model.diffusion_connector.fusion.", FP32))
        states = torch.stack(hidden[-4:], dim=1)
        conditioning = mcp(states)
        assert 0.7 < float(conditioning.std()) < 1.5
        assert _change(conditioning, mcp(torch.zeros_like(states))) > 0.4
        for layer in range(4):
            dropped = states.clone()
            dropped[:, layer] = 0
            assert _change(conditioning, mcp(dropped)) > 0.01, layer
        gates = [f"sequence_refiners.{block}.channel_attn.fc.2.weight" for block in (0, 1)]
        _branches_matter(mcp, lambda: mcp(states), gates)

    @torch.no_grad()
    def test_dit(self, tiny: Path) -> None:
        model = _library_model(tiny, "dit")
        generator = torch.Generator().manual_seed(0)
        latent, other = torch.randn(2, 1, 8, 8, 8, generator=generator)
        conditioning, unconditional = torch.randn(2, 1, 45, 96, generator=generator)

        def run(x: torch.Tensor = latent, c: torch.Tensor = conditioning, t: float = 500.0) -> torch.Tensor:
            return model(x, encoder_hidden_states=c, timestep=torch.tensor([t]), return_dict=False)[0]

        velocity = run()
        assert 0.4 < float(velocity.std()) < 3
        assert _change(velocity, run(other)) > 0.15
        assert _change(velocity, run(c=unconditional)) > 0.1
        assert _change(velocity, run(t=900.0)) > 0.15
        # A step further, but not so wild that rounding the timestep to fp16 (0.25 at 500) shows.
        assert 0.03 < _change(velocity, run(t=480.0)) < 0.4
        assert _change(velocity, run(t=500.25)) < 0.01
        branches = [
            f"transformer_blocks.{block}.{name}.weight"
            for block in range(3)
            for name in ("attn1.to_out.0", "attn2.to_out.0", "ff.conv_point")
        ]
        _branches_matter(model, run, branches)

    @torch.no_grad()
    def test_vae_decoder(self, tiny: Path) -> None:
        model = _library_model(tiny, "vae")
        generator = torch.Generator().manual_seed(0)
        latent, other = torch.randn(2, 1, 8, 8, 8, generator=generator) / 0.41407

        def run(z: torch.Tensor = latent) -> torch.Tensor:
            return model.decoder(z)

        image = run()
        assert image.shape == (1, 3, 64, 64)
        assert 0.1 < float(image.std()) < 0.8
        assert float((image.abs() <= 1).float().mean()) > 0.95
        assert _change(image, run(other)) > 0.3
        cell = latent.clone()
        cell[..., 4, 4] *= -1
        assert _change(image, run(cell)) > 0.05
        norms = [
            name
            for name, _ in model.decoder.named_parameters()
            if name.endswith(("norm.weight", "norm_out.weight"))
        ]
        assert len(norms) == 9
        _branches_matter(model.decoder, run, norms)
