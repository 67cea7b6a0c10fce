"""A cache's copy for several machines: what one stored the other finds, and whatever fails does no harm."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest

from mobile_o_export.cache.entry import INDEX, Entry
from mobile_o_export.cache.layout import MARKER, CacheError
from mobile_o_export.cache.mirror import Mirror
from mobile_o_export.cache.store import Store
from mobile_o_export.errors import MissingToolError, UsageError

PARTS = {"checkpoint": "a"}
FILES = {"files/model.bin": b"weights" * 100, "files/in/side.txt": b"side"}

Machine = Callable[[str], Store]


@pytest.fixture(params=["memory", "file"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A place with folders, and one without; empty."""
    yield f"file://{tmp_path}/common" if request.param == "file" else "memory://common/cache"
    fsspec.filesystem("memory").store.clear()


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def machine(url: str, tmp_path: Path, said: list[str]) -> Machine:
    """A machine's cache, in a folder of its own, with the copy at the URL."""
    return lambda name: Store.open(tmp_path / name, said.append, Mirror(url))


def put(store: Store) -> None:
    store.put("lowered", PARTS, FILES)


def get(store: Store) -> dict[str, bytes] | None:
    return store.get("lowered", PARTS, lambda entry: {name: entry.read(name) for name in entry.index.files})


def common(url: str, name: str) -> tuple[Any, str]:
    """The file system of the copy, and the path of the one file there that ends in ``name``."""
    system, base = fsspec.core.url_to_fs(url)
    (path,) = [path for path in system.find(base) if path.endswith(name)]
    return system, path


def test_what_one_machine_stored_the_other_finds(machine: Machine, said: list[str], tmp_path: Path) -> None:
    one, other = machine("one"), machine("other")
    assert get(other) is None
    put(one)
    assert get(other) == FILES
    assert one.used == other.used
    assert (one.keeps, other.keeps, said) == (True, True, [])
    # In its own folder from now on, whoever else is there.
    assert get(Store.open(tmp_path / "other")) == FILES
    (name,) = other.used
    assert machine("third").has(name)
    assert not machine("third").has(name.replace("lowered", "verdict"))


def test_what_a_machine_had_before_is_sent_when_it_is_used(machine: Machine, tmp_path: Path) -> None:
    put(Store.open(tmp_path / "one"))
    assert get(machine("other")) is None
    assert get(machine("one")) == FILES
    assert get(machine("other")) == FILES


def test_what_was_not_sent_to_its_end_is_not_there(machine: Machine, url: str) -> None:
    put(machine("one"))
    system, index = common(url, INDEX)
    system.rm(index)
    assert get(machine("other")) is None
    put(machine("other"))
    assert get(machine("third")) == FILES


def test_what_is_damaged_is_told_and_made_again(machine: Machine, url: str, said: list[str]) -> None:
    put(machine("one"))
    system, path = common(url, "model.bin")
    system.pipe_file(path, b"weight5" * 100)
    other = machine("other")
    assert get(other) is None
    assert "is not what was stored in the cache" in said[0]
    put(other)
    assert get(machine("third")) == FILES
    assert other.keeps


@pytest.mark.parametrize("content", [b"{", b"[]", b'{"schema_version": 1}', b'{"schema_version": 99}'])
def test_an_index_that_is_none_is_no_entry(
    machine: Machine, url: str, content: bytes, tmp_path: Path
) -> None:
    put(machine("one"))
    system, path = common(url, INDEX)
    system.pipe_file(path, content)
    assert get(machine("other")) is None
    assert not list((tmp_path / "other").rglob("*.bin"))
    assert not list((tmp_path / "other").rglob("*.partial"))


def test_no_file_of_an_entry_lies_outside_it(machine: Machine, url: str, tmp_path: Path) -> None:
    put(machine("one"))
    system, path = common(url, INDEX)
    index = json.loads(system.cat_file(path))
    index["files"]["../../../outside.txt"] = index["files"]["files/model.bin"]
    system.pipe_file(path, json.dumps(index).encode())
    assert get(machine("other")) is None
    assert not (tmp_path / "other" / "outside.txt").exists()


