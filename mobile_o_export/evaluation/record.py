"""``evaluation.json``: what models drew and answered when they were given the same tasks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final, Literal, Self

from pydantic import Field

from mobile_o_export.errors import UsageError
from mobile_o_export.members import MemberName, Members, PlainKey
from mobile_o_export.pipelines.noise import LARGEST_SEED
from mobile_o_export.pipelines.schedule import MOST_STEPS
from mobile_o_export.strict import Finite, Strict, Versioned

SCHEMA: Final = 1
RECORD = "evaluation.json"
PICTURES = "pictures"


class Drawn(Strict):
    """What a model drew for one prompt.

    Attributes:
        passed: the judge's verdict; None where no judge was asked.
        reason: what the judge missed.
        picture: its PNG, relative to the record.
    """

    tag: str
    prompt: str
    seed: int = Field(ge=0, le=LARGEST_SEED)
    passed: bool | None
    reason: str
    picture: MemberName


class Answered(Strict):
    """What a model answered to one question; ``exact`` if it is the expected answer."""

    image: MemberName
    question: str
    expected: str
    answer: str
    exact: bool


class ModelRun(Strict):
    """One model's drawings and answers, in the tasks' order.

    Attributes:
        runtimes: what computed each component.
        seconds: spent on ``drawings`` and ``answers``.
    """

    runtimes: dict[str, str]
    drawings: tuple[Drawn, ...]
    answers: tuple[Answered, ...]
    seconds: dict[str, Finite]


class Settings(Strict):
    """What has to be equal for two runs to be comparable.

    Attributes:
        checkpoint: digest of the weights.
        tasks: digest of the tasks.
        judge: name of the detector behind the judge, or ``none``.
        seed: of the first prompt; the next one's is one higher.
    """

    checkpoint: str
    tasks: str
    judge: str
    steps: int = Field(ge=1, le=MOST_STEPS)
    guidance: Finite
    seed: int = Field(ge=0, le=LARGEST_SEED)


class Evaluation(Strict):
    """The record: ``models`` by target name, PyTorch's as ``torch``.

    Attributes:
        bundle: digest of the manifest of the bundle that the targets are of; empty for PyTorch alone.
    """

    schema_version: Literal[1] = SCHEMA
    bundle: str
    settings: Settings
    models: dict[PlainKey, ModelRun]

    @classmethod
    def read(cls, folder: Path) -> Self:
        """The record in ``folder``.

        Raises:
            UsageError: there is none, or one of another version.
        """
        members = Members(folder, UsageError)
        if not members.has(RECORD):
            raise UsageError(
                f"{folder}: holds no {RECORD}. Give a folder that 'mobile-o-export evaluate --out' wrote."
            )
        if members.json(RECORD, Versioned).schema_version != SCHEMA:
            raise UsageError(f"{folder / RECORD}: is of another version. Evaluate again.")
        return members.json(RECORD, cls)

    def write(self, folder: Path) -> None:
        """Writes it into the existing ``folder``."""
        content = json.dumps(self.model_dump(mode="json"), indent=1, ensure_ascii=False) + "\n"
        (folder / RECORD).write_text(content, encoding="utf-8")
