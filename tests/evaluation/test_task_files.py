"""Task files: what is read, and what is said of one that cannot be."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngImageFile

from mobile_o_export.bundle.configs import copy_tasks
from mobile_o_export.errors import CheckpointError, UsageError
from mobile_o_export.evaluation.tasks import Tasks
from mobile_o_export.pipelines.preprocessing import load_picture
from mobile_o_export.png import MOST_PIXELS

PROMPT = '{"tag": "counting", "prompt": "two cats", "include": [{"class": "cat", "count": 2}]}\n'
QUESTION = '{"image": "a.png", "question": "What?", "answer": "that"}\n'


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    prompts, questions = tmp_path / "p.jsonl", tmp_path / "q.jsonl"
    prompts.write_text(PROMPT)
    questions.write_text(QUESTION)
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    return prompts, questions


def test_a_line_of_genevals_own_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "evaluation_metadata.jsonl"
    path.write_text(
        '{"tag": "position", "include": [{"class": "bench", "count": 1}, {"class": "dog", "count": 1, '
        '"position": ["left of", 0]}], "prompt": "a photo of a dog left of a bench"}\n\n'
        '{"tag": "counting", "include": [{"class": "clock", "count": 2}], '
        '"exclude": [{"class": "clock", "count": 3}], "prompt": "a photo of two clocks"}\n'
    )
    tasks = Tasks.read(path, None)
    assert [task.tag for task in tasks.drawings] == ["position", "counting"]
    assert tasks.drawings[0].include[1].position == ("left of", 0)
    assert tasks.drawings[1].exclude[0].count == 3
    assert tasks.questions == ()


def test_the_digest_covers_prompts_questions_and_pictures(files: tuple[Path, Path]) -> None:
    prompts, questions = files
    before = Tasks.read(prompts, questions).digest
    assert Tasks.read(prompts, questions).digest == before
    Image.new("RGB", (4, 4), "red").save(prompts.parent / "a.png")
    after = Tasks.read(prompts, questions).digest
    assert after != before
    prompts.write_text(PROMPT.replace("two", "2"))
    assert Tasks.read(prompts, questions).digest not in (before, after)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("not json", "line 2: is not JSON"),
        ("[1]", "line 2"),
        ('{"tag": "x", "prompt": "p"}', "line 2: include"),
        ('{"tag": "x", "prompt": "p", "include": []}', "line 2: include"),
        ('{"tag": "x", "promt": "p", "include": [{"class": "a"}]}', "'prompt'"),
        ('{"tag": "x", "prompt": "p", "include": [{"class": "a", "count": 0}]}', "line 2: include.0.count"),
    ],
)
def test_a_wrong_line_is_named(files: tuple[Path, Path], line: str, said: str) -> None:
    files[0].write_text(PROMPT + line + "\n")
    with pytest.raises(UsageError) as raised:
        Tasks.read(files[0], None)
    assert said in str(raised.value)


def test_what_is_missing_is_named(files: tuple[Path, Path]) -> None:
    prompts, questions = files
    (prompts.parent / "a.png").unlink()
    with pytest.raises(UsageError, match=r"a\.png"):
        Tasks.read(None, questions)
    questions.write_text("\n")
    with pytest.raises(UsageError, match="holds no task"):
        Tasks.read(None, questions)
    with pytest.raises(UsageError, match="cannot be read"):
        Tasks.read(prompts.parent / "none.jsonl", None)
    prompts.write_bytes(b"\xff\xfe")
    with pytest.raises(UsageError, match="UTF-8"):
        Tasks.read(prompts, None)


@pytest.mark.parametrize("links", [False, True])
def test_tasks_that_came_with_a_model_may_be_links_in_a_checkpoint_only(tmp_path: Path, links: bool) -> None:
    """As Hugging Face's cache lays it out: snapshots/<revision>/ of links into blobs/."""
    blobs, folder = tmp_path / "blobs", tmp_path / "snapshots" / "0123" / "evaluation"
    blobs.mkdir()
    folder.mkdir(parents=True)
    (blobs / "q").write_text(QUESTION)
    Image.new("RGB", (4, 4)).save(blobs / "a", "PNG")
    (folder / "questions.jsonl").symlink_to("../../../blobs/q")
    (folder / "a.png").symlink_to("../../../blobs/a")
    if links:
        tasks = Tasks.own(folder, links=True)
        assert tasks is not None
        assert [question.image for question in tasks.questions] == ["a.png"]
        assert tasks.digest == Tasks.read(None, folder / "questions.jsonl").digest
    else:
        with pytest.raises(UsageError, match=r"questions\.jsonl: is a link"):
            Tasks.own(folder, links=False)
    assert Tasks.own(tmp_path / "none", links=links) is None


