"""generate, edit, describe and chat: results on stdout, pictures whole or not at all, bad input refused."""

from __future__ import annotations

import errno
import io
import json
import os
import re
import shutil
import subprocess
import sys
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_harness import Cli, Outcome, finish, start
from PIL import Image
from safetensors.numpy import load_file, save_file

from mobile_o_export.backends.litert.backend import LiteRTBackend
from mobile_o_export.errors import MissingToolError
from mobile_o_export.parity.metrics import Array, psnr_db
from mobile_o_export.resources import shipped
from mobile_o_export.tokenizer import Tokenizer

FAST = "litert-cpu"
EVERYWHERE = pytest.mark.parametrize("place", [FAST, "tensorrt-orin", "torch"])
DRAWING = ["llm", "mcp", "dit", "vae_decoder"]
IMAGE = shipped("golden") / "still-life.png"
WITH_WORDS = pytest.mark.parametrize("task", ["generate", "edit", "describe"])

Run = Callable[..., Outcome]
Says = Callable[..., None]


@pytest.fixture
def run(cli: Cli, bundle: Path, reference_folder: Path) -> Run:
    """Runs a task on a target of the bundle, or in PyTorch: ``run("torch", "generate", …)``."""

    def on(place: str, task: str, *arguments: object) -> Outcome:
        torch = ["--target", "torch", "--checkpoint", reference_folder]
        return cli(task, *(torch if place == "torch" else [bundle, "--target", place]), *arguments)

    return on


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """Where a picture is to be written, in a folder of its own."""
    (tmp_path / "pictures").mkdir()
    return tmp_path / "pictures" / "picture.png"


@pytest.fixture
def copy(bundle: Path, tmp_path: Path) -> Path:
    """A copy that shares the bundle's files: they are replaced and never written to."""
    return Path(shutil.copytree(bundle, tmp_path / "copy", copy_function=os.link))


@pytest.fixture
def says(monkeypatch: pytest.MonkeyPatch) -> Says:
    """Puts lines on stdin."""
    return lambda *lines: monkeypatch.setattr(sys, "stdin", io.StringIO("".join(f"{x}\n" for x in lines)))


@pytest.fixture
def tokenizer(reference_folder: Path) -> Tokenizer:
    return Tokenizer(reference_folder)


def asked(task: str, words: str, out: Path) -> list[object]:
    """The options of a task that takes words."""
    image = [] if task == "generate" else ["--image", IMAGE]
    return [*image, *(["--question", words] if task == "describe" else ["--prompt", words, "--out", out])]


def parsed(text: str) -> Any:
    """Strict JSON: NaN and Infinity are a KeyError."""
    return json.loads(text, parse_constant={}.__getitem__)


def assert_told(outcome: Outcome, task: str, stages: Sequence[str]) -> None:
    """Success, and one line on stderr that says what took how long."""
    assert outcome.code == 0, outcome
    timing = ", ".join(rf"{stage} [\d.]+" for stage in stages)
    assert re.search(rf"^\[ +[\d.]+ s\] {task}: .*[\d.]+ s \({timing}\).*\n\Z", outcome.err), outcome.err
    assert outcome.err.count("\n") == 1


@EVERYWHERE
@pytest.mark.parametrize(("task", "stages"), [("generate", DRAWING), ("edit", ["vision_encoder", *DRAWING])])
def test_a_picture(run: Run, out: Path, task: str, stages: list[str], place: str) -> None:
    outcome = run(place, task, *asked(task, "more red", out), "--steps", 2)
    assert_told(outcome, task, ["loading", *stages])
    assert outcome.out == f"{out}\n"
    assert list(out.parent.iterdir()) == [out]
    with Image.open(out) as picture:
        assert (picture.format, picture.mode, picture.size) == ("PNG", "RGB", (64, 64))


