"""An evaluation as the report shows it: every model's scores, and examples of what it drew and answered."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from mobile_o_export.errors import UsageError
from mobile_o_export.evaluation.record import Answered, Drawn, Evaluation, ModelRun, Settings
from mobile_o_export.evaluation.score import Scores, score
from mobile_o_export.evaluation.tasks import Tasks
from mobile_o_export.members import Members
from mobile_o_export.pipelines.pipeline import TORCH
from mobile_o_export.png import MOST_PIXELS
from mobile_o_export.report.pictures import Picture

MOST_EXAMPLES = 8
MOST_QUESTIONS = 10
EXAMPLE_SIDE = 256
"""Pixels that an example is made smaller to: there may be many, and they show tasks, not parity."""


@dataclass(frozen=True)
class Example:
    """One prompt, and what each model drew for it: its record and its picture, by the model's name."""

    drawings: Mapping[str, tuple[Drawn, Picture]]

    @property
    def task(self) -> Drawn:
        """What was asked: the same in each model's record."""
        return next(iter(self.drawings.values()))[0]


@dataclass(frozen=True)
class AskedQuestion:
    """One question, each model's answer to it by the model's name; its picture where the bundle has it."""

    answers: Mapping[str, Answered]
    picture: Picture | None

    @property
    def task(self) -> Answered:
        """What was asked: the same in each model's record."""
        return next(iter(self.answers.values()))


@dataclass(frozen=True)
class EvaluationContent:
    """Scores by model, PyTorch's first, and what illustrates them.

    Attributes:
        settings: what was equal for all.
        examples: those that models' verdicts differ on first, then the first of each tag.
        questions: those that models answered differently, then those that one answered wrong.
        questions_left_out: how many more of them there are.
    """

    settings: Settings
    runs: Mapping[str, ModelRun]
    scores: Mapping[str, Scores]
    examples: tuple[Example, ...]
    questions: tuple[AskedQuestion, ...]
    questions_left_out: int

    @classmethod
    def read(cls, folder: Path, tasks: Path, checkpoint: str, bundle: str, side: int | None) -> Self:
        """The evaluation in ``folder`` of the bundle whose manifest has the digest ``bundle``.

        PyTorch's alone, which is of no bundle, has to be of the weights with the digest ``checkpoint``.

        Questions' pictures are taken from the folder ``tasks`` if those are the tasks that were given.
        Drawings have to be of ``side`` × ``side`` pixels, if that is known.

        Raises:
            UsageError: it is missing, damaged, empty or of other weights.
        """
        record = Evaluation.read(folder)
        if record.settings.checkpoint != checkpoint:
            raise UsageError(
                f"{folder}: evaluates another checkpoint ({record.settings.checkpoint[:19]}…, not "
                f"{checkpoint[:19]}…). Evaluate this bundle, or leave --evaluation out."
            )
        if record.bundle not in ("", bundle):
            raise UsageError(
                f"{folder}: evaluates another export of this checkpoint. Evaluate this bundle, or leave "
                "--evaluation out."
            )
        if not record.models:
            raise UsageError(f"{folder}: holds no model's run. Evaluate a target of the bundle.")
        runs = dict(sorted(record.models.items(), key=lambda item: item[0] != TORCH))
        _require_same_tasks(folder, runs)
        remarkable = _remarkable(runs)
        images = _images(tasks, record.settings.tasks)
        members = Members(folder, UsageError)
        return cls(
            settings=record.settings,
            runs=runs,
            scores={name: score(run, folder, runs.get(TORCH), folder, side) for name, run in runs.items()},
            examples=tuple(_example(members, side, runs, index) for index in _exemplary(list(runs.values()))),
            questions=tuple(_question(images, runs, index) for index in remarkable[:MOST_QUESTIONS]),
            questions_left_out=max(0, len(remarkable) - MOST_QUESTIONS),
        )


def _require_same_tasks(folder: Path, runs: Mapping[str, ModelRun]) -> None:
    asked = {
        (
            tuple((drawn.tag, drawn.prompt, drawn.seed) for drawn in run.drawings),
            tuple((answered.image, answered.question, answered.expected) for answered in run.answers),
        )
        for run in runs.values()
    }
    if len(asked) > 1:
        raise UsageError(f"{folder}: its models were given different tasks. Evaluate again.")


def _images(tasks: Path, digest: str) -> Members | None:
    """The questions' pictures; None if ``tasks`` is missing or not what was asked."""
    found = Tasks.own(tasks, links=False)
    return found.images if found is not None and found.digest == digest else None


def _exemplary(runs: Sequence[ModelRun]) -> list[int]:
    """Which drawings to show, in the tasks' order."""
    tasks = runs[0].drawings
    disputed = [index for index in range(len(tasks)) if len({run.drawings[index].passed for run in runs}) > 1]
    first_of_tag = {drawn.tag: index for index, drawn in reversed(list(enumerate(tasks)))}
    wanted = dict.fromkeys([*disputed, *sorted(first_of_tag.values()), *range(len(tasks))])
    return sorted(list(wanted)[:MOST_EXAMPLES])


def _remarkable(runs: Mapping[str, ModelRun]) -> list[int]:
    """Which answers to show: those that differ between models, then those that one got wrong."""
    answers = list(zip(*(run.answers for run in runs.values()), strict=True))
    differing = [index for index, own in enumerate(answers) if len({answer.answer for answer in own}) > 1]
    wrong = [index for index, own in enumerate(answers) if not all(answer.exact for answer in own)]
    return list(dict.fromkeys([*differing, *wrong]))


def _example(members: Members, side: int | None, runs: Mapping[str, ModelRun], index: int) -> Example:
    drawn = {name: run.drawings[index] for name, run in runs.items()}
    return Example(
        {
            name: (own, Picture.read(members, own.picture, side).within(EXAMPLE_SIDE))
            for name, own in drawn.items()
        }
    )


def _question(images: Members | None, runs: Mapping[str, ModelRun], index: int) -> AskedQuestion:
    answers = {name: run.answers[index] for name, run in runs.items()}
    image = next(iter(answers.values())).image
    picture = None
    if images is not None and image.lower().endswith(".png"):
        picture = Picture.read(images, image, most_pixels=MOST_PIXELS).within(EXAMPLE_SIDE)
    return AskedQuestion(answers, picture)
