"""What a report is about: everything that a bundle folder, and an evaluation of it, say."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mobile_o_export.bundle.layout import LICENCE_NOTICE
from mobile_o_export.bundle.manifest import (
    EVALUATION_FOLDER,
    PARITY_REPORT,
    Manifest,
    manifest_digest,
    read_manifest,
)
from mobile_o_export.bundle.outcomes import Outcome, Outcomes
from mobile_o_export.bundle.verdicts import ParityReport
from mobile_o_export.errors import BundleError
from mobile_o_export.members import Members
from mobile_o_export.parity.chain import CHAIN
from mobile_o_export.parity.judge import Row
from mobile_o_export.pipelines.pipeline import TORCH
from mobile_o_export.pipelines.prompts import Task
from mobile_o_export.report.evaluated import EvaluationContent
from mobile_o_export.report.pictures import Picture
from mobile_o_export.tensors import Role


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
    members = Members(folder, BundleError)
    report = members.json(PARITY_REPORT, ParityReport)
    drawn = _side(manifest, "vae_decoder")
    notice = members.read(LICENCE_NOTICE).decode(errors="replace") if members.has(LICENCE_NOTICE) else None
    evaluated = None
    if evaluation is not None:
        held = members.has(EVALUATION_FOLDER)
        tasks = members.tree(EVALUATION_FOLDER) if held else folder / EVALUATION_FOLDER
        evaluated = EvaluationContent.read(evaluation, tasks, manifest.checkpoint.digest, digest, drawn)
    return ReportContent(
        manifest=manifest,
        manifest_digest=digest,
        rows=report.rows,
        chains=_chains(members, Outcomes.read(folder), _side(manifest, "vision_encoder"), drawn),
        evaluation=evaluated,
        licence=notice,
    )


def _side(manifest: Manifest, component: str) -> int | None:
    """How many pixels wide and high the pictures of a ``component`` are; None where it is not in the bundle.

    A picture is [1, 3, Y, X], of the inputs or outputs of the one function of its component.
    """
    specs = [
        spec
        for function in manifest.functions.get(component, ())
        for spec in (*function.inputs, *function.outputs)
    ]
    sides = [spec.shape[-1] for spec in specs if spec.role is Role.IMAGE]
    return next((side for side in sides if isinstance(side, int)), None)


def _chains(
    members: Members, record: Outcomes, given_side: int | None, side: int | None
) -> tuple[Chain, ...]:
    """Every chain with its pictures, those given and those drawn of the sizes that the model has for them."""
    chains = []
    for task, case in dict.fromkeys((outcome.task, outcome.case) for outcome in record.outcomes):
        own = [outcome for outcome in record.outcomes if (outcome.task, outcome.case) == (task, case)]
        results = {outcome.target: _result(members, outcome, side) for outcome in own}
        given = next((outcome.given for outcome in own if outcome.given is not None), None)
        chains.append(
            Chain(
                task=task,
                case=case,
                prompt=own[0].prompt,
                given=None if given is None else Picture.read(members, given, given_side),
                reference=results.pop(TORCH, None),
                results=results,
            )
        )
    return tuple(chains)


def _result(members: Members, outcome: Outcome, side: int | None) -> Result:
    name = outcome.picture
    return Result(None if name is None else Picture.read(members, name, side), outcome.answer)