def drawn(run: Run, place: str, out: Path, seed: int) -> Array:
    """The picture in 0..1."""
    outcome = run(place, "generate", *asked("generate", "a cube", out), "--seed", seed, "--overwrite")
    assert outcome.code == 0
    with Image.open(out) as picture:
        return np.asarray(picture) / 255


@pytest.mark.parametrize(("place", "least_db"), [(FAST, 50.0), ("tensorrt-orin", 35.0)])
def test_every_target_draws_what_torch_draws(run: Run, out: Path, place: str, least_db: float) -> None:
    """With the model's own 20 steps; litert computes in fp32, tensorrt in fp16."""
    expected = drawn(run, "torch", out, 7)
    assert expected.std() > 0.01
    assert psnr_db(expected, drawn(run, place, out, 7)) >= least_db
    assert psnr_db(expected, drawn(run, place, out, 8)) < least_db


@pytest.mark.parametrize(("task", "stages"), [("generate", DRAWING), ("edit", ["vision_encoder", *DRAWING])])
def test_a_picture_as_json(run: Run, out: Path, task: str, stages: list[str]) -> None:
    options = ("--steps", 3, "--seed", 2**32 - 1, "--guidance", 3, "--json")
    outcome = run(FAST, task, *asked(task, "a red cube", out), *options)
    assert_told(outcome, task, ["loading", *stages])
    content = parsed(outcome.out)
    given = {"schema": 1, "task": task, "target": FAST, "image": str(out), "prompt": "a red cube"}
    given |= {"seed": 2**32 - 1, "steps": 3, "guidance": 3.0}
    assert content.items() >= given.items()
    if task == "edit":
        assert content.pop("picture") == str(IMAGE)
    assert content.keys() - given.keys() == {"runtimes", "prompt_tokens", "seconds", "step_seconds"}
    assert list(content["runtimes"]) == stages
    assert all(name.startswith("ai-edge-litert ") for name in content["runtimes"].values())
    assert 20 < content["prompt_tokens"] < 80
    assert list(content["seconds"]) == ["loading", *stages, "total"]
    *parts, total = content["seconds"].values()
    assert total == pytest.approx(sum(parts))
    assert len(content["step_seconds"]) == 3
    assert 0 < sum(content["step_seconds"]) <= content["seconds"]["dit"]


@pytest.mark.parametrize(
    ("name", "form"),
    [("a.png", "PNG"), ("a.jpg", "JPEG"), ("a.jpeg", "JPEG"), ("a.webp", "WEBP"), ("A B.PNG", "PNG")],
)
def test_formats(run: Run, out: Path, name: str, form: str) -> None:
    path = out.with_name(name)
    assert run(FAST, "generate", *asked("generate", "a cube", path), "--steps", 1).out == f"{path}\n"
    with Image.open(path) as picture:
        assert (picture.format, picture.size) == (form, (64, 64))


def test_the_longest_name(run: Run, out: Path) -> None:
    """What is written first must not have a longer one, which file systems refuse."""
    path = out.with_name(f"{'x' * 251}.png")
    assert run(FAST, "generate", *asked("generate", "a cube", path), "--steps", 1).out == f"{path}\n"


