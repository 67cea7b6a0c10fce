"""The command line in this process, and the material that it works on."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest
from cli_harness import Cli, Outcome, TargetFile
from shared_exports import SharedExports

from mobile_o_export.checkpoint import Checkpoint
from mobile_o_export.cli import console
from mobile_o_export.cli import main as cli_main
from mobile_o_export.golden import Golden
from mobile_o_export.targets import load_targets


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
def golden(small_golden: Golden) -> Path:
    """The folder of the smallest golden."""
    return small_golden.path


@pytest.fixture(scope="session")
def small_bundle(reference_checkpoint: Checkpoint, small_golden: Golden, shared: SharedExports) -> Path:
    """One component on one target; for reading only."""
    targets = load_targets(["tensorrt-orin"])
    return shared.export(reference_checkpoint, targets, ["mcp"], small_golden).bundle


@pytest.fixture
def damaged(small_bundle: Path, tmp_path: Path) -> Path:
    """A copy of the bundle, to be damaged."""
    return Path(shutil.copytree(small_bundle, tmp_path / "bundle"))


@pytest.fixture
def target_file(tmp_path: Path) -> TargetFile:
    return TargetFile(tmp_path)
