"""The command line in this process, and the material that it works on."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest
from cli_harness import Cli, Outcome, TargetFile

from mobile_o_export.cli import console
from mobile_o_export.cli import main as cli_main
from mobile_o_export.export import export_bundle, record_golden
from mobile_o_export.resources import shipped
from mobile_o_export.targets import load_targets

PROMPTS = """
[[generate]]
name = "short"
prompt = "a house"
steps = 1

[[generate]]
name = "long"
prompt = "{long}"
steps = 1

[[describe]]
name = "what"
image = "{images}/still-life.png"
question = "What?"
tokens = 2
"""


@pytest.fixture
def cli(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Cli:
    """Runs main() here: ``cli("plan", folder, "--target", "litert-cpu")``.

    On stderr is only what does not depend on how fast this machine is: no phrase for being slow.
    """
    monkeypatch.setattr(console, "LINE_SECONDS", 3600.0)

    def run(*arguments: object) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["mobile-o-export", *map(str, arguments)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli_main.main()
        assert isinstance(ended.value.code, int)
        return Outcome(ended.value.code, *capfd.readouterr())

    return run


@pytest.fixture
def checkpoint(reference_folder: Path, tmp_path: Path) -> Path:
    """A copy of the fixture checkpoint, to be damaged."""
    return Path(shutil.copytree(reference_folder, tmp_path / "checkpoint"))


@pytest.fixture(scope="session")
def golden(reference_checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As small as it can be: a case for every graph of the MCP."""
    folder = tmp_path_factory.mktemp("golden")
    prompts = tmp_path_factory.mktemp("prompts") / "prompts.toml"
    prompts.write_text(PROMPTS.format(long="a house by the sea, " * 20, images=shipped("golden")))
    record_golden(reference_checkpoint, prompts, folder, lambda *_: None)
    return folder


@pytest.fixture(scope="session")
def small_bundle(reference_checkpoint, golden: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One component on one target; for reading only."""
    out = tmp_path_factory.mktemp("small") / "bundle"
    targets = load_targets(["tensorrt-orin"])
    return export_bundle(reference_checkpoint, targets, ["mcp"], golden, out, "1", lambda *_: None).bundle


@pytest.fixture
def damaged(small_bundle: Path, tmp_path: Path) -> Path:
    """A copy of the bundle, to be damaged."""
    return Path(shutil.copytree(small_bundle, tmp_path / "bundle"))


@pytest.fixture
def target_file(tmp_path: Path) -> TargetFile:
    return TargetFile(tmp_path)
