"""The published app's model folder: its files, what each takes and gives, and that they compute the model.

One export of the demo checkpoint, by the command line, is shared by all tests. Its DiT and VAE are not
palettized, which saves a minute and leaves nothing for an error to hide behind.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from shared_exports import SharedExports

from mobile_o_export.backends.coreml.interpreter import Interpreter, load_mlpackage
from mobile_o_export.bundle.manifest import Manifest, read_manifest
from mobile_o_export.bundle.runners import BundleRunners
from mobile_o_export.checkpoint import Checkpoint
from mobile_o_export.components.registry import COMPONENT_NAMES, component
from mobile_o_export.components.sizes import sizes
from mobile_o_export.errors import MissingToolError
from mobile_o_export.parity.judge import Status
from mobile_o_export.parity.metrics import Array, snr_db
from mobile_o_export.report.content import gather
from mobile_o_export.report.page import page

ROOT = Path(__file__).parents[2]
CHECKPOINT = ROOT / "examples" / "demo_checkpoint" / "checkpoint"
GOLDEN = ROOT / "golden" / "demo"
TARGET = "mobile-o-app"

PACKAGES = ("connector", "transformer", "vae_decoder", "vision_encoder")
APP_FILES = {
    *(
        f"{name}.mlpackage/{file}"
        for name in PACKAGES
        for file in (
            "Manifest.json",
            "Data/com.apple.CoreML/model.mlmodel",
            "Data/com.apple.CoreML/weights/weight.bin",
        )
    ),
    *(
        f"llm/{file}"
        for file in (
            "added_tokens.json",
            "config.json",
            "merges.txt",
            "model.safetensors",
            "model.safetensors.index.json",
            "special_tokens_map.json",
            "tokenizer.json",
            "tokenizer_config.json",
            "vocab.json",
        )
    ),
}
"""What the app downloads, and misses if it is not there."""


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mobile_o_export", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False, timeout=1200)


@pytest.fixture(scope="module")
def demo() -> Checkpoint:
    return Checkpoint.open(CHECKPOINT)


@pytest.fixture(scope="module")
def app(demo: Checkpoint, shared: SharedExports) -> Path:
    """The bundle."""
    plain = [
        argument for name in ("dit", "vae_decoder") for argument in ("--precision", f"{name}=uncompressed")
    ]

    def make(folder: Path) -> None:
        out = folder / "bundle"
        result = run("export", CHECKPOINT, "--target", TARGET, *plain, "--golden", GOLDEN, "--out", out)
        assert result.returncode == 0, result.stderr

    return shared.once("app", [demo.digest, plain], make) / "bundle"


@pytest.fixture(scope="module")
def manifest(app: Path) -> Manifest:
    return read_manifest(app)


# --- files ---


def test_the_folder_is_the_app_s_and_holds_nothing_more_but_the_weights_reports(app: Path) -> None:
    folder = app / TARGET
    found = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert found == APP_FILES | {f"{name}.weights.json" for name in COMPONENT_NAMES}
    assert len(APP_FILES) == 21


def described(app: Path, package: str) -> Any:
    from coremltools.proto import Model_pb2

    spec = Model_pb2.Model()
    path = app / TARGET / f"{package}.mlpackage" / "Data" / "com.apple.CoreML" / "model.mlmodel"
    spec.ParseFromString(path.read_bytes())
    return spec


def ports(features: Any) -> dict[str, tuple[list[int], str]]:
    from coremltools.proto import FeatureTypes_pb2

    kind = FeatureTypes_pb2.ArrayFeatureType.ArrayDataType
    return {
        feature.name: (
            list(feature.type.multiArrayType.shape),
            kind.Name(feature.type.multiArrayType.dataType),
        )
        for feature in features
    }


def contracts(demo: Checkpoint) -> Mapping[str, tuple[dict[str, Any], dict[str, Any]]]:
    """Inputs and outputs of each package, at the demo checkpoint's sizes."""
    s = sizes(demo)
    latent = ([1, s.latent_channels, s.latent, s.latent], "FLOAT32")
    return {
        "connector": (
            {"stacked_hidden_states": ([1, s.conditioning_layers, 77, s.hidden], "FLOAT32")},
            {"conditioning": ([], "FLOAT32")},
        ),
        "transformer": (
            {
                "latent": latent,
                "timestep": ([1], "FLOAT32"),
                "encoder_hidden_states": ([1, 77, s.conditioning], "FLOAT32"),
                "encoder_attention_mask": ([1, 77], "FLOAT32"),
            },
            {"velocity": latent},
        ),
        "vae_decoder": ({"latent": latent}, {"image": ([1, 3, s.decoded, s.decoded], "FLOAT32")}),
        "vision_encoder": (
            {"images": ([1, 3, s.image, s.image], "FLOAT16")},
            {"image_features": ([1, s.image_tokens, 384], "FLOAT16")},
        ),
    }


