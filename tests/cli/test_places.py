"""Where results go: every way to spell a path, and every place where nothing can be written."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

import pytest
from cli_harness import Cli, TargetFile

from mobile_o_export import atomic, plan
from mobile_o_export.backends.onnx.backend import OnnxBackend
from mobile_o_export.errors import UsageError

PART = ("--component", "mcp", "--target", "tensorrt-orin")


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to be in, which is the home folder as well."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setenv("HOME", str(folder))
    return folder


@pytest.mark.parametrize(
    ("spelling", "place"),
    [
        ("ckpt", "ckpt"),
        ("./new/ckpt/", "new/ckpt"),
        ("new/../ckpt", "ckpt"),
        ("~/ckpt", "ckpt"),
        ("~nobody-of-that-name/ckpt", "~nobody-of-that-name/ckpt"),
        ("a folder/with spaces", "a folder/with spaces"),
        ("Größe/絵 🎨", "Größe/絵 🎨"),
        ("-dash", "-dash"),
        ("quote'\"$HOME", "quote'\"$HOME"),
    ],
)
def test_spellings(cli: Cli, here: Path, spelling: str, place: str) -> None:
    if ".." in spelling:
        (here / "new").mkdir()
    outcome = cli("init-checkpoint", "--", spelling)
    assert (outcome.code, outcome.err) == (0, "")
    assert (here / place / "model.safetensors").is_file()
    again = cli("inspect", "--", spelling)
    assert again.code == 0
    assert "random (init-checkpoint)" in again.out


@pytest.mark.parametrize("command", ["init-checkpoint", "golden record", "export"])
@pytest.mark.parametrize(
    ("out", "message"),
    [
        ("there", "there: exists already. Choose another folder, or delete this one first."),
        ("file", "file: exists already."),
        ("link", "link: exists already."),
        ("file/new", "file/new: cannot be made (Not a directory). Choose a folder that you may write to."),
        (".", "exists already"),
        ("", "exists already"),
        ("/", "exists already"),
        ("x" * 250, "File name too long"),
        ("x" * 300, "File name too long"),
    ],
)
def test_places_that_are_taken_or_impossible(
    cli: Cli, reference_folder: Path, golden: Path, here: Path, command: str, out: str, message: str
) -> None:
    (here / "there").mkdir()
    (here / "there" / "mine.txt").write_text("mine")
    (here / "file").write_text("mine")
    (here / "link").symlink_to("nowhere")
    arguments = {
        "init-checkpoint": [out],
        "golden record": [reference_folder, "--out", out],
        "export": [reference_folder, *PART, "--golden", golden, "--out", out],
    }[command]
    cli(*command.split(), *arguments).refused(message)
    assert names(here) == ["file", "link", "there"]
    assert (here / "there" / "mine.txt").read_text() == (here / "file").read_text() == "mine"


@pytest.mark.parametrize("command", ["init-checkpoint", "golden record", "export"])
def test_a_disk_that_is_too_small(
    cli: Cli, reference_folder: Path, golden: Path, here: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.setattr(atomic.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9, 10**6))
    out = here / "new" / "out"
    arguments = {
        "init-checkpoint": [out],
        "golden record": [reference_folder, "--out", out],
        "export": [reference_folder, *PART, "--golden", golden, "--out", out],
    }[command]
    cli(*command.split(), *arguments).refused(
        f"{out}: needs 0.", "and its disk has 0.00 GB free. Free some space or choose another disk."
    )
    assert names(here) == []


@pytest.mark.parametrize(
    "error",
    [OSError(errno.ENOSPC, "No space left on device"), RuntimeError("onnx: No space left on device")],
    ids=["errno", "text"],
)
def test_a_disk_that_fills_up(
    cli: Cli,
    reference_folder: Path,
    golden: Path,
    here: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
) -> None:
    def lower(self: object, request: object, checkpoint: object, folder: Path, progress: object) -> None:
        (folder / "half.onnx").write_bytes(b"half")
        raise error

    monkeypatch.setattr(OnnxBackend, "lower", lower)
    out = here / "new" / "bundle"
    outcome = cli("export", reference_folder, *PART, "--golden", golden, "--out", out)
    outcome.refused(f"{out}: the disk filled up while it was written; what was written is removed.")
    assert names(here) == []


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can mount a disk")
def test_a_disk_that_really_fills_up(
    cli: Cli, reference_folder: Path, golden: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = here / "disk"
    disk.mkdir()
    if os.system(f"mount -t tmpfs -o size=256k tmpfs '{disk}' 2>/dev/null"):
        pytest.skip("mounting is not allowed here")
    try:
        monkeypatch.setattr(plan, "GOLDEN_ROOM_BYTES", 0)
        monkeypatch.setattr(plan, "WORKING_COPIES", 0)
        outcome = cli("export", reference_folder, *PART, "--golden", golden, "--out", disk / "bundle")
        outcome.refused("the disk filled up while it was written; what was written is removed.")
        assert names(disk) == []
    finally:
        os.system(f"umount '{disk}'")


def test_an_interrupt_in_mid_export(
    cli: Cli, reference_folder: Path, golden: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lower(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(OnnxBackend, "lower", lower)
    outcome = cli("export", reference_folder, *PART, "--golden", golden, "--out", here / "new" / "bundle")
    assert (outcome.code, outcome.out) == (130, "")
    assert outcome.err.endswith("interrupted; nothing half-written was left behind\n")
    assert names(here) == []


@pytest.mark.parametrize("make", [Path.mkdir, Path.touch, lambda path: path.symlink_to("nowhere")])
def test_what_lies_where_a_failed_bundle_would_go_is_kept(
    cli: Cli, reference_folder: Path, golden: Path, here: Path, make: object
) -> None:
    make(here / "bundle.failed")
    arguments = ("export", reference_folder, *PART, "--golden", golden, "--out", "bundle")
    cli(*arguments).refused("bundle.failed: exists already and is no bundle")
    assert names(here) == ["bundle.failed"]


def test_goldens_that_do_not_fit(
    cli: Cli, checkpoint: Path, golden: Path, small_bundle: Path, here: Path
) -> None:
    def attempt(place: Path, message: str) -> None:
        cli("export", checkpoint, *PART, "--golden", place, "--out", "new/bundle").refused(message)
        assert not (here / "new").exists()

    attempt(here / "no", "no golden here (golden.json is missing). Make one with 'mobile-o-export golden rec")
    attempt(small_bundle, f"is a bundle. Give the golden in it, {small_bundle / 'golden'}.")
    copy = Path(shutil.copytree(golden, here / "copy"))
    with (copy / "tensors.safetensors").open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\x01")
    attempt(copy, "tensors.safetensors: missing or changed. Record the golden again.")
    config = checkpoint / "config.json"
    config.write_text(config.read_text().replace("{", '{"another": 1,', 1))
    attempt(golden, "recorded from another checkpoint (sha256:")


def test_nothing_to_export(cli: Cli, reference_folder: Path, target_file: TargetFile, here: Path) -> None:
    path = target_file(mcp='skip = "too small to matter"')
    arguments = ("export", reference_folder, "--target", path, "--component", "mcp", "--out", "bundle")
    cli(*arguments).refused(
        "nothing to export, everything chosen is skipped: mine, mcp: too small to matter."
    )
    assert names(here) == []


def test_results_inside_their_own_inputs(
    cli: Cli, checkpoint: Path, golden: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A checkpoint stays what it is; of a golden only its own files are copied."""
    before = cli("inspect", checkpoint).out
    copied = []

    def lower(self: object, request: object, place: object, folder: Path, progress: object) -> None:
        copied.extend(names(folder.parents[1] / "golden"))
        raise UsageError("far enough")

    monkeypatch.setattr(OnnxBackend, "lower", lower)
    inside = Path(shutil.copytree(golden, checkpoint / "golden"))
    arguments = ("export", checkpoint, *PART, "--golden", inside, "--out", inside / "bundle")
    cli(*arguments).refused("far enough")
    assert copied == names(inside) == ["golden.json", "tensors.safetensors"]
    assert cli("inspect", checkpoint).out == before
