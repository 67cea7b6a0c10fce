"""The folder of results: what is stored is read, and whatever is wrong with it is told and does no harm."""

from __future__ import annotations

import json
import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from mobile_o_export import atomic
from mobile_o_export.cache.entry import INDEX, Entry
from mobile_o_export.cache.layout import MARKER, CacheError
from mobile_o_export.cache.store import Store
from mobile_o_export.errors import UsageError

PARTS = {"checkpoint": "a", "options": {"x": 1, "y": [1.5, None]}}
FILES = {"files/model.bin": b"weights" * 100, "files/in/side.txt": b"side", "graphs.json": b"{}"}


class Said(list[str]):
    def __call__(self, phrase: str) -> None:
        self.append(phrase)


@pytest.fixture
def said() -> Said:
    return Said()


@pytest.fixture
def store(tmp_path: Path, said: Said) -> Store:
    return Store.open(tmp_path / "cache", said)


def put(store: Store, **changes: object) -> dict[str, object]:
    parts = {**PARTS, **changes}
    store.put("lowered", parts, FILES)
    return parts


def everything(entry: Entry) -> dict[str, bytes]:
    return {name: entry.read(name) for name in entry.index.files}


def the_entry(store: Store) -> Path:
    (kept,) = store.kept()
    return kept.folder


def test_what_is_stored_is_read(store: Store, said: Said, tmp_path: Path) -> None:
    assert store.get("lowered", PARTS, everything) is None
    given = tmp_path / "given"
    given.write_bytes(b"weights" * 100)
    store.put("lowered", PARTS, {**FILES, "files/model.bin": given})
    given.write_bytes(b"changed afterwards")
    again = Store.open(store.root, said)
    reordered = {"options": {"y": [1.5, None], "x": 1}, "checkpoint": "a"}
    assert again.get("lowered", reordered, everything) == FILES
    copied = again.get("lowered", PARTS, lambda entry: entry.copy("files", tmp_path / "copy"))
    assert {name: (tmp_path / "copy" / name).read_bytes() for name in copied or ()} == {
        "model.bin": FILES["files/model.bin"],
        "in/side.txt": b"side",
    }
    (tmp_path / "copy" / "model.bin").write_bytes(b"a bundle is edited")
    assert again.get("lowered", PARTS, everything) == FILES
    assert (store.stored, again.stored, said) == (1, 0, [])


@pytest.mark.parametrize(
    "others",
    [
        {"checkpoint": "b"},
        {"options": {"x": 1.0, "y": [1.5, None]}},
        {"options": {"x": True, "y": [1.5, None]}},
        {"options": {"x": 1, "y": [1.5]}},
        {"options": {"x": "1", "y": [1.5, None]}},
        {"further": None},
    ],
)
def test_another_part_is_another_result(store: Store, others: dict[str, object]) -> None:
    put(store)
    assert store.get("lowered", {**PARTS, **others}, everything) is None
    assert store.get("verdict", PARTS, everything) is None