def test_a_picture_that_is_there_is_kept_unless_told_otherwise(run: Run, out: Path) -> None:
    out.write_bytes(b"mine")
    arguments = (FAST, "generate", *asked("generate", "a cube", out), "--steps", 1)
    run(*arguments).refused(f"--out {out}: exists already. Choose another name, or --overwrite it.")
    assert out.read_bytes() == b"mine"
    assert run(*arguments, "--overwrite").code == 0
    assert out.read_bytes().startswith(b"\x89PNG")
    assert list(out.parent.iterdir()) == [out]


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_full_disk_leaves_nothing_half_written(
    run: Run, out: Path, monkeypatch: pytest.MonkeyPatch, overwrite: bool
) -> None:
    def fail(_self: Image.Image, path: Path, *_: object, **__: object) -> None:
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Image.Image, "save", fail)
    if overwrite:
        out.write_bytes(b"mine")
    options = ("--steps", 1, *["--overwrite"] * overwrite)
    outcome = run(FAST, "generate", *asked("generate", "a cube", out), *options)
    outcome.refused("the disk filled up while it was written. Free some space or choose another disk")
    assert [path.read_bytes() for path in out.parent.iterdir()] == [b"mine"] * overwrite


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("picture.gif", "its name must end in .png, .jpg, .jpeg, .webp."),
        ("missing/picture.png", "its folder does not exist. Make it first."),
        ("folder.png", "is a folder. Give the path of a file."),
    ],
)
@pytest.mark.parametrize("task", ["generate", "edit"])
def test_a_place_for_no_picture(run: Run, tmp_path: Path, task: str, name: str, message: str) -> None:
    (tmp_path / "folder.png").mkdir()
    run(FAST, task, *asked(task, "a cube", tmp_path / name)).refused(f"--out {tmp_path / name}: {message}")
    assert list(tmp_path.rglob("*")) == [tmp_path / "folder.png"]


def test_a_picture_in_the_bundle_would_damage_it(cli: Cli, copy: Path) -> None:
    """The next command of this target would find a file too many."""
    path = copy / FAST / "picture.png"
    arguments = (*asked("generate", "a cube", path), "--steps", 1)
    cli("generate", copy, "--target", FAST, *arguments).refused("lies in the bundle")
    assert not path.exists()


OF_AN_ANSWER = {
    *("schema", "task", "target", "runtimes", "text", "tokens", "stopped", "prompt_tokens", "seconds"),
    "tokens_per_second",
}


@EVERYWHERE
def test_describe(run: Run, tokenizer: Tokenizer, place: str) -> None:
    arguments = (place, "describe", "--image", IMAGE, "--question", "What?", "--max-tokens", 6)
    stages = ["loading", "vision_encoder", "llm"]
    as_json = run(*arguments, "--json")
    assert_told(as_json, "describe", stages)
    content = parsed(as_json.out)
    assert content.keys() == {*OF_AN_ANSWER, "image", "question"}
    assert (content["schema"], content["task"], content["target"]) == (1, "describe", place)
    assert (content["image"], content["question"]) == (str(IMAGE), "What?")
    assert list(content["runtimes"]) == ["vision_encoder", "llm"]
    assert (len(content["tokens"]), content["stopped"]) == (6, "length")
    assert content["text"] == tokenizer.decode(content["tokens"])
    assert 20 < content["prompt_tokens"] < 64
    assert list(content["seconds"]) == [*stages, "decode", "total"]
    # Five of the six were decoded.
    assert content["tokens_per_second"] == pytest.approx(5 / content["seconds"]["decode"])
    plain = run(*arguments)
    assert_told(plain, "describe", stages)
    assert plain.out == content["text"] + "\n"


def test_litert_says_what_torch_says(run: Run) -> None:
    arguments = ("describe", "--image", IMAGE, "--max-tokens", 24, "--json")
    expected, actual = (parsed(run(place, *arguments).out) for place in ("torch", FAST))
    assert expected["question"] == "Describe this image."
    assert len(expected["tokens"]) == 24
    assert actual["tokens"] == expected["tokens"]