def test_a_copy_of_a_newer_version_is_refused(machine: Machine, url: str) -> None:
    put(machine("one"))
    system, path = common(url, MARKER)
    system.pipe_file(path, b'{"schema_version": 2}')
    with pytest.raises(CacheError, match="written by a newer version"):
        machine("other")
    system.pipe_file(path, b"pictures")
    with pytest.raises(CacheError, match=r"not one of a cache\. Choose another place"):
        machine("other")


@pytest.mark.parametrize("failing", ["cat_file", "get_file", "put_file", "exists"])
def test_a_copy_that_fails_is_told_once_and_left_alone(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, said: list[str], failing: str
) -> None:
    put(machine("one"))
    store = machine("one" if failing == "exists" else "other")

    def fails(*_: object, **__: object) -> None:
        raise TimeoutError("no answer")

    monkeypatch.setattr(type(store.mirror._system), failing, fails)  # type: ignore[union-attr]
    assert get(store) == (FILES if failing in ("put_file", "exists") else None)
    store.put("lowered", {"checkpoint": "b"}, FILES)
    store.put("lowered", {"checkpoint": "c"}, FILES)
    assert store.stored == 2
    assert not store.keeps
    (told,) = said
    assert "(no answer). Only " in told
    assert len(list(store.kept())) >= 2


def test_urls_that_lead_nowhere() -> None:
    with pytest.raises(UsageError, match="Protocol not known: nowhere"):
        Mirror("nowhere://bucket")
    with pytest.raises(UsageError, match="names no folder or bucket"):
        Mirror("memory://")


def test_a_package_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "adlfs", None)
    with pytest.raises(
        MissingToolError, match=r"abfs://cache/place: Install adlfs .* 'mobile-o-export\[s3\]'"
    ):
        Mirror("abfs://cache/place")


def test_passwords_are_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fsspec.core, "url_to_fs", lambda *_, **__: (None, "/cache"))
    assert str(Mirror("sftp://user:secret@host:22/cache")) == "sftp://host:22/cache"


# --- an object store ---

ON_S3 = """
import sys
from pathlib import Path
from mobile_o_export.cache.mirror import Mirror
from mobile_o_export.cache.store import Store
root, url, what = sys.argv[1:]
store = Store.open(Path(root), print, Mirror(url))
if what == "put":
    store.put("lowered", {"checkpoint": "a"}, {"files/model.bin": b"weights" * 2_000_000})
size = store.get("lowered", {"checkpoint": "a"}, lambda entry: len(entry.read("files/model.bin")))
print(size, store.keeps)
"""


@pytest.fixture
def s3() -> Iterator[dict[str, str]]:
    """The environment in which s3:// is a server on this machine."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            break
        except OSError:
            assert server.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
    yield {
        **os.environ,
        "AWS_ACCESS_KEY_ID": "of-a-test",
        "AWS_SECRET_ACCESS_KEY": "of-a-test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
    }
    server.send_signal(signal.SIGTERM)
    server.wait()


@pytest.mark.slow
def test_machines_share_an_object_store(s3: dict[str, str], tmp_path: Path) -> None:
    def run(*arguments: str) -> tuple[str, str]:
        done = subprocess.run(
            [sys.executable, "-c", *arguments], env=s3, capture_output=True, text=True, check=False
        )
        return done.stdout.strip(), done.stderr.strip()

    bucket = "import boto3; boto3.client('s3').create_bucket(Bucket='common')"
    assert run(bucket) == ("", "")
    # Larger than what is sent in one piece.
    assert run(ON_S3, str(tmp_path / "one"), "s3://common/cache", "put") == ("14000000 True", "")
    assert run(ON_S3, str(tmp_path / "other"), "s3://common/cache", "get") == ("14000000 True", "")
    assert Entry.open(next((tmp_path / "other" / "lowered").glob("*/*"))) is not None
    # A bucket that is not there is not made: its owner would pay for it.
    out, _ = run(ON_S3, str(tmp_path / "one"), "s3://mistyped/cache", "get")
    assert "s3://mistyped/cache: cannot be written" in out
    assert out.endswith("14000000 False")
    out, _ = run("import boto3; print([one['Name'] for one in boto3.client('s3').list_buckets()['Buckets']])")
    assert out == "['common']"