@pytest.mark.parametrize("package", PACKAGES)
def test_packages_take_and_give_what_the_app_feeds_and_reads(
    app: Path, demo: Checkpoint, package: str
) -> None:
    spec = described(app, package)
    inputs, outputs = contracts(demo)[package]
    assert spec.specificationVersion == 9  # iOS 18
    assert list(spec.mlProgram.functions) == ["main"]
    assert ports(spec.description.input) == inputs
    assert ports(spec.description.output) == outputs


@pytest.mark.parametrize("package", PACKAGES)
def test_sequence_axes_take_77_to_512_positions(app: Path, demo: Checkpoint, package: str) -> None:
    for feature in described(app, package).description.input:
        array = feature.type.multiArrayType
        ranges = [(size.lowerBound, size.upperBound) for size in array.shapeRange.sizeRanges]
        if feature.name in ("stacked_hidden_states", "encoder_hidden_states", "encoder_attention_mask"):
            assert ranges == [(77, 512) if size == 77 else (size, size) for size in array.shape]
            assert list(array.shape).count(77) == 1
        else:
            assert ranges == []


def test_the_manifest_has_the_files_own_names_and_lengths(manifest: Manifest) -> None:
    entries = manifest.targets[TARGET].components
    assert {entry.folder for entry in entries.values()} == {TARGET}
    files = {name: [graph.file for graph in entry.graphs] for name, entry in entries.items()}
    weights = "llm/model.safetensors"
    assert files == {
        "vision_encoder": ["vision_encoder.mlpackage", weights],
        "llm": [weights, weights],
        "mcp": ["connector.mlpackage"],
        "dit": ["transformer.mlpackage"],
        "vae_decoder": ["vae_decoder.mlpackage"],
    }
    (transformer,) = (graph.spec for graph in entries["dit"].graphs)
    assert [spec.name for spec in transformer.inputs] == [
        "latent",
        "timestep",
        "encoder_hidden_states",
        "encoder_attention_mask",
    ]
    (profile,) = transformer.profiles
    assert (profile.extents["S"].minimum, profile.extents["S"].maximum) == (77, 512)
    assert entries["vision_encoder"].graphs[0].spec.then == "projector"
    assert entries["mcp"].graphs[0].spec.zeros_are_padding


# --- what it computes ---


def test_verify_passes_and_compares_every_function(app: Path) -> None:
    result = run("verify", app, "--json")
    report = json.loads(result.stdout)
    assert (result.returncode, report["status"]) == (0, "passed")
    assert all(line.startswith("[") for line in result.stderr.splitlines()), result.stderr
    rows = report["rows"]
    compared = [row for row in rows if row["function"]]
    assert {(row["component"], row["function"], row["output"]) for row in compared} == {
        ("vision_encoder", "encode", "image_features"),
        ("llm", "embed", "inputs_embeds"),
        *(("llm", name, output) for name in ("prefill", "decode") for output in ("logits", "hidden_states")),
        ("mcp", "project", "conditioning"),
        ("dit", "denoise", "velocity"),
        ("vae_decoder", "decode", "image"),
    }
    # Three of the golden's prompts are shorter than 77: their unconditional branch says no length.
    cases = {row["case"].partition("@")[0] for row in rows if row["component"] == "mcp"}
    assert {case for case in cases if case.endswith("-unconditional")} == {"long-unconditional"}
    assert len([case for case in cases if case.endswith("-conditional")]) == 4


def test_chains_show_what_the_missing_length_costs(app: Path) -> None:
    rows = json.loads((app / "parity.json").read_text())["rows"]
    chained = [row for row in rows if row["component"] == "pipeline"]
    assert {row["status"] for row in chained} == {Status.PASSED}
    # The tower has 8 bits and the projector is in fp16; the llm is at 4 bits, with a gate of its own.
    gates = {row["output"]: row["gate"] for row in chained}
    assert (gates["image_features"], gates["logits"], gates["hidden_states"]) == (
        "≥ 35 dB",
        "≥ 12 dB",
        "≥ 12 dB",
    )
    levels = {row["case"]: row["snr_db"] for row in chained if row["output"] == "unconditional"}
    assert levels.keys() == {"circle-and-square", "triangles", "long", "recolour"}
    # Beyond 77 positions nothing is missing; below, two rows at the end and the mean over positions.
    assert levels.pop("long") > 60
    assert all(25 < level < 40 for level in levels.values())


def function(app: Path, package: str) -> Interpreter:
    program = load_mlpackage(app / TARGET / f"{package}.mlpackage")
    return Interpreter(program.functions["main"], component=package)