@EVERYWHERE
def test_chat(run: Run, says: Says, place: str) -> None:
    lines = ["Hello", "", f'/image "{IMAGE}"', "What is it?", "And now?", "/new", " Hello ", "/exit", "No"]
    says(*lines)
    as_json = run(place, "chat", "--max-tokens", 3, "--json")
    assert as_json.code == 0
    rows = [parsed(line) for line in as_json.out.splitlines()]
    assert [row["message"] for row in rows] == ["Hello", "What is it?", "And now?", "Hello"]
    for row in rows:
        assert row.keys() == {*OF_AN_ANSWER, "message"}
        assert (row["schema"], row["task"], row["target"]) == (1, "chat", place)
        assert (len(row["tokens"]), row["stopped"]) == (3, "length")
    first, picture, later, fresh = rows
    assert picture["prompt_tokens"] > later["prompt_tokens"]
    assert fresh["prompt_tokens"] == first["prompt_tokens"] != later["prompt_tokens"]
    assert fresh["tokens"] == first["tokens"]
    says(*lines)
    plain = run(place, "chat", "--max-tokens", 3)
    assert plain.code == 0
    assert plain.out == "".join(row["text"] + "\n" for row in rows)
    assert len(re.findall(r"^\[ +[\d.]+ s\] chat: 3 tokens, the first after ", plain.err, re.MULTILINE)) == 4


def test_chat_may_begin_with_a_picture(run: Run, says: Says) -> None:
    says("What is it?", "And now?")
    outcome = run(FAST, "chat", "--image", IMAGE, "--max-tokens", 2, "--json")
    first, second = (parsed(line) for line in outcome.out.splitlines())
    assert ("vision_encoder" in first["seconds"], "vision_encoder" in second["seconds"]) == (True, False)
    alone = run(FAST, "describe", *asked("describe", "What is it?", Path()), "--max-tokens", 2, "--json")
    assert first["tokens"] == parsed(alone.out)["tokens"]


def test_chat_in_a_process_of_its_own(bundle: Path) -> None:
    arguments = ("chat", bundle, "--target", FAST, "--max-tokens", 2, "--json")
    process = start(*arguments, stdin=subprocess.PIPE)
    assert process.stdin is not None
    process.stdin.write("Grüße\n/exit\n")
    outcome = finish(process)
    assert outcome.code == 0
    assert parsed(outcome.out)["message"] == "Grüße"
    assert "Warning" not in outcome.err


def test_nothing_said_is_nothing_answered(run: Run, says: Says) -> None:
    says("", "   ")
    outcome = run(FAST, "chat")
    assert (outcome.code, outcome.out) == (0, "")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("/help", "error: /help is no command; there are /image FILE, /new and /exit."),
        ("/image", "error: /image: say which file."),
        ("/image missing.png", "error: missing.png: no such image file."),
        ("look at <image>", "error: the prompt holds <image>, which stands for the picture. Leave it out."),
        ("word " * 2000, "tokens and the conversation has room for "),
    ],
)
def test_chat_refuses_after_what_it_answered(run: Run, says: Says, line: str, message: str) -> None:
    says("Hello", line, "Never")
    outcome = run(FAST, "chat", "--max-tokens", 1, "--json")
    assert outcome.code == 2
    assert [parsed(answer)["message"] for answer in outcome.out.splitlines()] == ["Hello"]
    assert message in outcome.err
    assert "Traceback" not in outcome.err


def test_a_message_that_is_too_long_for_chat_can_be_cut(run: Run, says: Says) -> None:
    says("word " * 2000)
    run(FAST, "chat").refused("tokens and litert-cpu has room for 384", "--truncate")
    assert run(FAST, "chat", "--truncate", "--max-tokens", 1).code == 0


def test_stdin_that_is_no_text(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"caf\xe9\n"), "utf-8"))
    run(FAST, "chat").refused("stdin is no UTF-8 text: ")


@WITH_WORDS
@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("", "error: the prompt is empty. Say what to draw, change or answer."),
        (" \n\t", "error: the prompt is empty."),
        ("a <image> of a cat", "error: the prompt holds <image>"),
        # Bytes that are no UTF-8, as Python hands them on.
        (os.fsdecode(b"caf\xe9"), "error: the prompt "),
    ],
)
def test_words_that_are_none(run: Run, out: Path, task: str, words: str, message: str) -> None:
    run(FAST, task, *asked(task, words, out)).refused(message)
    assert not list(out.parent.iterdir())