@pytest.mark.parametrize(
    ("image", "said"),
    [("../a.png", "line 1: image: '../a.png' is not a name of a file below the folder: it leads out of it")],
)
def test_a_picture_s_name_leads_nowhere_else(files: tuple[Path, Path], image: str, said: str) -> None:
    files[1].write_text(QUESTION.replace("a.png", image))
    with pytest.raises(UsageError) as raised:
        Tasks.read(None, files[1])
    assert said in str(raised.value)


def test_a_large_picture_is_refused_before_it_is_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.new("1", (8_000, 6_000)).save(tmp_path / "a.png")

    def fail(_: object) -> None:
        raise AssertionError("decoded")

    monkeypatch.setattr(PngImageFile, "load", fail)
    with pytest.raises(UsageError, match="is 8000 × 6000 pixels, more than 40 million"):
        load_picture(tmp_path / "a.png", MOST_PIXELS)


def checkpoint_with(folder: Path) -> Path:
    tasks = folder / "evaluation"
    (tasks / "inner").mkdir(parents=True)
    (tasks / "questions.jsonl").write_text(QUESTION)
    (tasks / "inner" / "b.png").write_bytes(b"b")
    return tasks


def test_a_checkpoint_s_tasks_are_copied_from_a_cache_of_links(tmp_path: Path) -> None:
    tasks = checkpoint_with(tmp_path / "snapshots" / "0123")
    (tmp_path / "blobs").mkdir()
    (tmp_path / "blobs" / "a").write_bytes(b"a")
    (tasks / "a.png").symlink_to("../../../blobs/a")
    copy_tasks(tasks, tmp_path / "copy")
    copied = {
        path.relative_to(tmp_path / "copy").as_posix(): path.read_bytes()
        for path in (tmp_path / "copy").rglob("*")
        if path.is_file() and not path.is_symlink()
    }
    assert copied == {"a.png": b"a", "inner/b.png": b"b", "questions.jsonl": QUESTION.encode()}


@pytest.mark.parametrize("kind", ["file", "folder", "pipe"])
def test_nothing_from_elsewhere_gets_into_a_bundle(tmp_path: Path, kind: str) -> None:
    tasks = checkpoint_with(tmp_path / "checkpoint")
    (tmp_path / "secret").write_text("the user's")
    if kind == "pipe":
        os.mkfifo(tasks / "a.png")
    else:
        (tasks / "a.png").symlink_to(tmp_path / "secret" if kind == "file" else tasks / "inner")
    said = {
        "file": "is a link out of the checkpoint",
        "folder": "is a folder",
        "pipe": "is not a regular file",
    }
    with pytest.raises(CheckpointError, match=rf"a\.png: {said[kind]}"):
        copy_tasks(tasks, tmp_path / "copy")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"tag": "a", "tag": "b"}', "p.jsonl, line 2: is not JSON: the key 'tag' occurs twice"),
        ('{"tag": NaN}', "p.jsonl, line 2: is not JSON: NaN is not a number"),
        ("1" * 5000, "p.jsonl, line 2: is not JSON: an integer has more than 300 digits"),
        (
            PROMPT.replace('"count": 2', '"count": 1000000000').strip(),
            "line 2: include.0.count: Input should be",
        ),
    ],
)
def test_a_line_that_is_no_json_of_ours(files: tuple[Path, Path], line: str, message: str) -> None:
    files[0].write_text(PROMPT + line + "\n")
    with pytest.raises(UsageError) as caught:
        Tasks.read(files[0], None)
    assert message in str(caught.value)
    assert caught.value.exit_code == 2


def test_a_text_may_hold_what_python_calls_the_end_of_a_line(files: tuple[Path, Path]) -> None:
    files[0].write_text(PROMPT.replace("two cats", "two\u2028cats"))
    assert Tasks.read(files[0], None).drawings[0].prompt == "two\u2028cats"
