"""What an app gets: vectors that hold, and all it needs to draw PyTorch's picture without PyTorch."""

from __future__ import annotations

import json
import runpy
import subprocess
import sys
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from tokenizers import Tokenizer

from mobile_o_export.checkpoint import Checkpoint
from mobile_o_export.parity.metrics import psnr_db
from mobile_o_export.pipelines.preprocessing import unit_image
from mobile_o_export.reference import DiffusersScheduler, torch_pipeline

ROOT = Path(__file__).parents[2]
PROMPT, SEED, STEPS = "a yellow boat on a green sea", 11, 8
QUESTION, TOKENS = "What is on the table?", 12
PICTURE = ROOT / "golden" / "still-life.png"

# The 8-bit file alone costs 10·log10(12 · 255²) = 58.9 dB.
LEAST_PSNR_DB = {"litert-cpu": 50.0, "tensorrt-orin": 45.0}


def vectors(bundle: Path, name: str) -> Any:
    return json.loads((bundle / "vectors" / f"{name}.json").read_text(encoding="utf-8"))


def app(*arguments: object, forbidden: tuple[str, ...] = ()) -> str:
    """What examples/plain_app.py prints where some packages cannot be imported."""
    code = (
        f"import runpy, sys; sys.modules.update(dict.fromkeys({list(forbidden)!r})); "
        f"sys.argv = {['plain_app.py', *map(str, arguments)]!r}; "
        f"runpy.run_path({str(ROOT / 'examples' / 'plain_app.py')!r}, run_name='__main__')"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_an_app_ends_where_its_runtime_is_older_than_the_files_need(bundle: Path, tmp_path: Path) -> None:
    """An old runtime need not fail: LiteRT 1.1 computed garbage and said nothing."""
    manifest = json.loads((bundle / "manifest.json").read_text(encoding="utf-8"))
    assert {name: list(entry["least_runtimes"]) for name, entry in manifest["targets"].items()} == {
        "coreml-ane": ["iOS", "macOS"],
        "litert-cpu": ["ai-edge-litert"],
        "tensorrt-orin": ["onnxruntime"],
    }
    manifest["targets"]["litert-cpu"]["least_runtimes"] = {"ai-edge-litert": "99.1"}
    (tmp_path / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    make = runpy.run_path(str(ROOT / "examples" / "plain_app.py"))["App"]
    with pytest.raises(SystemExit, match=r"ai-edge-litert is \S+; this bundle needs 99\.1 or later"):
        make(tmp_path, "litert-cpu")


WITHOUT = ("torch", "transformers", "diffusers", "mobile_o_export", "pydantic")


@pytest.mark.parametrize("target", LEAST_PSNR_DB)
def test_an_app_without_pytorch_draws_pytorch_s_picture(
    target: str, bundle: Path, reference_checkpoint: Checkpoint, tmp_path: Path
) -> None:
    out = tmp_path / "picture.png"
    arguments = (bundle, target, "draw", PROMPT, "--seed", SEED, "--steps", STEPS, "--out", out)
    assert app(*arguments, forbidden=WITHOUT).strip() == str(out)
    with torch_pipeline(reference_checkpoint) as model:
        expected = unit_image(model.generate(PROMPT, seed=SEED, steps=STEPS).image)
        other = unit_image(model.generate(PROMPT, seed=SEED + 1, steps=STEPS).image)
    drawn = np.asarray(Image.open(out), np.float32).transpose(2, 0, 1)[None] / 255
    assert psnr_db(expected, drawn) >= LEAST_PSNR_DB[target]
    assert psnr_db(other, drawn) < 30.0


@pytest.mark.parametrize("target", LEAST_PSNR_DB)
def test_an_app_without_pytorch_gives_pytorch_s_answer(
    target: str, bundle: Path, reference_checkpoint: Checkpoint
) -> None:
    arguments = (bundle, target, "answer", PICTURE, QUESTION, "--tokens", TOKENS)
    given = json.loads(app(*arguments, forbidden=WITHOUT))
    with torch_pipeline(reference_checkpoint) as model:
        answer = model.describe(PICTURE, QUESTION, max_tokens=TOKENS)
        assert given["tokens"] == [token.id for token in answer]
    assert given["text"] == answer.text


def test_noise_vectors_are_pytorch_s_own_numbers(bundle: Path) -> None:
    content = vectors(bundle, "noise")
    assert len(content["cases"]) == 5
    assert any("MT19937" in line for line in content["recipe"])
    for case in content["cases"]:
        generator = torch.Generator().manual_seed(case["seed"])
        expected = torch.randn(content["latent_shape"], generator=generator).numpy().reshape(-1)
        np.testing.assert_allclose(case["first_values"], expected[:64], rtol=0, atol=content["tolerance"])
        assert case["last_value"] == pytest.approx(expected[-1], abs=content["tolerance"])
        assert case["mean"] == pytest.approx(expected.mean(dtype=np.float64), abs=1e-6)
        assert case["standard_deviation"] == pytest.approx(expected.std(dtype=np.float64), abs=1e-6)
        # A value is made of the low 24 bits of a word; the first 16 values of the first 16 words.
        uniform = (np.array(case["words"]) & 0xFFFFFF) / 2.0**24
        radius = np.hypot(case["first_values"][:8], case["first_values"][8:16])
        np.testing.assert_allclose(radius, np.sqrt(-2 * np.log(1 - uniform)), rtol=1e-4)


def test_tokenizer_vectors_are_what_the_tokenizer_says(bundle: Path) -> None:
    tokenizer = Tokenizer.from_file(str(bundle / "tokenizer" / "tokenizer.json"))
    cases = vectors(bundle, "tokenizer")["cases"]
    assert {case["task"] for case in cases} == {
        "generate", "edit", "describe", "chat", "next_turn", "next_turn_with_image"
    }  # fmt: skip
    image_tokens = json.loads((bundle / "config" / "pipeline.json").read_text())["image_tokens"]
    assert any(not case["text"].isascii() for case in cases)
    for case in cases:
        assert case["text"] in case["prompt"]
        parts = case["prompt"].split("<image>")
        ids = [tokenizer.encode(part, add_special_tokens=False).ids for part in parts]
        if len(parts) == 1:
            assert [case["ids"]] == ids
        else:
            assert [case["ids_before_image"], case["ids_after_image"]] == ids
        assert case["length"] == sum(map(len, ids)) + image_tokens * (len(parts) - 1)


def test_preprocessing_vectors_are_what_pillow_does(bundle: Path) -> None:
    size = json.loads((bundle / "config" / "preprocessing.json").read_text())["image_size"]
    cases = vectors(bundle, "preprocessing")["cases"]
    pictures = {path.name for path in (bundle / "vectors" / "pictures").iterdir()}
    assert {Path(case["picture"]).name for case in cases} == pictures
    for case in cases:
        picture = Image.open(bundle / "vectors" / case["picture"])
        if picture.mode == "I;16":
            picture = Image.fromarray((np.asarray(picture) // 256).astype(np.uint8))
        picture = ImageOps.exif_transpose(picture).convert("RGB")
        scale = size / min(picture.size)
        scaled = [size if side == min(picture.size) else int(side * scale) for side in picture.size]
        picture = picture.resize(tuple(scaled), Image.Resampling.BICUBIC)
        left, top = (scaled[0] - size) // 2, (scaled[1] - size) // 2
        pixels = np.asarray(picture.crop((left, top, left + size, top + size)))
        assert case["shape"] == list(pixels.shape)
        assert case["sha256"] == sha256(pixels.tobytes()).hexdigest(), case["picture"]
        assert len(case["samples"]) == 25
        for sample in case["samples"]:
            assert pixels[sample["y"], sample["x"]].tolist() == sample["rgb"]


def test_the_plain_app_passes_the_preprocessing_vectors(bundle: Path) -> None:
    app_code = runpy.run_path(str(ROOT / "examples" / "plain_app.py"))
    wanted = json.loads((bundle / "config" / "preprocessing.json").read_text(encoding="utf-8"))
    for case in vectors(bundle, "preprocessing")["cases"]:
        pixels = app_code["preprocessed"](bundle / "vectors" / case["picture"], wanted)
        assert sha256(pixels.tobytes()).hexdigest() == case["sha256"], case["picture"]


def test_upright_pictures_of_one_scene_come_out_alike(bundle: Path) -> None:
    """The same scene in every kind of file: only greyscale has other colours, and JPEG a little noise."""
    cases = {Path(case["picture"]).name: case for case in vectors(bundle, "preprocessing")["cases"]}
    plain = np.array([sample["rgb"] for sample in cases["plain.png"]["samples"]])
    assert cases["alpha.png"]["sha256"] == cases["plain.png"]["sha256"]
    assert cases["grey.png"]["sha256"] == cases["grey16.png"]["sha256"]
    turned = np.array([sample["rgb"] for sample in cases["upside-down.jpg"]["samples"]])[::-1]
    assert np.abs(plain - turned).mean() <= 8 < np.abs(plain - turned[::-1]).mean()


@pytest.mark.parametrize("steps", [4, 8, 12, 20])
def test_listed_numbers_integrate_as_diffusers_does(
    steps: int, bundle: Path, reference_checkpoint: Checkpoint
) -> None:
    numbers = json.loads((bundle / "config" / "scheduler.json").read_text())["schedules"][str(steps)]
    scheduler = DiffusersScheduler(reference_checkpoint.config.diffusion.scheduler, steps)
    assert [step["timestep"] for step in numbers] == scheduler.timesteps.tolist()
    assert [step["sigma"] for step in numbers] == pytest.approx(scheduler.sigmas[:-1].tolist())
    random = np.random.default_rng(3)
    expected = latent = random.standard_normal((1, 4, 8, 8), np.float32)
    before = np.zeros_like(latent)
    for index, step in enumerate(numbers):
        velocity = random.standard_normal(latent.shape, np.float32)
        expected = scheduler.step(velocity, index, expected)
        denoised = latent - step["sigma"] * velocity
        latent = step["sample"] * latent + step["denoised_now"] * denoised + step["denoised_before"] * before
        before = denoised
        np.testing.assert_allclose(latent, expected, rtol=0, atol=2e-5)