def rewrite(path: Path, **changes: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def link(path: Path) -> None:
    path.rename(path.with_name("elsewhere"))
    path.symlink_to("elsewhere")


DAMAGE: dict[str, Callable[[Path], object]] = {
    "a flipped bit": lambda entry: flip(entry / "files" / "model.bin"),
    "a truncated file": lambda entry: os.truncate(entry / "files" / "model.bin", 10),
    "an emptied file": lambda entry: os.truncate(entry / "files" / "model.bin", 0),
    "a missing file": lambda entry: (entry / "files" / "in" / "side.txt").unlink(),
    "a missing folder": lambda entry: shutil.rmtree(entry / "files"),
    "a link": lambda entry: link(entry / "files" / "model.bin"),
    "a pipe": lambda entry: ((entry / "graphs.json").unlink(), os.mkfifo(entry / "graphs.json")),
    "no index": lambda entry: (entry / INDEX).unlink(),
    "an empty index": lambda entry: os.truncate(entry / INDEX, 0),
    "half an index": lambda entry: os.truncate(entry / INDEX, 60),
    "an index of other files": lambda entry: rewrite(entry / INDEX, files={}),
    "an index of other parts": lambda entry: rewrite(entry / INDEX, parts={"checkpoint": "b"}),
    "an index of another kind": lambda entry: rewrite(entry / INDEX, kind="verdict"),
    "an index with another key": lambda entry: rewrite(entry / INDEX, more=1),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_entry_is_told_and_made_again(
    store: Store, said: Said, tmp_path: Path, damage: str
) -> None:
    put(store)
    DAMAGE[damage](the_entry(store))

    def take(entry: Entry) -> dict[str, bytes]:
        entry.copy("files", tmp_path / "copy")
        return {name: entry.read(name) for name in FILES}

    assert store.get("lowered", PARTS, take) is None
    assert len(said) == 1
    assert "The entry is removed, and made again" in said[0]
    assert list(store.kept()) == []
    shutil.rmtree(tmp_path / "copy", ignore_errors=True)
    put(store)
    assert store.get("lowered", PARTS, take) == FILES
    assert len(said) == 1


def test_what_could_not_be_copied_whole_is_not_there(store: Store, tmp_path: Path) -> None:
    put(store)
    flip(the_entry(store) / "files" / "model.bin")
    assert store.get("lowered", PARTS, lambda entry: entry.copy("files", tmp_path / "copy")) is None
    assert not (tmp_path / "copy").exists()


def test_an_entry_under_another_key_is_not_used(store: Store, said: Said) -> None:
    put(store)
    one = the_entry(store)
    put(store, checkpoint="b")
    (other,) = [kept.folder for kept in store.kept() if kept.folder != one]
    shutil.rmtree(other)
    shutil.copytree(one, other)
    assert store.get("lowered", {**PARTS, "checkpoint": "b"}, everything) is None
    assert "is of another result" in said[0]
    assert store.get("lowered", PARTS, everything) == FILES


def test_an_entry_of_a_newer_version_is_left_alone(store: Store, said: Said) -> None:
    put(store)
    entry = the_entry(store)
    rewrite(entry / INDEX, schema_version=2, more="of what is not known yet")
    before = (entry / INDEX).read_bytes()
    assert store.get("lowered", PARTS, everything) is None
    put(store)
    assert said == [f"{entry}: was written by a newer version and is not used"]
    assert (entry / INDEX).read_bytes() == before


def test_a_cache_of_a_newer_version_is_refused(store: Store) -> None:
    put(store)
    rewrite(store.root / MARKER, schema_version=2)
    with pytest.raises(CacheError, match=r"written by a newer version \(layout 2, .* Choose another folder"):
        Store.open(store.root)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"schema_version": "x"}'])
def test_a_cache_whose_mark_is_damaged_is_refused(store: Store, content: str) -> None:
    put(store)
    (store.root / MARKER).write_text(content)
    with pytest.raises(CacheError, match=r"cache\.json"):
        Store.open(store.root)


def test_a_folder_of_other_things_is_no_cache(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(UsageError, match=r"holds thesis\.tex and is no cache"):
        Store.open(tmp_path)
    with pytest.raises(UsageError, match="is no folder"):
        Store.open(tmp_path / "thesis.tex")


def test_several_that_store_the_same_all_succeed(tmp_path: Path, said: Said) -> None:
    stores = [Store.open(tmp_path / "cache", said) for _ in range(8)]
    barrier = threading.Barrier(len(stores))

    def work(store: Store) -> None:
        barrier.wait()
        for number in range(20):
            put(store, number=number)
            assert store.get("lowered", {**PARTS, "number": number}, everything) == FILES

    threads = [threading.Thread(target=work, args=(store,)) for store in stores]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert said == []
    assert len(list(stores[0].kept())) == 20
    assert not list((tmp_path / "cache").rglob("*.partial"))


def test_a_full_disk_ends_the_keeping(store: Store, said: Said, monkeypatch: pytest.MonkeyPatch) -> None:
    put(store)
    monkeypatch.setattr(atomic.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9, 10**6))
    put(store, checkpoint="b")
    put(store, checkpoint="c")
    assert len(said) == 1
    assert said[0].startswith("nothing more is kept: ")
    assert "its disk has 0.00 GB free" in said[0]
    assert store.get("lowered", PARTS, everything) == FILES
    assert store.stored == 1


def mounted(place: Path, options: str) -> None:
    place.mkdir()
    if os.geteuid() != 0 or os.system(f"mount -t tmpfs -o {options} tmpfs '{place}' 2>/dev/null"):
        pytest.skip("mounting is not allowed here")


@pytest.fixture
def roomy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Disks that claim to have room, so that none is refused for being small."""
    monkeypatch.setattr(atomic.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**12, 0, 10**12))


@pytest.mark.usefixtures("roomy")
def test_a_disk_that_fills_up(tmp_path: Path, said: Said) -> None:
    disk = tmp_path / "disk"
    mounted(disk, "size=64k")
    try:
        store = Store.open(disk / "cache", said)
        store.put("lowered", PARTS, {"files/large": bytes(10**6)})
        assert len(said) == 1
        assert "the disk filled up while it was written" in said[0]
        assert [path.name for path in disk.rglob("*") if path.is_file()] == [MARKER]
    finally:
        os.system(f"umount '{disk}'")


@pytest.mark.usefixtures("roomy")
def test_a_folder_that_cannot_be_written_is_read(tmp_path: Path, said: Said) -> None:
    disk = tmp_path / "disk"
    mounted(disk, "size=1m")
    try:
        put(Store.open(disk / "cache"))
        assert os.system(f"mount -o remount,ro '{disk}'") == 0
        store = Store.open(disk / "cache", said)
        assert store.get("lowered", PARTS, everything) == FILES
        put(store, checkpoint="b")
        put(store, checkpoint="c")
        assert len(said) == 1
        assert "nothing more is kept: " in said[0]
        assert "Read-only file system" in said[0]
    finally:
        os.system(f"umount '{disk}'")


def test_pruning_keeps_what_was_used_last(store: Store) -> None:
    every = [put(store, number=number) for number in range(4)]
    for age, parts in enumerate(every):
        place = store._folder("lowered", parts) / INDEX
        os.utime(place, (10**9 - age, 10**9 - age))
    assert store.get("lowered", every[3], everything) == FILES  # now the last to have been used
    size = max(kept.size_bytes for kept in store.kept())
    removed = store.prune(2 * size)
    assert len(removed) == 2
    assert [store.get("lowered", parts, everything) is None for parts in every] == [False, True, True, False]
    assert store.prune(None, used_since=10**9 + 1) == []  # both were just used
    os.utime(store._folder("lowered", every[0]) / INDEX, (10**9, 10**9))
    assert [kept.used for kept in store.prune(None, used_since=10**9 + 1)] == [10**9]
    assert len(list(store.kept())) == 1


def test_pruning_removes_what_is_left_of_killed_processes_and_nothing_of_others(store: Store) -> None:
    put(store)
    entry = the_entry(store)
    left = entry.with_name(f"{'0' * 64}.mobile-o-01234567.partial")
    left.mkdir()
    (left / "half").touch()
    mine = [store.root / "mine.txt", entry.parent / "notes", store.root / "lowered" / "README"]
    for path in mine:
        path.touch()
    removed = store.prune(0)
    assert [kept.folder for kept in removed] == [entry]
    assert not left.exists()
    assert all(path.exists() for path in mine)


def test_a_begun_entry_that_another_process_takes_for_abandoned_is_begun_again(
    store: Store, said: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    locked, interfered = atomic._locked, []

    def late(path: Path, *, required: bool = False) -> int:
        if not interfered and not required:
            interfered.append(path)
            atomic.remove_abandoned(path.parent, said)
        return locked(path, required=required)

    put(store)  # with the mark of the cache
    monkeypatch.setattr(atomic, "_locked", late)
    put(store, checkpoint="b")
    assert len(interfered) == 1
    assert not interfered[0].exists()
    assert store.get("lowered", {**PARTS, "checkpoint": "b"}, everything) == FILES