@WITH_WORDS
def test_a_prompt_that_is_too_long(run: Run, out: Path, tokenizer: Tokenizer, task: str) -> None:
    words = "a house by the sea, " * 100
    outcome = run(FAST, task, *asked(task, words, out))
    outcome.refused("--truncate")
    found = re.search(r"the prompt has (\d+) tokens(.*) and litert-cpu has room for 384\. Short", outcome.err)
    assert found is not None
    assert 20 < int(found[1]) - tokenizer.encode(words).shape[1] < 80
    assert found[2] == ("" if task == "generate" else ", 16 of them the image's,")
    assert not list(out.parent.iterdir())
    few = ["--max-tokens", 1] if task == "describe" else ["--steps", 1]
    content = parsed(run(FAST, task, *asked(task, words, out), "--truncate", "--json", *few).out)
    assert 380 <= content["prompt_tokens"] <= 384


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--steps", "0", "0 steps cannot be run. Choose 1 to 250."),
        ("--steps", "251", "251 steps cannot be run."),
        ("--steps", "few", "Invalid value for '--steps'"),
        ("--seed", "-1", "the seed -1 is not in 0..4294967295. Choose one that is."),
        ("--seed", "4294967296", "the seed 4294967296 is not in 0..4294967295."),
        ("--guidance", "nan", "the guidance nan is not within ±100. The model's is 1.2."),
    ],
)
@pytest.mark.parametrize("task", ["generate", "edit"])
def test_numbers_out_of_range(run: Run, out: Path, task: str, option: str, value: str, message: str) -> None:
    run(FAST, task, *asked(task, "a cube", out), option, value).refused(message)
    assert not list(out.parent.iterdir())


@pytest.mark.parametrize("tokens", ["0", "-5"])
@pytest.mark.parametrize("task", ["describe", "chat"])
def test_an_answer_of_no_length(run: Run, says: Says, task: str, tokens: str) -> None:
    says("Hello")
    outcome = run(FAST, task, "--image", IMAGE, "--max-tokens", tokens)
    outcome.refused(f"an answer of {tokens} tokens says nothing. Ask for 1 or more.")


PNG = IMAGE.read_bytes()
HEADER = PNG[12:16] + 2 * (60_000).to_bytes(4, "big") + PNG[24:29]
HUGE = PNG[:12] + HEADER + zlib.crc32(HEADER).to_bytes(4, "big") + PNG[33:]
"""It claims to have 3.6 gigapixels."""


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such image file."),
        (b"", "cannot be read as an image: "),
        (b"a text\n", "cannot be read as an image: "),
        (PNG[:-9000], "cannot be read as an image: "),
        (HUGE, "too large "),
    ],
    ids=["missing", "empty", "text", "cut off", "huge"],
)
@pytest.mark.parametrize("task", ["edit", "describe", "chat"])
def test_bad_images(run: Run, says: Says, out: Path, task: str, content: bytes | None, message: str) -> None:
    path = out.with_name("given.png")
    if content is not None:
        path.write_bytes(content)
    says("What is it?")
    options = ["--prompt", "more red", "--out", out] if task == "edit" else []
    run(FAST, task, "--image", path, *options).refused(f"{path}: {message}")
    assert not out.exists()


@pytest.mark.parametrize("task", ["generate", "edit", "describe", "chat"])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{bundle}", "--target", "litert-cp"], "has no target 'litert-cp'. Did you mean 'litert-cpu'?"),
        (["{bundle}"], "say which target: --target coreml-ane or litert-cpu or tensorrt-orin."),
        ([], "say which model: the folder of a bundle, or --target torch --checkpoint CKPT."),
        (["{bundle}", "--target", FAST, "--checkpoint", "x"], "--checkpoint goes with --target torch;"),
        (["--target", "torch"], "--target torch runs a checkpoint in PyTorch; say which with --checkpoint"),
        (["--target", "torch", "--checkpoint", "{tmp}/no"], "/no: is missing, and a checkpoint is a folder"),
        (["{tmp}", "--target", FAST], "is not a bundle (manifest.json is missing). Give the folder that"),
        (["{data}/image.png", "--target", FAST], "image.png: is not a bundle"),
    ],
)
def test_models_that_are_none(
    cli: Cli, bundle: Path, reference_folder: Path, says: Says, out: Path, task: str, arguments: list[str],
    message: str,
) -> None:  # fmt: skip
    says("Hello")
    given = [a.format(bundle=bundle, tmp=out.parent, data=reference_folder) for a in arguments]
    cli(task, *given, *([] if task == "chat" else asked(task, "a cube", out))).refused(message)
    assert not list(out.parent.iterdir())


