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
from mobile_o_export.members import MemberName, Members
from mobile_o_export.strict import ModelT, Strict, check, parse_json

PROMPTS = "prompts.jsonl"
QUESTIONS = "questions.jsonl"

_REMEDY = "Correct the tasks, or get them again."

_File = tuple[Path, bytes]
"""What a file of tasks is called in messages, and what it holds."""


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
    """A line of ``questions.jsonl``; ``image`` is the name of a file below the folder of this one."""

    image: MemberName
    question: str = Field(min_length=1)
    answer: str = Field(min_length=1)


@dataclass(frozen=True)
class Tasks:
    """What is asked, and where its pictures lie.

    Attributes:
        images: the files that ``Question.image`` names.
        digest: over every prompt, question and picture, hex SHA-256.
    """

    drawings: tuple[DrawingTask, ...]
    questions: tuple[Question, ...]
    images: Members
    digest: str

    @classmethod
    def read(cls, prompts: Path | None, questions: Path | None) -> Tasks:
        """The tasks in two files of the user's; either may be left out.

        Raises:
            UsageError: a file or picture is missing, or a line is not what it should be.
        """
        images = Members(Path() if questions is None else questions.parent, UsageError, _REMEDY, links=True)
        return cls._of(_named(prompts), _named(questions), images)

    @classmethod
    def own(cls, folder: Path, *, links: bool) -> Tasks | None:
        """The tasks that came with a model, in ``folder``; None where there are none.

        ``links``: whether the files may be links, as in Hugging Face's cache of checkpoints.

        Raises:
            UsageError: as :meth:`read`.
        """
        members = Members(folder, UsageError, _REMEDY, links=links)
        prompts, questions = (
            (folder / name, members.read(name)) if members.has(name) else None
            for name in (PROMPTS, QUESTIONS)
        )
        if prompts is None and questions is None:
            return None
        return cls._of(prompts, questions, members)

    @classmethod
    def _of(cls, prompts: _File | None, questions: _File | None, images: Members) -> Tasks:
        drawings = () if prompts is None else tuple(_lines(*prompts, DrawingTask))
        asked = () if questions is None else tuple(_lines(*questions, Question))
        content = sha256()
        for file in (prompts, questions):
            content.update((b"" if file is None else file[1]) + b"\0")
        for name in dict.fromkeys(question.image for question in asked):
            content.update(sha256(images.read(name)).digest())
        return cls(drawings, asked, images, content.hexdigest())


def _named(path: Path | None) -> _File | None:
    """A file that the user named, which may be anything that can be read."""
    try:
        return None if path is None else (path, path.read_bytes())
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror}. Check the path.") from error


def _lines(path: Path, content: bytes, model: type[ModelT]) -> Iterator[ModelT]:
    """Each line of the JSONL file ``path`` as a ``model``."""
    try:
        # Not splitlines(), which also breaks a line at characters that JSON allows in a text, such as U+2028.
        lines = content.decode().split("\n")
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
