"""Bundles made to mislead, with consistent hashes: each is refused, and nothing outside of it is touched."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import onnx
import pytest
from cli_harness import Cli
from PIL import Image

TARGET = "tensorrt-orin"
DAMAGED = "is not what was exported: "


def write(path: Path, content: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)


def seal(bundle: Path, change: Callable[[dict[str, Any]], object] = lambda manifest: None) -> None:
    """Writes the manifest anew for what lies in ``bundle``, as whoever made it by hand would."""
    path = bundle / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["files"] = {}
    for file in sorted(bundle.rglob("*")):
        name = file.relative_to(bundle).as_posix()
        if (file.is_dir() and not file.is_symlink()) or name in ("manifest.json", "manifest.sha256"):
            continue
        plain = file.is_file() and not file.is_symlink()
        digest = sha256(file.read_bytes()).hexdigest() if plain else "0" * 64
        manifest["files"][name] = {"size_bytes": file.lstat().st_size, "sha256": digest}
    change(manifest)
    content = json.dumps(manifest).encode()
    path.write_bytes(content)
    (bundle / "manifest.sha256").write_text(f"{sha256(content).hexdigest()}  manifest.json\n")


def rename_target(name: str) -> Callable[[dict[str, Any]], None]:
    def change(manifest: dict[str, Any]) -> None:
        manifest["targets"][name] = manifest["targets"].pop(TARGET)

    return change


def in_component(key: str, value: str) -> Callable[[dict[str, Any]], None]:
    def change(manifest: dict[str, Any]) -> None:
        manifest["targets"][TARGET]["components"]["mcp"][key] = value

    return change


def in_graph(value: str) -> Callable[[dict[str, Any]], None]:
    def change(manifest: dict[str, Any]) -> None:
        manifest["targets"][TARGET]["components"]["mcp"]["graphs"][0]["file"] = value

    return change


def listed(name: str) -> Callable[[dict[str, Any]], None]:
    def change(manifest: dict[str, Any]) -> None:
        manifest["files"][name] = {"size_bytes": 1, "sha256": "0" * 64}

    return change


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (rename_target("../../escaped"), "'../../escaped' is not a name of a file below the folder"),
        (rename_target("a/b"), "it names a folder too"),
        (rename_target("passed\x1b[0m"), "it holds control characters"),
        (in_component("folder", "/tmp"), "it is absolute"),
        (in_component("folder", "../elsewhere"), "it leads out of it"),
        (in_graph("../mcp/project.onnx"), "it leads out of it"),
        (in_graph("/tmp/project.onnx"), "it is absolute"),
        (in_graph("a\\b.onnx"), "it holds a backslash"),
        (listed("../escape.txt"), "it leads out of it"),
        (listed("/etc/hostname"), "it is absolute"),
        (listed("a/./b"), "it is empty, or not normalised"),
    ],
)
def test_names_in_the_manifest(
    cli: Cli, damaged: Path, change: Callable[[dict[str, Any]], None], said: str
) -> None:
    seal(damaged, change)
    cli("verify", damaged).refused(f"{damaged}: {DAMAGED}manifest.json is no manifest", said, code=1)


def linked(path: Path) -> None:
    path.symlink_to(path.parent.parent)


@pytest.mark.parametrize(("make", "reason"), [(linked, "is a link"), (os.mkfifo, "is not a regular file")])
@pytest.mark.parametrize("name", ["config/pipeline.json", "golden/tensors.safetensors", "added"])
def test_a_link_or_a_pipe_is_not_intact_whatever_the_manifest_says(
    cli: Cli, damaged: Path, make: Callable[[Path], None], reason: str, name: str, tmp_path: Path
) -> None:
    (damaged / name).unlink(missing_ok=True)
    make(damaged / name)
    seal(damaged)
    commands = [
        ("verify", damaged),
        ("report", damaged, "--out", tmp_path / "page.html"),
        ("evaluate", damaged),
        ("bench", damaged),
    ]
    if name.startswith("config"):
        commands.append(("generate", damaged, "--prompt", "a", "--out", tmp_path / "a.png"))
    for command in commands:
        cli(*command).refused(f"{damaged}: {DAMAGED}{name} {reason}", code=1)


@pytest.mark.parametrize(("make", "reason"), [(linked, "is a link"), (os.mkfifo, "is not a regular file")])
@pytest.mark.parametrize("name", ["manifest.json", "manifest.sha256"])
def test_the_manifest_itself_is_a_file(
    cli: Cli, damaged: Path, make: Callable[[Path], None], reason: str, name: str
) -> None:
    (damaged / name).unlink()
    make(damaged / name)
    cli("verify", damaged).refused(f"{name}: {reason}", code=1)


def test_a_folder_that_is_a_link(cli: Cli, damaged: Path, tmp_path: Path) -> None:
    (damaged / TARGET).rename(tmp_path / "elsewhere")
    (damaged / TARGET).symlink_to(tmp_path / "elsewhere")
    seal(damaged)
    cli("verify", damaged).refused(f"{TARGET} is a link", code=1)


def test_the_bundle_itself_may_be_a_link(cli: Cli, small_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(small_bundle)
    assert cli("verify", tmp_path / "link").code == 0


@pytest.mark.parametrize(
    ("place", "said"),
    [
        ("../elsewhere.data", "it leads out of it"),
        ("/etc/hostname", "it is absolute"),
        ("none.data", "none.data: is missing"),
    ],
)
def test_weights_that_an_onnx_file_looks_for_elsewhere(
    cli: Cli, damaged: Path, place: str, said: str
) -> None:
    path = damaged / TARGET / "mcp" / "project.onnx"
    (path.parent.parent / "elsewhere.data").write_bytes((path.parent / "project.onnx.data").read_bytes())
    model = onnx.load(path, load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = place
    onnx.save(model, path)
    seal(damaged)
    outcome = cli("verify", damaged)
    assert outcome.code == 1
    assert said in outcome.out
    assert "Traceback" not in outcome.err


RECORD = {
    "schema_version": 1,
    "bundle": "",
    "settings": {"checkpoint": "", "tasks": "", "judge": "none", "steps": 1, "guidance": 1.0, "seed": 0},
    "models": {"torch": {"runtimes": {}, "drawings": [], "answers": [], "seconds": {}}},
}
PROMPT = {"tag": "one", "prompt": "a red circle", "include": [{"class": "circle"}]}
QUESTION = {"question": "What?", "answer": "that"}
DRAWN = {"tag": "one", "prompt": "a red circle", "seed": 0, "passed": None, "reason": ""}


def test_a_recorded_picture_elsewhere_is_not_copied_over_the_user_s(
    cli: Cli, damaged: Path, tmp_path: Path
) -> None:
    (tmp_path / "X").write_text("the user's")
    write(damaged / "evaluation" / "prompts.jsonl", json.dumps(PROMPT))
    record = json.loads(json.dumps(RECORD))
    record["models"]["torch"]["drawings"] = [{**DRAWN, "picture": "../X"}]
    write(damaged / "evaluation" / "torch" / "evaluation.json", json.dumps(record))
    seal(damaged)
    outcome = cli("evaluate", damaged, "--judge", "none", "--out", tmp_path / "out")
    outcome.refused("evaluation.json: models.torch.drawings.0.picture: '../X' is not a name of a file")
    assert (tmp_path / "X").read_text() == "the user's"
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("image", "said"),
    [("../secret.png", "it leads out of it"), ("/etc/hostname", "it is absolute"), ("none", "is missing")],
)
def test_questions_about_pictures_elsewhere(
    cli: Cli, damaged: Path, tmp_path: Path, image: str, said: str
) -> None:
    Image.new("RGB", (4, 4)).save(damaged / "evaluation-secret.png")
    write(damaged / "evaluation" / "questions.jsonl", json.dumps({"image": image, **QUESTION}))
    seal(damaged)
    cli("evaluate", damaged, "--judge", "none").refused(said)
    # The user's own file of questions has the same rule.
    questions = tmp_path / "own.jsonl"
    write(questions, json.dumps({"image": image, **QUESTION}))
    cli("evaluate", damaged, "--judge", "none", "--questions", questions).refused(said)


@pytest.mark.parametrize(
    ("picture", "said"), [("../secret.png", "it leads out of it"), ("link.png", "link.png: is a link")]
)
def test_a_report_of_an_evaluation_with_pictures_elsewhere(
    cli: Cli, small_bundle: Path, tmp_path: Path, picture: str, said: str
) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "secret.png")
    folder = tmp_path / "evaluation"
    folder.mkdir()
    (folder / "link.png").symlink_to("../secret.png")
    record = json.loads(json.dumps(RECORD))
    manifest = json.loads((small_bundle / "manifest.json").read_text())
    record["settings"]["checkpoint"] = manifest["checkpoint"]["digest"]
    record["models"]["torch"]["drawings"] = [{**DRAWN, "picture": picture}]
    write(folder / "evaluation.json", json.dumps(record))
    page = tmp_path / "page.html"
    cli("report", small_bundle, "--evaluation", folder, "--out", page).refused(said)
    assert not page.exists()
