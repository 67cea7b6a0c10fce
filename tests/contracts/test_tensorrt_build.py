"""What a bundle carries for building TensorRT engines on the device: profiles, and the script."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mobile_o_export.bundle.manifest import damage, read_manifest
from mobile_o_export.targets import load_target

TARGET = "tensorrt-orin"


@pytest.fixture(scope="module")
def profiles(bundle: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((bundle / TARGET / "profiles.json").read_text())
    return content


def test_profiles_cover_every_dynamic_input_of_every_file(bundle: Path, profiles: dict[str, Any]) -> None:
    import onnx

    listed = {
        f"{component}/{graph.file}": graph.spec
        for component, entry in read_manifest(bundle).targets[TARGET].components.items()
        for graph in entry.graphs
    }
    assert profiles.keys() == listed.keys()
    for name, spec in listed.items():
        model = onnx.load(bundle / TARGET / name, load_external_data=False)
        dynamic = {
            value.name: [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
            for value in model.graph.input
            if any(dim.dim_param for dim in value.type.tensor_type.shape.dim)
        }
        assert [entry["function"] for entry in profiles[name]] == (list(spec.functions) if dynamic else [])
        for entry in profiles[name]:
            assert entry["shapes"].keys() == dynamic.keys()
            for key, dims in dynamic.items():
                least, best, most = (entry["shapes"][key][bound] for bound in ("min", "opt", "max"))
                for dim, low, middle, high in zip(dims, least, best, most, strict=True):
                    assert low <= middle <= high
                    assert isinstance(dim, str) or low == middle == high == dim


def test_profiles_agree_with_each_other_and_with_the_target(profiles: dict[str, Any]) -> None:
    """Past and present positions add up at every bound, and reach the target's own limits."""
    sequence = load_target(TARGET).sequence
    prefill, decode = profiles["llm/model.onnx"]
    for entry in (prefill, decode):
        for bound in ("min", "opt", "max"):
            shapes = {key: shape[bound] for key, shape in entry["shapes"].items()}
            past = shapes["past_key_values.0.key"][2]
            assert shapes["attention_mask"][1] == past + shapes["inputs_embeds"][1]
            assert shapes["position_ids"] == shapes["inputs_embeds"][:2]
    assert prefill["shapes"]["inputs_embeds"]["max"][1] == sequence.max_length
    assert prefill["shapes"]["past_key_values.0.key"]["max"][2] == 0
    assert decode["shapes"]["attention_mask"]["max"][1] == sequence.context
    assert decode["shapes"]["inputs_embeds"]["max"][1] == 1


FAKE_TENSORRT = """
import json, os
CALLS = os.environ["TENSORRT_CALLS"]
FAIL = os.environ.get("TENSORRT_FAIL", "")
def record(*call):
    with open(CALLS, "a") as log:
        log.write(json.dumps(call) + "\\\\n")
class Logger:
    WARNING = 2
    def __init__(self, level): pass
class NetworkDefinitionCreationFlag:
    EXPLICIT_BATCH = 0
    STRONGLY_TYPED = 1
class MemoryPoolType:
    WORKSPACE = "workspace"
class Profile:
    def set_shape(self, *arguments): record("set_shape", *arguments)
class Config:
    def set_memory_pool_limit(self, pool, size): record("limit", pool, size)
    def add_optimization_profile(self, profile):
        assert isinstance(profile, Profile)
        record("profile")
        return -1 if FAIL == "profile" else 0
class Builder:
    def __init__(self, logger): pass
    def create_network(self, flags):
        record("network", flags)
        return object()
    def create_builder_config(self): return Config()
    def create_optimization_profile(self): return Profile()
    def build_serialized_network(self, network, config):
        return None if FAIL == "build" else memoryview(b"an engine")
class OnnxParser:
    num_errors = 1
    def __init__(self, network, logger): pass
    def parse_from_file(self, path):
        record("parse", path)
        return not (FAIL and path.endswith(FAIL))
    def get_error(self, index): return "no such operator"
"""


