"""``export --shard`` and ``--executor``: what contradicts, and what a share says."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from cli_harness import Cli

from mobile_o_export.cache.store import Store

ONE = ("--target", "tensorrt-orin", "--component", "mcp")


@pytest.mark.parametrize("text", ["0/2", "3/2", "1/0", "1", "one/two", "1/2/3", "-1/2", "1/1001", " 1/2"])
def test_what_is_no_share(cli: Cli, reference_folder: Path, text: str) -> None:
    cli("export", reference_folder, *ONE, "--shard", text).refused("is no share. Write 1/3")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "Missing option '--out'"),
        (("--executor", "ray"), "Missing option '--out'"),
        (("--shard", "1/2", "--out", "x"), "a share makes no bundle: leave out --out"),
        (("--shard", "1/2", "--executor", "ray"), "two ways to one end"),
        (("--out", "x", "--executor", "ray", "--jobs", "2"), "--jobs is of this machine"),
        (("--out", "x", "--executor", "dask"), "--executor"),
        (("--shard", "1/2", "--no-cache"), "--shard keeps what it makes in the cache"),
        (
            ("--out", "x", "--executor", "ray", "--no-cache"),
            "--executor ray keeps what it makes in the cache",
        ),
        (("--shard", "1/2", "--no-cache", "--cache", "y"), "--shard keeps what it makes in the cache"),
        (("--shard", "1/2", "--cache", "nowhere://x"), "nowhere://x: cannot be a cache"),
    ],
)
def test_contradictions(
    cli: Cli,
    reference_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: tuple[str, ...],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    cli("export", reference_folder, *ONE, *options).refused(message)
    assert list(tmp_path.iterdir()) == []


def test_a_share_needs_a_cache_that_can_be_used(cli: Cli, reference_folder: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    cache.mkdir()
    (cache / "cache.json").write_text('{"schema_version": 99}')
    cli("export", reference_folder, *ONE, "--shard", "1/2", "--cache", cache).refused("by a newer version")


def test_ray_that_is_not_installed(
    cli: Cli, reference_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    given = ("export", reference_folder, *ONE, "--executor", "ray", "--cache", tmp_path / "cache")
    cli(*given, "--out", tmp_path / "bundle").refused("--executor ray needs Ray: pip install", code=3)
    assert not (tmp_path / "bundle").exists()


def test_tuning_on_a_cluster_needs_a_golden(cli: Cli, reference_folder: Path, tmp_path: Path) -> None:
    given = ("tune", reference_folder, "--target", "coreml-ane", "--out", tmp_path / "recipe.toml")
    cli(*given, "--min-snr", "40", "--executor", "ray").refused("--executor ray needs a --golden")
    cli(*given, "--min-snr", "40", "--executor", "ray", "--jobs", "2").refused("--jobs is of this machine")


@pytest.mark.slow
def test_shares_and_the_export_after_them(
    cli: Cli, reference_folder: Path, golden: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By two machines: each has a folder of its own, and both have the copy."""
    given = ("export", reference_folder, *ONE, "--golden", golden, "--cache", f"file://{tmp_path}/common")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "one"))
    monkeypatch.delenv("MOBILE_O_EXPORT_CACHE", raising=False)
    share = cli(*given, "--shard", "1/1")
    assert share.code == 0, share.err
    assert "share 1/1: 1 of 1 components; chains: tensorrt-orin" in share.out
    assert share.out.endswith(f"cache: file://{tmp_path}/common\n")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "other"))
    empty = cli(*given, "--shard", "2/2")
    assert (empty.code, "share 2/2: 0 of 1 components" in empty.out) == (0, True)
    assert list(Store.open(tmp_path / "other" / "mobile-o-export").kept()) == []
    done = cli(*given, "--out", tmp_path / "bundle")
    assert done.code == 0, done.err
    assert done.err.count("from the cache") == 2


def test_a_bundle_that_is_there_is_found_before_a_cluster_works(
    cli: Cli, reference_folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "bundle").mkdir()
    given = ("export", reference_folder, *ONE, "--executor", "ray", "--cache", tmp_path / "cache")
    outcome = cli(*given, "--out", tmp_path / "bundle")
    outcome.refused("exists already")
    assert "ray: " not in outcome.err
