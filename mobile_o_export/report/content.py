"""What a report is about: everything that a bundle folder, and an evaluation of it, say."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

from pydantic import ConfigDict, Field, model_validator

from mobile_o_export.bundle.configs import LICENCE_NOTICE
from mobile_o_export.bundle.manifest import (
    EVALUATION_FOLDER,
    PARITY_REPORT,
    Manifest,
    manifest_digest,
    read_manifest,
)
from mobile_o_export.bundle.outcomes import Outcome, Outcomes
from mobile_o_export.errors import BundleError
from mobile_o_export.parity.chain import CHAIN
from mobile_o_export.parity.judge import Row, Status, verdict
from mobile_o_export.parity.report import drift
from mobile_o_export.pipelines.pipeline import TORCH
from mobile_o_export.pipelines.prompts import Task
from mobile_o_export.report.evaluated import EvaluationContent
from mobile_o_export.report.pictures import Picture
from mobile_o_export.strict import Finite, Strict, read_json


class Drift(Strict):
    """How near one chain's latent was to the golden's after every step."""

    target: str
    task: str
    case: str
    snr_db: tuple[Finite | None, ...]


class ParityReport(Strict):
    """``parity.json``; its status and drift have to follow from its rows."""

    model_config = ConfigDict(populate_by_name=True)

    version: Literal[1] = Field(alias="schema")
    status: Status
    drift: tuple[Drift, ...]
    rows: tuple[Row, ...]

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.status is not verdict(self.rows):
            raise ValueError(f"says {self.status}, and its rows {verdict(self.rows)}")
        if self.drift != tuple(Drift.model_validate(item) for item in drift(self.rows)):
            raise ValueError("its drift is not that of its rows")
        return self


@dataclass(frozen=True)
class Result:
    """What came out of a chain: a picture or an answer."""

    picture: Picture | None
    answer: str | None


@dataclass(frozen=True)
class Chain:
    """One chain, and what PyTorch and each target made of it.

    Attributes:
        task: ``generate``, ``edit`` or ``describe``.
        prompt: the user's words.
        given: the picture that it starts from.
        reference: PyTorch's.
        results: each target's, by its name.
    """

    task: str
    case: str
    prompt: str
    given: Picture | None
    reference: Result | None
    results: Mapping[str, Result]

    @property
    def draws(self) -> bool:
        """Whether a picture comes out."""
        return self.task != Task.DESCRIBE


@dataclass(frozen=True)
class ReportContent:
    """Everything that the page shows.

    Attributes:
        manifest_digest: hex SHA-256 of ``manifest.json``.
        rows: the verdicts of ``parity.json``.
        chains: those whose pictures and answers were kept.
        evaluation: the task scores, if there was an evaluation.
        licence: the notice that goes with the weights.
    """

    manifest: Manifest
    manifest_digest: str
    rows: tuple[Row, ...]
    chains: tuple[Chain, ...]
    evaluation: EvaluationContent | None
    licence: str | None

    def rows_of(self, target: str, component: str | None = None) -> tuple[Row, ...]:
        """The verdicts on one target, or on one component of it."""
        return tuple(row for row in self.rows if row.target == target and component in (None, row.component))

    def rows_of_chain(self, target: str, chain: Chain) -> tuple[Row, ...]:
        """The verdicts on one whole chain."""
        own = self.rows_of(target, CHAIN)
        return tuple(row for row in own if (row.function, row.case) == (chain.task, chain.case))

    def targets_of_chain(self, chain: Chain) -> list[str]:
        """The targets that ran a chain, or tried to."""
        tried = [name for name in self.manifest.targets if self.rows_of_chain(name, chain)]
        return list(dict.fromkeys([*tried, *chain.results]))


def gather(folder: Path, evaluation: Path | None) -> ReportContent:
    """What the bundle in ``folder`` and an ``evaluation`` folder say; the files' hashes are not checked here.

    Raises:
        BundleError: there is no bundle, or a report or picture in it is missing or damaged.
        DamagedBundleError: its manifest is not what was written.
        UsageError: the evaluation is missing, damaged, or of another bundle.
    """
    manifest, digest = read_manifest(folder), manifest_digest(folder)
    report = read_json(folder / PARITY_REPORT, ParityReport, BundleError)
    notice = folder / LICENCE_NOTICE
    evaluated = None
    if evaluation is not None:
        tasks = folder / EVALUATION_FOLDER
        evaluated = EvaluationContent.read(evaluation, tasks, manifest.checkpoint.digest, digest)
    return ReportContent(
        manifest=manifest,
        manifest_digest=digest,
        rows=report.rows,
        chains=_chains(folder, Outcomes.read(folder)),
        evaluation=evaluated,
        licence=notice.read_text(encoding="utf-8", errors="replace") if notice.is_file() else None,
    )


def _chains(folder: Path, record: Outcomes) -> tuple[Chain, ...]:
    chains = []
    for task, case in dict.fromkeys((outcome.task, outcome.case) for outcome in record.outcomes):
        own = [outcome for outcome in record.outcomes if (outcome.task, outcome.case) == (task, case)]
        results = {outcome.target: _result(folder, outcome) for outcome in own}
        given = next((outcome.given for outcome in own if outcome.given is not None), None)
        chains.append(
            Chain(
                task=task,
                case=case,
                prompt=own[0].prompt,
                given=None if given is None else Picture.read(folder, given, BundleError),
                reference=results.pop(TORCH, None),
                results=results,
            )
        )
    return tuple(chains)


def _result(folder: Path, outcome: Outcome) -> Result:
    name = outcome.picture
    return Result(None if name is None else Picture.read(folder, name, BundleError), outcome.answer)