@pytest.fixture
def build(bundle: Path, tmp_path: Path) -> Any:
    """Runs the bundle's script where ``tensorrt`` is a module that writes down how it is called."""
    site = tmp_path / "site"
    site.mkdir()
    (site / "tensorrt.py").write_text(FAKE_TENSORRT.replace("\\\\n", "\\n"))
    calls = tmp_path / "calls"

    def run(*arguments: str, fail: str = "", fake: bool = True) -> tuple[Any, list[list[Any]]]:
        result = subprocess.run(
            [
                sys.executable,
                "-I" if not fake else "-B",
                str(bundle / TARGET / "build_engines.py"),
                *arguments,
            ],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(site), "TENSORRT_CALLS": str(calls), "TENSORRT_FAIL": fail},
            check=False,
        )
        lines = calls.read_text().splitlines() if calls.exists() else []
        return result, [json.loads(line) for line in lines]

    return run


def test_the_script_builds_an_engine_of_every_file(
    build: Any, profiles: dict[str, Any], bundle: Path, tmp_path: Path
) -> None:
    result, calls = build("--out", str(tmp_path / "engines"), "--workspace-mib", "64")
    assert (result.returncode, result.stderr) == (0, "")
    written = {
        path.relative_to(tmp_path / "engines").as_posix() for path in (tmp_path / "engines").rglob("*.*")
    }
    assert written == {name.replace(".onnx", ".engine") for name in profiles}
    assert {path.read_bytes() for path in (tmp_path / "engines").rglob("*.engine")} == {b"an engine"}
    expected: list[list[Any]] = []
    for name, entries in profiles.items():
        # STRONGLY_TYPED is flag 1 here: bit 1.
        expected += [["network", 2], ["parse", str(bundle / TARGET / name)]]
        expected.append(["limit", "workspace", 64 * 2**20])
        for entry in entries:
            for key, shape in entry["shapes"].items():
                expected.append(["set_shape", key, shape["min"], shape["opt"], shape["max"]])
            expected.append(["profile"])
    assert calls == expected


def test_the_script_builds_what_it_is_asked_for(build: Any, tmp_path: Path) -> None:
    result, calls = build("--out", "here", "mcp/project.onnx")
    assert result.returncode == 0
    assert [call[0] for call in calls].count("network") == 1
    assert [path.name for path in (tmp_path / "here").rglob("*.*")] == ["project.engine"]


@pytest.mark.parametrize("fail", ["denoise.onnx", "build"])
def test_a_file_that_cannot_be_built_is_named_and_the_others_are_built(
    fail: str, build: Any, profiles: dict[str, Any], tmp_path: Path
) -> None:
    result, _ = build("--out", str(tmp_path / "engines"), fail=fail)
    assert result.returncode == 1
    failed = ["dit/denoise.onnx"] if fail == "denoise.onnx" else list(profiles)
    assert result.stderr.splitlines()[-1] == f"failed: {', '.join(failed)}"
    assert ("no such operator" in result.stderr) == (fail == "denoise.onnx")
    built = [path for path in (tmp_path / "engines").rglob("*") if path.is_file()]
    assert len(built) == len(profiles) - len(failed)


def test_a_refused_profile_is_no_engine(build: Any, tmp_path: Path) -> None:
    """Without it, the profiles after it would have other numbers than profiles.json says."""
    result, _ = build("--out", str(tmp_path / "engines"), "mcp/project.onnx", fail="profile")
    assert result.returncode == 1
    assert "TensorRT refused the profile of project" in result.stderr
    assert not list((tmp_path / "engines").rglob("*.engine"))


def test_engines_go_beside_the_bundle_by_default(build: Any, bundle: Path) -> None:
    """Inside it, verify would find files that nobody exported."""
    engines = bundle.with_name(f"{bundle.name}-engines")
    result, _ = build("mcp/project.onnx")
    assert result.returncode == 0
    assert (engines / "mcp" / "project.engine").is_file()
    assert damage(bundle, read_manifest(bundle)) == []
    shutil.rmtree(engines)


def test_an_unknown_file_is_refused_with_those_there_are(build: Any) -> None:
    result, calls = build("dit/other.onnx")
    assert (result.returncode, calls) == (2, [])
    assert "dit/other.onnx is not in profiles.json; it has " in result.stderr
    assert "dit/denoise.onnx" in result.stderr


def test_without_tensorrt_the_script_says_where_it_comes_from(build: Any) -> None:
    result, _ = build(fake=False)
    assert result.returncode == 3
    assert "JetPack" in result.stderr