def test_a_bundle_that_lacks_a_component(cli: Cli, small_bundle: Path, out: Path) -> None:
    """Of one target only, which need not be named."""
    outcome = cli("generate", small_bundle, *asked("generate", "a cube", out))
    outcome.refused(f"error: {small_bundle}: this needs llm, which on tensorrt-orin was not exported.")


def test_the_checkpoint_has_to_be_the_bundle_s(
    cli: Cli, bundle: Path, reference_folder: Path, checkpoint: Path, out: Path
) -> None:
    weights = checkpoint / "model.safetensors"
    tensors = load_file(weights)
    next(tensor for tensor in tensors.values() if tensor.ndim == 2)[0, 0] += 1
    save_file(tensors, weights)
    arguments = ("generate", bundle, "--target", "torch", *asked("generate", "a cube", out), "--steps", 1)
    cli(*arguments, "--checkpoint", checkpoint).refused(f"{bundle}: was made from another checkpoint. Give")
    assert not out.exists()
    assert cli(*arguments, "--checkpoint", reference_folder).out == f"{out}\n"


def changed(path: Path) -> None:
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))


@pytest.mark.parametrize(
    ("name", "damage", "reason"),
    [
        (f"{FAST}/dit/dit.tflite", changed, "was changed"),
        (f"{FAST}/dit/dit.tflite", Path.unlink, "is missing"),
        (f"{FAST}/notes.txt", Path.touch, "was added"),
        ("config/pipeline.json", changed, "was changed"),
        ("tokenizer/tokenizer.json", changed, "was changed"),
        ("manifest.json", changed, "does not match manifest.sha256"),
    ],
)
def test_damage_of_what_is_used(
    cli: Cli, copy: Path, out: Path, name: str, damage: Callable[[Path], object], reason: str
) -> None:
    damage(copy / name)
    outcome = cli("generate", copy, "--target", FAST, *asked("generate", "a cube", out))
    outcome.refused(f"error: {copy}: is not what was exported: {name} {reason}. Get the bundle again", code=1)
    assert not out.exists()


@pytest.mark.parametrize(
    "name", ["tensorrt-orin/dit/denoise.onnx.data", "golden/tensors.safetensors", "LICENCE-WEIGHTS.txt"]
)
def test_damage_of_what_is_not_used(cli: Cli, copy: Path, out: Path, name: str) -> None:
    changed(copy / name)
    arguments = (*asked("generate", "a cube", out), "--steps", 1)
    assert cli("generate", copy, "--target", FAST, *arguments).out == f"{out}\n"


def test_a_runtime_that_is_not_here(run: Run, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unavailable(*_: object) -> None:
        raise MissingToolError("llm: no LiteRT here. pip install ai-edge-litert")

    monkeypatch.setattr(LiteRTBackend, "open", unavailable)
    outcome = run(FAST, "generate", *asked("generate", "a cube", out))
    outcome.refused("error: llm: no LiteRT here. pip install ai-edge-litert", code=3)
    assert not list(out.parent.iterdir())


def test_whole_chains_are_of_all_components(cli: Cli, bundle: Path) -> None:
    arguments = ("verify", bundle, "--pipeline", "--component", "mcp")
    cli(*arguments).refused("--pipeline runs all components in turn; leave --component out.")
