"""``cache show``, ``prune`` and ``verify``, the options of ``export``, and where the cache is."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from cli_harness import Cli

from mobile_o_export.backends.onnx.backend import OnnxBackend
from mobile_o_export.cache.store import MARKER, Store
from mobile_o_export.cli.caching import Chosen, chosen_cache
from mobile_o_export.errors import UsageError

PART = ("--component", "mcp", "--target", "tensorrt-orin")


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """A cache with an entry of each of two kinds."""
    store = Store.open(tmp_path / "cache")
    store.put("lowered", {"a": 1}, {"files/model.bin": bytes(3_000_000)})
    store.put("verdict", {"a": 1}, {"rows.json": b"{}"})
    return store.root


def damage(cache: Path) -> Path:
    (path,) = cache.rglob("model.bin")
    with path.open("r+b") as file:
        file.write(b"\x01")
    return path


def test_show(cli: Cli, cache: Path) -> None:
    outcome = cli("cache", "show", "--cache", cache)
    assert (outcome.code, outcome.err) == (0, "")
    assert "\nlowered        1  3.0 MB  " in outcome.out
    assert outcome.out.endswith(f"\n3.0 MB of 20.00 GB\ncache: {cache}\n")
    told = json.loads(cli("cache", "show", "--cache", cache, "--json").out)
    assert (told["schema"], told["folder"], told["limit_bytes"]) == (1, str(cache), 20 * 10**9)
    assert [(row["kind"], row["entries"], row["unusable"]) for row in told["rows"]] == [
        ("lowered", 1, 0),
        ("verdict", 1, 0),
    ]
    damaged = next(cache.glob("verdict/*/*/entry.json"))
    damaged.write_text("{")
    assert "1 unusable" in cli("cache", "show", "--cache", cache).out


def test_a_cache_that_is_not_there_yet_is_empty(cli: Cli, tmp_path: Path) -> None:
    outcome = cli("cache", "show", "--cache", tmp_path / "new")
    assert (outcome.code, outcome.err) == (0, "")
    assert outcome.out.endswith(f"\n0.0 MB of 20.00 GB\ncache: {tmp_path / 'new'}\n")
    assert cli("cache", "prune", "--cache", tmp_path / "new").out.startswith("removed 0 entries")
    assert cli("cache", "verify", "--cache", tmp_path / "new").code == 0
    assert not (tmp_path / "new").exists()


def test_prune(cli: Cli, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cli("cache", "prune", "--cache", cache).out.startswith("removed 0 entries, 0.0 MB; 3.0 MB left")
    assert cli("cache", "prune", "--cache", cache, "--older-than", 1).out.startswith("removed 0 entries")
    (index,) = cache.glob("verdict/*/*/entry.json")
    os.utime(index, (10**9, 10**9))
    assert cli("cache", "prune", "--cache", cache, "--older-than", 1).out.startswith("removed 1 entries")
    monkeypatch.setenv("MOBILE_O_EXPORT_CACHE_LIMIT", "1MB")
    assert cli("cache", "prune", "--cache", cache).out.startswith("removed 1 entries, 3.0 MB; 0.0 MB left")
    assert [path.name for path in cache.rglob("*") if path.is_file()] == [MARKER]


def test_verify_reads_every_byte(cli: Cli, cache: Path) -> None:
    outcome = cli("cache", "verify", "--cache", cache)
    assert (outcome.code, outcome.err) == (0, "")
    assert outcome.out == f"2 entries, 3.0 MB: digests compared\ncache: {cache}\n"
    path = damage(cache)
    outcome = cli("cache", "verify", "--cache", cache)
    assert outcome.code == 1
    assert outcome.out.startswith(f"{path}: is not what was stored in the cache.\n2 entries, ")
    assert outcome.err == f"error: {cache}: 1 entries were not as they should be; they are removed.\n"
    assert cli("cache", "verify", "--cache", cache).out.startswith("1 entries")


def test_verify_notices_files_that_were_added(cli: Cli, cache: Path) -> None:
    (index,) = cache.glob("verdict/*/*/entry.json")
    index.with_name("more.json").touch()
    assert "more.json: is no file of this entry" in cli("cache", "verify", "--cache", cache).out


def test_verify_against_a_checkpoint_that_was_never_exported(
    cli: Cli, cache: Path, reference_folder: Path
) -> None:
    outcome = cli("cache", "verify", "--cache", cache, "--checkpoint", reference_folder)
    assert outcome.code == 2
    assert "holds no component of this checkpoint that this version made on this machine" in outcome.err


@pytest.mark.parametrize("command", ["show", "prune", "verify"])
def test_caches_that_are_none(cli: Cli, cache: Path, tmp_path: Path, command: str) -> None:
    (tmp_path / "file").touch()
    cli("cache", command, "--cache", tmp_path / "file").refused("file: is no folder")
    cli("cache", command, "--cache", tmp_path).refused("holds cache and is no cache. Choose a folder that is")
    (cache / MARKER).write_text('{"schema_version": 2}')
    cli("cache", command, "--cache", cache).refused("was written by a newer version (layout 2")
    (cache / MARKER).write_text("{")
    cli("cache", command, "--cache", cache).refused("cache.json")
    # conftest.py has switched it off for all tests.
    cli("cache", command).refused("MOBILE_O_EXPORT_CACHE says that there is no cache. Give one with --cache.")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("prune", "--max-size", "lots"), "--max-size 'lots' is no size. Write 900MB"),
        (("prune", "--older-than", "-1"), "should be greater than or equal to 0"),
        (("prune", "--older-than", "soon"), "should be a valid number"),
        (("verify", "--share", "0.5"), "--lora and --share go with --checkpoint"),
        (("verify", "--checkpoint", ".", "--share", "2"), "should be less than or equal to 1"),
        (("verify", "--checkpoint", "nowhere"), "nowhere"),
    ],
)
def test_wrong_usage(cli: Cli, cache: Path, arguments: tuple[str, ...], message: str) -> None:
    cli("cache", *arguments, "--cache", cache).refused(message)


def test_wrong_options_of_an_export(
    cli: Cli, cache: Path, reference_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "bundle"
    arguments = ("export", reference_folder, *PART, "--out", out)
    cli(*arguments, "--cache", cache, "--no-cache").refused("--cache and --no-cache contradict each other")
    cli(*arguments, "--cache", tmp_path).refused("holds cache and is no cache")
    cli(*arguments, "--cache", out / "cache").refused("the cache would lie in the bundle. Choose another")
    monkeypatch.setenv("MOBILE_O_EXPORT_CACHE_LIMIT", "plenty")
    cli(*arguments, "--cache", cache).refused("MOBILE_O_EXPORT_CACHE_LIMIT: 'plenty' is no size")
    assert not out.exists()


@pytest.mark.parametrize(
    ("content", "said"),
    [('{"schema_version": 2}', "was written by a newer version"), ("{", "cache.json: ")],
    ids=["newer", "damaged"],
)
def test_an_export_goes_on_without_a_cache_that_it_cannot_use(
    cli: Cli, reference_folder: Path, golden: Path, cache: Path, tmp_path: Path, content: str, said: str
) -> None:
    (cache / MARKER).write_text(content)
    before = sorted(cache.rglob("*"))
    arguments = ("export", reference_folder, *PART, "--golden", golden, "--out", tmp_path / "bundle")
    outcome = cli(*arguments, "--cache", cache)
    assert outcome.code == 0
    assert said in outcome.err
    assert "This export goes on without it" in outcome.err
    assert sorted(cache.rglob("*")) == before


def test_an_export_and_its_repetition(
    cli: Cli, reference_folder: Path, golden: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "cache"
    monkeypatch.setenv("MOBILE_O_EXPORT_CACHE", str(folder))
    arguments = ("export", reference_folder, *PART, "--golden", golden)
    first = cli(*arguments, "--out", tmp_path / "first")
    assert first.code == 0
    assert "from the cache" not in first.err
    assert "from cache" not in first.out
    monkeypatch.setattr(OnnxBackend, "lower", lambda *_: pytest.fail("lowered again"))
    second = cli(*arguments, "--out", tmp_path / "second")
    assert second.code == 0
    assert "tensorrt-orin mcp: lowered, from the cache, 0.1 MB" in second.err
    assert "tensorrt-orin mcp: verified, passed, from the cache" in second.err
    assert second.out.splitlines()[2].split() == [
        *("tensorrt-orin", "mcp", "0.1", "MB", "from", "cache", "from", "cache")
    ]
    assert cli("verify", tmp_path / "second").code == 0
    # Nothing was stored, so that nothing is pruned; what is stored next is not more than the limit.
    monkeypatch.setenv("MOBILE_O_EXPORT_CACHE_LIMIT", "1")
    cli(*arguments, "--out", tmp_path / "third")
    assert json.loads(cli("cache", "show", "--json").out)["size_bytes"] > 1
    monkeypatch.undo()
    monkeypatch.setenv("MOBILE_O_EXPORT_CACHE_LIMIT", "1")
    again = cli(
        *arguments, "--bundle-version", 2, "--out", tmp_path / "fourth", "--cache", tmp_path / "small"
    )
    assert again.code == 0
    assert "cache: removed lowered " in again.err
    assert list(Store.open(tmp_path / "small").kept()) == []


def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("MOBILE_O_EXPORT_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr("sys.platform", "linux")
    assert chosen_cache(None) == Chosen(tmp_path / ".cache" / "mobile-o-export")
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert chosen_cache(None) == Chosen(tmp_path / ".cache" / "mobile-o-export")
    monkeypatch.setenv("XDG_CACHE_HOME", "/var/xdg")
    assert chosen_cache(None) == Chosen(Path("/var/xdg/mobile-o-export"))
    assert chosen_cache("s3://bucket/cache") == Chosen(Path("/var/xdg/mobile-o-export"), "s3://bucket/cache")
    monkeypatch.setattr("sys.platform", "darwin")
    assert chosen_cache(None) == Chosen(tmp_path / "Library" / "Caches" / "mobile-o-export")
    monkeypatch.setenv("MOBILE_O_EXPORT_CACHE", "~/mine")
    assert chosen_cache(None) == Chosen(tmp_path / "mine")
    assert chosen_cache("given") == Chosen(Path("given"))
    assert chosen_cache("~/given") == Chosen(tmp_path / "given")
    monkeypatch.setenv("MOBILE_O_EXPORT_CACHE", "gs://bucket")
    assert chosen_cache(None) == Chosen(tmp_path / "Library" / "Caches" / "mobile-o-export", "gs://bucket")
    monkeypatch.setenv("MOBILE_O_EXPORT_CACHE", "off")
    assert chosen_cache(None) is None
    monkeypatch.delenv("MOBILE_O_EXPORT_CACHE")
    monkeypatch.setattr(Path, "home", _homeless)
    with pytest.raises(UsageError, match="no home folder to keep a cache in"):
        chosen_cache(None)


def _homeless() -> Path:
    raise RuntimeError("Could not determine home directory.")
