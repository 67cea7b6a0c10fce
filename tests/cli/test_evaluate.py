"""``evaluate`` and ``compare`` on the shared bundle: random weights, so that scores are low and the same."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from cli_harness import Cli
from PIL import Image

from mobile_o_export.evaluation.record import Evaluation

PROMPTS = [
    {"tag": "colors", "prompt": "a red circle", "include": [{"class": "circle", "color": "red"}]},
    {"tag": "counting", "prompt": "two blue squares", "include": [{"class": "square", "count": 2}]},
    {"tag": "counting", "prompt": "three crosses", "include": [{"class": "cross", "count": 3}]},
]
QUESTIONS = [
    {"image": "a.png", "question": "What is it?", "answer": "a square"},
    {"image": "a.png", "question": "How many are there?", "answer": "one"},
]
FAST = ("--steps", "1")


@pytest.fixture
def tasks(tmp_path: Path) -> tuple[str, ...]:
    """The options that name two task files."""
    folder = tmp_path / "tasks"
    folder.mkdir()
    Image.new("RGB", (32, 32), "red").save(folder / "a.png")
    files = {"--prompts": PROMPTS, "--questions": QUESTIONS}
    options: list[str] = []
    for option, lines in files.items():
        path = folder / f"{option[2:]}.jsonl"
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        options += [option, str(path)]
    return tuple(options)


def test_a_target_and_pytorch_do_the_same(
    cli: Cli, bundle: Path, reference_folder: Path, tasks: tuple[str, ...], tmp_path: Path
) -> None:
    out = tmp_path / "evaluation"
    options = ("--target", "litert-cpu", "--checkpoint", reference_folder, "--limit", 2, "--out", out)
    done = cli("evaluate", bundle, *tasks, *FAST, *options, "--json")
    assert done.code == 0, done.err
    found = json.loads(done.out)
    assert list(found["models"]) == ["torch", "litert-cpu"]
    ours = found["models"]["litert-cpu"]
    assert ours["drawn"]["of"] == ours["exact"]["of"] == ours["agreement"]["passed"] == 2
    assert ours["psnr"]["least"] > 50
    assert ours["drawn_difference"]["gained"] == ours["drawn_difference"]["lost"] == 0
    record = Evaluation.read(out)
    assert record.settings.steps == 1
    for name, run in record.models.items():
        assert [drawn.seed for drawn in run.drawings] == [0, 1]
        for drawn in run.drawings:
            assert drawn.picture.startswith(f"pictures/{name}/")
            with Image.open(out / drawn.picture) as picture:
                assert picture.mode == "RGB"
    page = tmp_path / "page.html"
    assert cli("report", bundle, "--evaluation", out, "--out", page).code == 0
    assert "two blue squares" in page.read_text(encoding="utf-8")


def test_tables_say_what_was_scored(cli: Cli, bundle: Path, tasks: tuple[str, ...]) -> None:
    done = cli("evaluate", bundle, *tasks, *FAST, "--target", "litert-cpu", "--limit", 1)
    assert done.code == 0, done.err
    assert "litert-cpu" in done.out
    assert "0/1" in done.out
    assert "give --checkpoint" in done.out


def test_a_bundle_without_tasks_says_what_to_give(cli: Cli, bundle: Path) -> None:
    cli("evaluate", bundle).refused("no tasks came with this model", "--prompts", "--questions")


def test_wrong_requests_are_refused(
    cli: Cli, bundle: Path, reference_folder: Path, tasks: tuple[str, ...], tmp_path: Path
) -> None:
    cli("evaluate", *tasks).refused("say which model")
    cli("evaluate", bundle, *tasks, "--target", "litert").refused("litert-cpu")
    cli("evaluate", bundle, *tasks, "--target", "torch").refused("--checkpoint")
    cli("evaluate", bundle, *tasks, "--judge", "shape").refused("Did you mean 'shapes'")
    cli("evaluate", bundle, *tasks, "--steps", "0").refused("steps")
    cli("evaluate", bundle, *tasks, "--out", bundle / "evaluation").refused("lies in the bundle")
    (tmp_path / "kept").mkdir()
    cli("evaluate", bundle, *tasks, "--out", tmp_path / "kept").refused("exists already")
    other = Path(shutil.copytree(reference_folder, tmp_path / "other"))
    weights = bytearray((other / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (other / "model.safetensors").write_bytes(weights)
    cli("evaluate", bundle, *tasks, "--checkpoint", other).refused("was made from another checkpoint")


def test_a_prompt_that_no_detector_knows_is_refused_before_any_work(
    cli: Cli, bundle: Path, tmp_path: Path
) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"tag": "single_object", "prompt": "a bench", "include": [{"class": "bench"}]}\n')
    cli("evaluate", bundle, "--prompts", path).refused("'bench'", "--judge none")


def test_compare_puts_targets_side_by_side(
    cli: Cli, bundle: Path, reference_folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "sheet.png"
    prompts = ("--prompt", "a cat", "--prompt", "a house")
    options = ("--target", "litert-cpu", "--checkpoint", reference_folder, "--out", out, *FAST)
    done = cli("compare", bundle, *prompts, *options)
    assert (done.code, done.out) == (0, f"{out}\n"), done.err
    with Image.open(out) as sheet:
        assert sheet.width > 2 * 256
        assert sheet.height > 2 * 256
        left, right = sheet.crop((16, 56, 272, 312)), sheet.crop((288, 56, 544, 312))
        assert len(left.getcolors(1 << 16) or ()) > 100
        # One seed: the same picture in both columns, up to rounding.
        difference = max(abs(a - b) for a, b in zip(left.tobytes(), right.tobytes(), strict=True))
        assert difference <= 8
    cli("compare", bundle, *prompts, "--out", out).refused("--overwrite")
