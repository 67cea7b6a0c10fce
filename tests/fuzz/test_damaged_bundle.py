"""Manifests and settings that contradict themselves, their digests written anew: what each kind says."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from mobile_o_export.bundle.manifest import MANIFEST, MANIFEST_DIGEST, DamagedBundleError, read_manifest
from mobile_o_export.errors import BundleError
from mobile_o_export.pipelines.settings import Settings

Json = dict[str, Any]


@pytest.fixture
def copy(handmade: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "bundle"
    folder.mkdir()
    shutil.copyfile(handmade / MANIFEST, folder / MANIFEST)
    shutil.copytree(handmade / "config", folder / "config")
    return folder


def rewrite(path: Path, change: Callable[[Json], object]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def part(manifest: Json, target: str, component: str) -> Json:
    found: Json = manifest["targets"][target]["components"][component]
    return found


def spec(manifest: Json, target: str, component: str) -> Json:
    found: Json = part(manifest, target, component)["graphs"][0]["spec"]
    return found


def move(manifest: Json, target: str, component: str) -> None:
    part(manifest, target, component)["graphs"][0]["file"] = "another.file"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m["functions"].pop("mcp"), "coreml-ane: component 'mcp' is not among the functions"),
        (lambda m: m["functions"].update(mpc=m["functions"]["mcp"]), "component 'mpc' is unknown. Did you m"),
        (lambda m: m["functions"].update(mcp=[]), "functions: mcp has none"),
        (lambda m: part(m, "litert-cpu", "mcp").update(graphs=[]), "has a recipe, a gate and graphs"),
        (lambda m: part(m, "litert-cpu", "mcp").update(skipped="x"), "litert-cpu, mcp: is skipped and has g"),
        (lambda m: move(m, "litert-cpu", "mcp"), "litert-cpu, mcp: its graphs lie in 2 files, and have to b"),
        (lambda m: move(m, "coreml-ane", "llm"), "coreml-ane, llm: its graphs lie in 2 files, and have to b"),
        (lambda m: move(m, "mobile-o-app", "llm"), "llm: its graphs have to be in llm/model.safetensors"),
        (lambda m: spec(m, "litert-cpu", "mcp").update(functions=["encode"]), "realises 'encode', which is"),
        (lambda m: spec(m, "litert-cpu", "mcp").update(then="nowhere"), "goes on in 'nowhere', which is no"),
        (lambda m: spec(m, "mobile-o-app", "vision_encoder").update(then="encode"), "goes on in 'encode', w"),
        (lambda m: spec(m, "litert-cpu", "mcp")["inputs"][0].update(name="x"), "asks for 'x', which project"),
        (lambda m: spec(m, "litert-cpu", "mcp")["outputs"][0].update(name="x"), "lacks 'conditioning', whic"),
        (lambda m: spec(m, "litert-cpu", "mcp")["inputs"][0].update(layout="B K S E"), "has the layout 'B K"),
        (lambda m: spec(m, "litert-cpu", "mcp")["inputs"][0]["shape"].__setitem__(0, 2), "has the shape"),
        (lambda m: spec(m, "litert-cpu", "mcp").update(feeds={"x": "y"}), "feeds 'x' to 'y', and has no suc"),
        (lambda m: spec(m, "litert-cpu", "mcp").update(aliases={"x": "y"}), "has another name for 'x', whic"),
        (lambda m: spec(m, "litert-cpu", "mcp")["inputs"][0]["shape"].__setitem__(1, -1), "is not that of a"),
        (lambda m: spec(m, "litert-cpu", "mcp")["inputs"][0]["shape"].__setitem__(1, 2**40), "is not that o"),
        (lambda m: spec(m, "litert-cpu", "mcp")["inputs"][0].update(layout="B"), "does not name each axis o"),
        (lambda m: spec(m, "tensorrt-orin", "mcp")["profiles"][0].update(function="x"), "has a profile of '"),
        (lambda m: spec(m, "tensorrt-orin", "mcp")["profiles"][0]["extents"]["S"].update(minimum=2**30),
         "the extent of S does not ascend from 0 to"),
        (lambda m: m["targets"]["litert-cpu"].update(chain_gate=None), "litert-cpu: has components and no c"),
        (lambda m: m["targets"]["litert-cpu"].update(backend="litret"), "backend 'litret' is unknown. Did y"),
        (lambda m: part(m, "litert-cpu", "mcp").update(size_bytes=-1), "size_bytes: Input should be greater"),
        (lambda m: part(m, "litert-cpu", "mcp")["gate"].update(snr_db="inf"), "snr_db: Input should be a fi"),
        (lambda m: m["targets"]["litert-cpu"]["sequence"].update(context=2**31), "sequence.context: Input s"),
    ],
)  # fmt: skip
def test_a_manifest_that_contradicts_itself(
    copy: Path, change: Callable[[Json], object], message: str
) -> None:
    rewrite(copy / MANIFEST, change)
    digest = sha256((copy / MANIFEST).read_bytes()).hexdigest()
    (copy / MANIFEST_DIGEST).write_text(f"{digest}  {MANIFEST}\n")
    with pytest.raises(DamagedBundleError) as caught:
        read_manifest(copy)
    assert f"{MANIFEST} is no manifest (" in str(caught.value)
    assert message in str(caught.value)
    assert caught.value.exit_code == 1


def steps(count: int) -> Callable[[Json], object]:
    return lambda s: s["schedules"].update({"4": s["schedules"]["4"][:count]})


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("pipeline.json", lambda s: s.update(steps=0), "steps: Input should be greater than or equal to 1"),
        (
            "pipeline.json",
            lambda s: s.update(steps=10**9),
            "steps: Input should be less than or equal to 250",
        ),
        ("pipeline.json", lambda s: s.update(guidance=1e300), "guidance: Input should be less than or equal"),
        ("pipeline.json", lambda s: s.update(vae_scaling_factor=0), "vae_scaling_factor: Input should be gr"),
        (
            "pipeline.json",
            lambda s: s.update(latent_shape=[1, -8, 8, 8]),
            "latent_shape.1: Input should be gr",
        ),
        ("pipeline.json", lambda s: s.update(latent_shape=[2, 8, 8, 8]), "latent_shape.0: Input should be 1"),
        (
            "pipeline.json",
            lambda s: s.update(latent_shape=[1, 1, 3, 5]),
            "latent_shape holds 15 values, not 16",
        ),
        (
            "pipeline.json",
            lambda s: s.update(latent_shape=[1, 2**20, 64, 64]),
            "latent_shape holds 4294967296",
        ),
        (
            "pipeline.json",
            lambda s: s.update(image_tokens=0),
            "image_tokens: Input should be greater than or",
        ),
        (
            "pipeline.json",
            lambda s: s.update(conditioning_layers=-4),
            "conditioning_layers: Input should be g",
        ),
        (
            "pipeline.json",
            lambda s: s.update(stop_token_ids=[-1]),
            "stop_token_ids.0: Input should be greater",
        ),
        (
            "preprocessing.json",
            lambda s: s.update(image_size=0),
            "image_size: Input should be greater than or",
        ),
        ("preprocessing.json", lambda s: s.update(image_size=10**9), "image_size: Input should be less than"),
        ("preprocessing.json", lambda s: s.update(std=[1, 0, 1]), "std.1: Input should be greater than 0"),
        (
            "scheduler.json",
            lambda s: s["config"].update(num_train_timesteps=2**31),
            "num_train_timesteps: Inp",
        ),
        (
            "scheduler.json",
            lambda s: s["config"].update(flow_shift=1e9),
            "config.flow_shift: Input should be le",
        ),
        (
            "scheduler.json",
            lambda s: s["schedules"].update(x=[]),
            "'x' is not a number of steps from 1 to 250",
        ),
        ("scheduler.json", steps(3), "schedules.4: has 3 steps"),
        (
            "scheduler.json",
            lambda s: s["schedules"]["4"].insert(0, s["schedules"]["4"].pop(1)),
            "schedules.4: its first step needs one b",
        ),
        (
            "scheduler.json",
            lambda s: s["schedules"]["4"][0].update(sigma=2),
            "sigma: Input should be less than",
        ),
        ("prompts.json", lambda s: s.update(edit="{text}"), "edit: holds <image> 0 times, not 1"),
        (
            "prompts.json",
            lambda s: s.update(generate="<image>{text}"),
            "generate: holds <image> 1 times, not 0",
        ),
        ("prompts.json", lambda s: s.update(chat="hello"), "chat: holds {text} 0 times, not 1"),
    ],
)
def test_settings_that_cannot_be(
    copy: Path, file: str, change: Callable[[Json], object], message: str
) -> None:
    rewrite(copy / "config" / file, change)
    with pytest.raises(BundleError) as caught:
        Settings.read(copy / "config")
    assert str(caught.value).startswith(f"{copy / 'config' / file}: ")
    assert message in str(caught.value)
    assert caught.value.exit_code == 2
