"""Files that change while a command reads them, and what commands leave behind."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from cli_harness import Cli, finish, start

from mobile_o_export import export
from mobile_o_export.checkpoint import Checkpoint
from mobile_o_export.errors import CheckpointError


def append(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"\n")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda folder: append(folder / "tokenizer.json"), "tokenizer.json was changed"),
        (lambda folder: (folder / "LICENSE").touch(), "LICENSE has appeared"),
    ],
)
def test_a_checkpoint_that_changes_is_not_exported(
    cli: Cli,
    checkpoint: Path,
    golden: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    change: Callable[[Path], object],
    said: str,
) -> None:
    # Between hashing and the end: as late as it can be.
    lowered = export.write_manifest
    monkeypatch.setattr(export, "write_manifest", lambda *given: (lowered(*given), change(checkpoint)))
    out = tmp_path / "new" / "bundle"
    arguments = ("--component", "mcp", "--target", "tensorrt-orin", "--golden", golden, "--out", out)
    outcome = cli("export", checkpoint, *arguments)
    outcome.refused("error: changed while it was read: ", f"{checkpoint}/{said}", "run the command again")
    assert not out.parent.exists()


def test_what_else_lies_in_a_checkpoint_may_change(checkpoint: Path) -> None:
    opened = Checkpoint.open(checkpoint)
    (checkpoint / "trainer.log").touch()
    opened.require_unchanged()
    append(checkpoint / "config.json")
    with pytest.raises(CheckpointError, match=r"config\.json was changed"):
        opened.require_unchanged()


def test_a_pipe_in_a_checkpoint_keeps_nobody_waiting(cli: Cli, checkpoint: Path) -> None:
    for name in ("model.safetensors", "config.json"):
        (checkpoint / name).unlink()
        os.mkfifo(checkpoint / name)
        cli("inspect", checkpoint).refused(name)
    cli("inspect", checkpoint).refused("config.json: is not a regular file")


def test_a_full_disk_leaves_the_former_junit_report(
    cli: Cli, small_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    junit = tmp_path / "report.xml"
    junit.write_text("the former")
    write = Path.write_text

    def full(path: Path, text: str, **options: str) -> int:
        if path.name.endswith(".partial"):
            write(path, text[:10], **options)
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        return write(path, text, **options)

    monkeypatch.setattr(Path, "write_text", full)
    cli("verify", small_bundle, "--junit", junit).refused(f"{junit}: the disk filled up")
    assert junit.read_text() == "the former"
    assert list(tmp_path.iterdir()) == [junit]


@pytest.mark.slow
def test_no_folder_is_left_among_temporary_files(reference_folder: Path, tmp_path: Path) -> None:
    temporary, out = tmp_path / "temporary", tmp_path / "a.png"
    temporary.mkdir()
    environment = {key: value for key, value in os.environ.items() if key != "TORCHINDUCTOR_CACHE_DIR"}
    environment |= {"TMPDIR": str(temporary), "PYTHONPATH": str(Path(__file__).parents[2])}
    arguments = ("--target", "torch", "--checkpoint", reference_folder, "--prompt", "a", "--steps", 1)
    outcome = finish(start("generate", *arguments, "--out", out, env=environment))
    assert outcome.code == 0, outcome
    assert list(temporary.iterdir()) == []


def test_a_bundle_whose_path_is_no_text(cli: Cli, damaged: Path, tmp_path: Path) -> None:
    """The one runtime here that takes no such path is said to be missing; nothing is said of the bundle."""
    place = tmp_path / os.fsdecode(b"b\xff")
    damaged.rename(place)
    outcome = cli("verify", place)
    assert outcome.code == 3
    assert r"ONNX Runtime takes no path that is not UTF-8, and " in outcome.out
    assert r"b\udcff/tensorrt-orin/mcp/project.onnx is none; move the bundle to another folder" in outcome.out
    assert "Do not ship it" not in outcome.err
