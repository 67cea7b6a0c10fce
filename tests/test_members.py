"""Names out of files, the one function that opens what they name, and that nothing else does."""

from __future__ import annotations

import ast
import os
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import ValidationError

from mobile_o_export.bundle.manifest import Damage, damage, file_entries
from mobile_o_export.errors import BundleError, UsageError
from mobile_o_export.members import (
    LINK,
    SPECIAL,
    MemberName,
    Members,
    PlainName,
    entries,
    require_no_special_file,
)
from mobile_o_export.strict import Strict

PACKAGE = Path(__file__).parent.parent / "mobile_o_export"

REFUSED = {
    "../escape.txt": "leads out of it",
    "a/../../escape.txt": "leads out of it",
    "..": "leads out of it",
    "/etc/hostname": "absolute",
    "C:/windows": "absolute",
    "C:escape.txt": "absolute",
    "": "empty, or not normalised",
    ".": "empty, or not normalised",
    "a//b": "empty, or not normalised",
    "a/./b": "empty, or not normalised",
    "a/": "empty, or not normalised",
    "a\\b": "backslash",
    "..\\escape.txt": "backslash",
    "a\0b": "control characters",
    "a\nb": "control characters",
    "a\x1b[2Jb": "control characters",
    "a\x9bb": "control characters",
    "a\u202egnp.exe": "control characters",
    "a\u2028b": "control characters",
    "a\udcffb": "control characters",
    "a" * 256: "too long",
    "é" * 128: "too long",
    "a/" * 600 + "a": "too long",
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_name_that_is_none_of_a_file_below_a_folder(name: str) -> None:
    with pytest.raises(ValueError, match=REFUSED[name]):
        MemberName(name)


@pytest.mark.parametrize("name", ["a", "a/b.png", "löwe 1.png", "..a/b..", "ab:c", "حصان.png", "-", "~"])
def test_a_name_that_is_one(name: str) -> None:
    assert MemberName(name) == name


@pytest.mark.parametrize("name", ["a/b", *REFUSED])
def test_a_plain_name_has_no_folders(name: str) -> None:
    with pytest.raises(ValueError, match="is no"):
        PlainName(name)


def test_nothing_that_is_read_can_hold_another_name() -> None:
    class Entry(Strict):
        file: MemberName

    entry = Entry.model_validate({"file": "a/b"})
    assert type(entry.file) is MemberName
    assert entry.model_dump_json() == '{"file":"a/b"}'
    assert Entry.model_json_schema()["properties"]["file"]["type"] == "string"
    for name in REFUSED:
        with pytest.raises(ValidationError):
            Entry.model_validate({"file": name})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "folder"
    (folder / "inner").mkdir(parents=True)
    (folder / "inner" / "file.txt").write_text("inside")
    (tmp_path / "secret.txt").write_text("outside")
    (folder / "link.txt").symlink_to(tmp_path / "secret.txt")
    (folder / "within.txt").symlink_to("inner/file.txt")
    (folder / "dangling.txt").symlink_to("nowhere")
    (folder / "linked").symlink_to("inner")
    os.mkfifo(folder / "pipe.txt")
    return folder


def test_a_regular_file_is_read(folder: Path, tmp_path: Path) -> None:
    link = tmp_path / "to-the-folder"
    link.symlink_to(folder)
    # The folder itself is the user's own choice, a link or not.
    for place in (folder, link):
        members = Members(place, BundleError)
        assert members.has("inner/file.txt")
        assert members.text("inner/file.txt") == "inside"
        assert members.file("inner/file.txt").read_text() == "inside"
        assert members.tree("inner") == place / "inner"


NO_FILES = {
    "link.txt": "link.txt: is a link. Get the folder again.",
    "within.txt": "within.txt: is a link. Get the folder again.",
    "dangling.txt": "dangling.txt: is a link. Get the folder again.",
    "linked/file.txt": "linked/file.txt: is a link. Get the folder again.",
    "pipe.txt": "pipe.txt: is not a regular file. Get the folder again.",
    "inner": "inner: is a folder. Get the folder again.",
    "none.txt": "none.txt: is missing. Get the folder again.",
    "inner/file.txt/more": "more: cannot be read (Not a directory). Get the folder again.",
    "../secret.txt": "leads out of it. Get the folder again.",
}


@pytest.mark.parametrize("name", NO_FILES)
def test_what_is_no_regular_file_of_the_folder_is_refused(folder: Path, name: str) -> None:
    members = Members(folder, BundleError)
    for read in (members.read, members.text, members.file):
        with pytest.raises(BundleError) as raised:
            read(name)
        assert str(raised.value).endswith(NO_FILES[name])


def test_the_failure_and_what_to_do_are_the_caller_s(folder: Path) -> None:
    with pytest.raises(UsageError, match=r"none: is missing\. Evaluate again\."):
        Members(folder, UsageError, "Evaluate again.").read("none")


def test_a_folder_of_the_user_s_own_may_hold_links(folder: Path) -> None:
    members = Members(folder, BundleError, links=True)
    assert members.text("link.txt") == "outside"
    assert members.text("linked/file.txt") == "inside"
    for name in ("../secret.txt", "pipe.txt", "dangling.txt"):
        with pytest.raises(BundleError):
            members.read(name)


@pytest.mark.parametrize("kind", ["link", "folder link", "pipe", "socket"])
def test_a_folder_that_a_vendor_s_reader_opens_holds_files_only(tmp_path: Path, kind: str) -> None:
    package = tmp_path / "m.mlpackage"
    place = package / "Data"
    place.mkdir(parents=True)
    (place / "weights").write_text("1")
    members = Members(tmp_path, BundleError)
    assert members.tree("m.mlpackage") == package
    found = place / "x"
    if kind == "pipe":
        os.mkfifo(found)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as opened:
            opened.bind(str(found))
    else:
        found.symlink_to("weights" if kind == "link" else tmp_path)
    reason = LINK if "link" in kind else SPECIAL
    with pytest.raises(BundleError, match=f"Data/x: {reason}"):
        members.tree("m.mlpackage")


def test_every_entry_is_listed_with_what_it_is_and_no_link_is_followed(folder: Path) -> None:
    assert list(entries(folder)) == [
        ("dangling.txt", LINK),
        ("inner/file.txt", "file"),
        ("link.txt", LINK),
        ("linked", LINK),
        ("pipe.txt", SPECIAL),
        ("within.txt", LINK),
    ]


def test_folders_deeper_than_python_recurses(tmp_path: Path) -> None:
    place = tmp_path / "deep"
    try:
        Path(f"{place}/{'a/' * 600}").mkdir(parents=True)
        descriptor = os.open(f"{place}/{'a/' * 600}", os.O_RDONLY)
        for _ in range(600):
            os.mkdir("a", dir_fd=descriptor)
            inner = os.open("a", os.O_RDONLY, dir_fd=descriptor)
            os.close(descriptor)
            descriptor = inner
        os.close(descriptor)
        assert list(entries(place)) == []
    finally:
        # Python's own rmtree recurses.
        subprocess.run(["rm", "-rf", place], check=True)


def test_links_and_pipes_are_damage_of_their_own_kind(folder: Path) -> None:
    from mobile_o_export.bundle.manifest import Manifest

    with pytest.raises(BundleError, match=r"dangling\.txt: is a link, and a bundle holds files only"):
        file_entries(folder)
    for name in ("dangling.txt", "link.txt", "within.txt", "linked", "pipe.txt"):
        (folder / name).unlink()
    listed = file_entries(folder)
    assert list(listed) == ["inner/file.txt"]
    (folder / "inner" / "file.txt").unlink()
    os.mkfifo(folder / "inner" / "file.txt")
    manifest = Manifest.model_construct(files=listed)
    assert damage(folder, manifest) == [Damage("inner/file.txt", "is not a regular file")]
    (folder / "inner" / "file.txt").unlink()
    (folder / "inner" / "file.txt").symlink_to("../x")
    assert damage(folder, manifest) == [Damage("inner/file.txt", "is a link")]
    (folder / "inner" / "file.txt").unlink()
    (folder / "bad\x1bname").touch()
    assert damage(folder, manifest) == [
        Damage("bad\x1bname", "has a name that no file of a bundle has"),
        Damage("inner/file.txt", "is missing"),
    ]


OPENING = {
    "copyfile",
    "copytree",
    "from_file",
    "fromfile",
    "load_file",
    "memmap",
    "mmap",
    "read_bytes",
    "read_json",
    "read_text",
    "read_toml",
    "safe_open",
}
"""Functions and methods that open what they are given, whatever they are called on."""

OPENING_OF = {
    "Image": {"open"},
    "io": {"open"},
    "json": {"load"},
    "np": {"load", "loadtxt", "genfromtxt"},
    "onnx": {"load", "load_model"},
    "os": {"open"},
    "shutil": {"copy", "copy2", "move"},
    "tomllib": {"load"},
    "torch": {"load"},
}

ROOMS = (
    *("bundle", "report", "evaluation", "golden", "pipelines/settings.py", "png.py"),
    *("backends/coreml/interpreter", "backends/coreml/interpreted.py", "backends/coreml/native.py"),
    *("backends/mobile_o_app/executors.py", "backends/mobile_o_app/mlx.py", "backends/onnx/external.py"),
    *(f"backends/{name}/contents.py" for name in ("coreml", "litert", "mobile_o_app", "onnx")),
    *("backends/contents.py", "backends/litert/restore.py", "backends/onnx/readback.py"),
)
"""Everything that reads files of a bundle, or of an evaluation of one."""

ALLOWED = {
    ("bundle/configs.py", "copyfile"): "the checkpoint's tokenizer, by fixed names",
    ("evaluation/tasks.py", "read_bytes"): "the files that the user gave with --prompts and --questions",
    ("golden/record.py", "read_bytes"): "the checkpoint's tokenizer, by fixed names",
    ("golden/requests.py", "read_toml"): "the user's own prompts",
    ("golden/store.py", "safe_open"): "a path that Members.file has looked at",
    ("backends/mobile_o_app/mlx.py", "safe_open"): "a path that Members.file has looked at",
    ("backends/coreml/interpreter/blob.py", "memmap"): "a path that Members.file has looked at",
    ("backends/mobile_o_app/contents.py", "safe_open"): "a path that Members.file has looked at",
    ("report/page.py", "read_text"): "the style sheet of this package",
    ("report/pictures.py", "Image.open"): "bytes whose header opened_png has looked at",
    ("png.py", "Image.open"): "bytes that Members.read has read",
}


def openings(path: Path) -> Iterator[str]:
    """What ``path`` calls that opens a file; writing what is our own is no opening."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Call):
            continue
        function = node.func
        if isinstance(function, ast.Name) and function.id in {"open", *OPENING}:
            yield function.id
        elif isinstance(function, ast.Attribute):
            on = function.value.id if isinstance(function.value, ast.Name) else ""
            if function.attr in OPENING_OF.get(on, ()):
                yield f"{on}.{function.attr}"
            elif function.attr in OPENING:
                yield function.attr
            elif function.attr == "open" and _mode(node).startswith("r"):
                yield "open"


def _mode(call: ast.Call) -> str:
    """The mode of a file that ``call`` opens: a path's, unless something else is opened so."""
    first = call.args[0] if call.args else None
    return str(first.value) if isinstance(first, ast.Constant) else ""


def test_the_walk_sees_openings(tmp_path: Path) -> None:
    path = tmp_path / "sample.py"
    path.write_text(
        "open(x)\np.open('rb')\np.read_text()\nImage.open(p)\nread_json(p, M, E)\nnp.memmap(p)\n"
        "members.open(name)\nGolden.open(p)\np.open('wb')\njson.loads(t)\nonnx.load(p)\n"
    )
    assert list(openings(path)) == [
        *("open", "open", "read_text", "Image.open", "read_json", "memmap", "onnx.load")
    ]


def test_nothing_else_opens_files_of_a_bundle() -> None:
    found = set()
    for room in ROOMS:
        place = PACKAGE / room
        for path in sorted(place.rglob("*.py")) if place.is_dir() else [place]:
            name = path.relative_to(PACKAGE).as_posix()
            found |= {(name, what) for what in openings(path)}
    assert found == set(ALLOWED)


def test_a_path_that_no_file_system_takes_is_told(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"cannot be \(.*\)\. Give another path\."):
        require_no_special_file(tmp_path / ("y" * 300), UsageError)
