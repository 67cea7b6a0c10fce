"""``verify --pipeline``: whole chains from the command line, with each of its exit codes."""

from __future__ import annotations

import json
import os
import shutil
from hashlib import sha256
from pathlib import Path

import pytest
from cli_harness import Cli

from mobile_o_export.backends.onnx.backend import OnnxBackend
from mobile_o_export.errors import MissingToolError

TARGET = ("--target", "tensorrt-orin")


@pytest.fixture
def spoilt(bundle: Path, tmp_path: Path) -> Path:
    """Each function passes, the chain does not: another template, sealed anew."""
    copy = Path(shutil.copytree(bundle, tmp_path / "bundle", copy_function=os.link))

    def replace(name: str, content: bytes) -> None:
        (copy / name).unlink()
        (copy / name).write_bytes(content)

    templates = (copy / "config" / "prompts.json").read_bytes().replace(b"<|im_start|>", b"<im_start>")
    replace("config/prompts.json", templates)
    manifest = json.loads((copy / "manifest.json").read_text())
    entry = {"size_bytes": len(templates), "sha256": sha256(templates).hexdigest()}
    manifest["files"]["config/prompts.json"] = entry
    content = json.dumps(manifest).encode()
    replace("manifest.json", content)
    replace("manifest.sha256", f"{sha256(content).hexdigest()}  manifest.json\n".encode())
    return copy


def test_chains_that_pass(cli: Cli, bundle: Path) -> None:
    outcome = cli("verify", bundle, *TARGET, "--pipeline")
    assert outcome.code == 0, outcome
    checks, functions, chains, verdict = outcome.out.split("\n\n")
    assert "tensorrt-orin" in checks
    assert "tensorrt-orin  vae_decoder" in functions
    assert "pipeline" not in functions
    lines = {line.split()[2]: line for line in chains.splitlines()[2:]}
    assert set(lines) == {"table", "houses", "cube", "cat", "market", "recolour"}
    assert all(line.endswith("passed") for line in lines.values())
    assert "24 tokens the same" in lines["table"]
    assert "1: 1" in lines["cube"]
    assert " → 20: " in lines["cube"]
    assert "SSIM 1.0000" in lines["cube"]
    assert verdict.startswith("passed: ")


def test_a_chain_that_fails(cli: Cli, spoilt: Path, tmp_path: Path) -> None:
    plain = cli("verify", spoilt, *TARGET)
    assert plain.code == 1
    assert "config/prompts.json: is not what the golden was recorded under" in plain.out
    junit = tmp_path / "report.xml"
    outcome = cli("verify", spoilt, *TARGET, "--pipeline", "--json", "--junit", junit)
    assert outcome.code == 1
    report = json.loads(outcome.out)
    failed = [row for row in report["rows"] if row["status"] == "failed"]
    assert {row["component"] for row in failed if row["function"]} == {"pipeline"}
    assert {"generate", "edit", "describe"} == {row["function"] for row in failed if row["function"]}
    assert len(report["drift"]) == 4
    assert "Do not ship it" in outcome.err
    assert "hidden_states" in junit.read_text()


def test_chains_that_cannot_be_run_here(cli: Cli, bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unavailable(*_: object) -> None:
        raise MissingToolError("no runtime here; pip install one")

    monkeypatch.setattr(OnnxBackend, "open", unavailable)
    outcome = cli("verify", bundle, *TARGET, "--pipeline")
    assert outcome.code == 3
    assert "not_run" in outcome.out
    assert "passed" not in outcome.out.split("\n\n")[2].replace("  passed  ", "")
