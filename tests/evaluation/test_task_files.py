"""Task files: what is read, and what is said of one that cannot be."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from mobile_o_export.errors import UsageError
from mobile_o_export.evaluation.tasks import Tasks

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