def padded(values: Array, length: int, axis: int) -> Array:
    room = [(0, 0)] * values.ndim
    room[axis] = (0, length - values.shape[axis])
    return np.pad(values, room)


@pytest.mark.parametrize(("real", "length"), [(1, 77), (12, 77), (77, 77), (90, 100), (100, 100), (300, 512)])
def test_the_connector_finds_its_padding_by_itself(
    app: Path, demo: Checkpoint, real: int, length: int
) -> None:
    s = sizes(demo)
    rng = np.random.default_rng(real)
    hidden = rng.standard_normal((1, s.conditioning_layers, real, s.hidden)).astype(np.float32)
    with torch.no_grad():
        wanted = component("mcp").load(demo)(torch.from_numpy(hidden)).numpy()
    found = function(app, "connector").run({"stacked_hidden_states": padded(hidden, length, 2)})
    assert found["conditioning"].shape == (1, length, s.conditioning)
    assert found["conditioning"].dtype == np.float32
    assert snr_db(wanted, found["conditioning"][:, :real]) > 55


@pytest.mark.parametrize("length", [77, 100])
def test_of_zeros_the_connector_counts_every_position(app: Path, demo: Checkpoint, length: int) -> None:
    s = sizes(demo)
    zeros = np.zeros((1, s.conditioning_layers, length, s.hidden), np.float32)
    with torch.no_grad():
        wanted = component("mcp").load(demo)(torch.from_numpy(zeros)).numpy()
    found = function(app, "connector").run({"stacked_hidden_states": zeros})
    assert snr_db(wanted, found["conditioning"]) > 55


@pytest.mark.parametrize(("real", "length"), [(12, 77), (77, 77), (90, 100), (512, 512)])
@pytest.mark.parametrize("timestep", [0.0, 999.0])
def test_the_transformer_sees_no_padding(
    app: Path, demo: Checkpoint, real: int, length: int, timestep: float
) -> None:
    s = sizes(demo)
    rng = np.random.default_rng(real)
    shape = (1, s.latent_channels, s.latent, s.latent)
    latent, time = rng.standard_normal(shape).astype(np.float32), np.array([timestep], np.float32)
    conditioning = rng.standard_normal((1, real, s.conditioning)).astype(np.float32)
    with torch.no_grad():
        wanted = component("dit").load(demo)(*map(torch.from_numpy, (latent, time, conditioning))).numpy()
    found = function(app, "transformer").run(
        {
            "latent": latent,
            "timestep": time,
            "encoder_hidden_states": padded(conditioning, length, 1),
            "encoder_attention_mask": padded(np.ones((1, real), np.float32), length, 1),
        }
    )
    assert found["velocity"].dtype == np.float32
    assert snr_db(wanted, found["velocity"]) > 50


def test_the_vision_package_is_the_tower_without_its_projector(app: Path, demo: Checkpoint) -> None:
    s = sizes(demo)
    image = np.random.default_rng(0).random((1, 3, s.image, s.image)).astype(np.float16)
    with torch.no_grad():
        tower = component("vision_encoder").load(demo).get_submodule("0")
        wanted = tower(torch.from_numpy(image).float()).numpy()
    found = function(app, "vision_encoder").run({"images": image})["image_features"]
    assert found.dtype == np.float16
    assert snr_db(wanted, found) > 35


def test_sessions_pad_as_the_app_does(app: Path, manifest: Manifest, demo: Checkpoint) -> None:
    s = sizes(demo)
    hidden = np.random.default_rng(1).standard_normal((1, s.conditioning_layers, 9, s.hidden))
    with BundleRunners(app, manifest, TARGET).open("mcp") as session:
        found = session.run("project", {"hidden_states": hidden.astype(np.float32)})
        assert {name: value.shape for name, value in found.items()} == {
            "conditioning": (1, 9, s.conditioning)
        }
        assert session.runtime.startswith("Core ML" if sys.platform == "darwin" else "MIL interpreter")


# --- what is said of it ---


def test_a_bundle_without_the_llm_says_what_is_missing(app: Path, tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    shutil.copytree(app, bundle)
    shutil.rmtree(bundle / TARGET / "llm")
    runners = BundleRunners(bundle, read_manifest(bundle), TARGET)
    with pytest.raises(MissingToolError, match="Export the llm"), runners.open("vision_encoder"):
        pass


def test_the_report_names_the_files_where_they_lie(app: Path) -> None:
    shown = page(gather(app, None))
    assert "<code>transformer.mlpackage</code>" in shown
    assert "<code>llm/model.safetensors</code>" in shown
    assert "dit/transformer.mlpackage" not in shown
