"""What to ask of a model: prompts with GenEval's tags, and questions about pictures with their answers.

A task folder holds ``prompts.jsonl``, ``questions.jsonl``, or both; pictures are named relative to it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from pydantic import ConfigDict, Field

from mobile_o_export.errors import UsageError
from mobile_o_export.strict import ModelT, Strict, check, parse_json

PROMPTS = "prompts.jsonl"
QUESTIONS = "questions.jsonl"


MOST_OBJECTS = 1000
"""In one picture."""


class Wanted(Strict):
    """Objects that a drawing should show, or should not: an entry of GenEval's ``include`` or ``exclude``.

    Attributes:
        name: of the class, ``"class"`` in the file.
        count: how many there have to be at least; in ``exclude``, how many there must not be.
        color: of every one that counts.
        position: how it lies to an earlier entry of ``include``: ``["left of", 0]``.
    """

    model_config = ConfigDict(populate_by_name=True)

    name: str = Field(alias="class")
    count: int = Field(default=1, ge=1, le=MOST_OBJECTS)
    color: str | None = None
    position: tuple[str, int] | None = None


class DrawingTask(Strict):
    """A line of ``prompts.jsonl``, in the form of GenEval's ``evaluation_metadata.jsonl``."""

    tag: str
    prompt: str = Field(min_length=1)
    include: tuple[Wanted, ...] = Field(min_length=1)
    exclude: tuple[Wanted, ...] = ()


class Question(Strict):
    """A line of ``questions.jsonl``; ``image`` is a path relative to the file."""

    image: str
    question: str = Field(min_length=1)
    answer: str = Field(min_length=1)


@dataclass(frozen=True)
class Tasks:
    """What is asked, and where its pictures lie.

    Attributes:
        images: the folder that ``Question.image`` starts from.
        digest: over every prompt, question and picture, hex SHA-256.
    """

    drawings: tuple[DrawingTask, ...]
    questions: tuple[Question, ...]
    images: Path
    digest: str

    @classmethod
    def read(cls, prompts: Path | None, questions: Path | None) -> Tasks:
        """The tasks in the two files; either may be left out.

        Raises:
            UsageError: a file or picture is missing, or a line is not what it should be.
        """
        drawings = () if prompts is None else tuple(_lines(prompts, DrawingTask))
        asked = () if questions is None else tuple(_lines(questions, Question))
        images = Path() if questions is None else questions.parent
        content = sha256()
        for file in (prompts, questions):
            content.update((b"" if file is None else file.read_bytes()) + b"\0")
        for name in dict.fromkeys(question.image for question in asked):
            path = images / name
            if not path.is_file():
                raise UsageError(f"{questions}: names the picture {name!r}, and there is no {path}.")
            content.update(sha256(path.read_bytes()).digest())
        return cls(drawings, asked, images, content.hexdigest())


def _lines(path: Path, model: type[ModelT]) -> Iterator[ModelT]:
    """Each line of the JSONL file ``path`` as a ``model``."""
    try:
        # Not splitlines(), which also breaks a line at characters that JSON allows in a text, such as U+2028.
        lines = path.read_text(encoding="utf-8").split("\n")
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror}. Check the path.") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: is not UTF-8 text. Give a JSONL file.") from error
    empty = True
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        empty = False
        where = f"{path}, line {number}"
        try:
            value = parse_json(line)
        except ValueError as error:
            raise UsageError(f"{where}: is not JSON: {error}. Give one JSON object a line.") from error
        yield check(value, model, where, UsageError)
    if empty:
        raise UsageError(f"{path}: holds no task. Give one JSON object a line.")
