"""Gives a model its tasks and records what it draws and answers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING

from mobile_o_export.errors import UsageError
from mobile_o_export.evaluation.judge import Detector, judge
from mobile_o_export.evaluation.record import PICTURES, Answered, Drawn, Evaluation, ModelRun, Settings
from mobile_o_export.evaluation.tasks import DrawingTask, Question, Tasks
from mobile_o_export.members import MemberName, Members
from mobile_o_export.pipelines.preprocessing import load_picture
from mobile_o_export.png import MOST_PIXELS
from mobile_o_export.progress import Say

if TYPE_CHECKING:
    from mobile_o_export.pipelines.pipeline import Pipeline

ANSWER_TOKENS = 64
"""The longest answer; those that are compared are a few words."""


@dataclass(frozen=True)
class Protocol:
    """How every model is asked.

    Attributes:
        steps: of a drawing.
        guidance: of a drawing.
        seed: of the first prompt; the next one's is one higher.
    """

    tasks: Tasks
    detector: Detector | None
    steps: int
    guidance: float
    seed: int

    def settings(self, checkpoint: str) -> Settings:
        """What has to be equal for runs to be comparable."""
        name = "none" if self.detector is None else self.detector.name
        return Settings(
            checkpoint=checkpoint,
            tasks=self.tasks.digest,
            judge=name,
            steps=self.steps,
            guidance=self.guidance,
            seed=self.seed,
        )


def run_model(open_model: Callable[[], Pipeline], protocol: Protocol, folder: Path, say: Say) -> ModelRun:
    """Everything that a model draws and answers; its pictures go into ``folder`` below ``pictures/``.

    The model is opened for drawing and once more for answering, so that memory holds the parts of one task.

    Raises:
        UsageError: a prompt does not fit, or a component is not there.
        GateError: the model computes NaN.
    """
    drawings: list[Drawn] = []
    answers: list[Answered] = []
    runtimes: dict[str, str] = {}
    seconds: dict[str, float] = {}
    tasks = protocol.tasks
    if tasks.drawings:
        started = monotonic()
        with open_model() as model:
            place = f"{PICTURES}/{model.target}"
            (folder / place).mkdir(parents=True, exist_ok=True)
            for index, task in enumerate(tasks.drawings):
                say(f"drawing {index + 1} of {len(tasks.drawings)}")
                drawings.append(_drawn(model, task, index, protocol, folder, place))
            runtimes |= model.runtimes
        seconds["drawings"] = monotonic() - started
    if tasks.questions:
        started = monotonic()
        with open_model() as model:
            for index, question in enumerate(tasks.questions):
                say(f"question {index + 1} of {len(tasks.questions)}")
                answers.append(_answered(model, question, tasks.images))
            runtimes |= model.runtimes
        seconds["answers"] = monotonic() - started
    return ModelRun(runtimes=runtimes, drawings=tuple(drawings), answers=tuple(answers), seconds=seconds)


def _drawn(
    model: Pipeline, task: DrawingTask, index: int, protocol: Protocol, folder: Path, place: str
) -> Drawn:
    seed = protocol.seed + index
    drawing = model.generate(task.prompt, seed=seed, steps=protocol.steps, guidance=protocol.guidance)
    image = drawing.picture
    picture = MemberName(f"{place}/{index:04}.png")
    image.save(folder / picture, optimize=True)
    passed, reason = None, ""
    if protocol.detector is not None:
        passed, reason = judge(task, protocol.detector.detect(image))
    return Drawn(tag=task.tag, prompt=task.prompt, seed=seed, passed=passed, reason=reason, picture=picture)


def _answered(model: Pipeline, question: Question, images: Members) -> Answered:
    picture = load_picture(images.file(question.image), MOST_PIXELS)
    answer = model.describe(picture, question.question, max_tokens=ANSWER_TOKENS)
    for _ in answer:
        pass
    return Answered(
        image=question.image,
        question=question.question,
        expected=question.answer,
        answer=answer.text.strip(),
        exact=normalised(answer.text) == normalised(question.answer),
    )


def normalised(answer: str) -> str:
    """An answer without what does not change its meaning: case, spaces around it, a full stop at its end."""
    return " ".join(answer.casefold().split()).removesuffix(".")


def reusable(recorded: Evaluation, name: str, settings: Settings, tasks: Tasks) -> ModelRun | None:
    """The run of the model ``name`` in ``recorded``, cut to ``tasks``, if it was asked just that."""
    run = recorded.models.get(name)
    if run is None or recorded.settings != settings:
        return None
    cut = run.model_copy(
        update={
            "drawings": run.drawings[: len(tasks.drawings)],
            "answers": run.answers[: len(tasks.questions)],
        }
    )
    asked = [task.prompt for task in tasks.drawings], [question.question for question in tasks.questions]
    found = [drawn.prompt for drawn in cut.drawings], [answered.question for answered in cut.answers]
    return cut if asked == found else None


def copy_pictures(run: ModelRun, name: str, source: Path, folder: Path) -> ModelRun:
    """The run of the model ``name`` with its pictures copied from beside its record into ``folder``.

    They get the names that they would have if the model had drawn them here, whatever the record calls them.

    Raises:
        UsageError: one is missing, or not a file of ``source``.
    """
    members = Members(source, UsageError, "Get the bundle again.")
    place = f"{PICTURES}/{name}"
    (folder / place).mkdir(parents=True, exist_ok=True)
    drawings = []
    for index, drawn in enumerate(run.drawings):
        picture = MemberName(f"{place}/{index:04}.png")
        (folder / picture).write_bytes(members.read(drawn.picture))
        drawings.append(drawn.model_copy(update={"picture": picture}))
    return run.model_copy(update={"drawings": tuple(drawings)})
