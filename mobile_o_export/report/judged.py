"""What rows add up to: a target's verdict, and the row that came nearest to its gate."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from mobile_o_export.bundle.manifest import TargetEntry
from mobile_o_export.parity.chain import CHAIN
from mobile_o_export.parity.judge import Row, Status
from mobile_o_export.report.content import ReportContent

CHAINS = "whole chains"


def component_name(name: str) -> str:
    """What the page calls a component of rows."""
    return CHAINS if name == CHAIN else name


@dataclass(frozen=True)
class Verdict:
    """What became of a target or a component: fail closed, as ``verify`` does.

    Attributes:
        passed, of: how many outputs, and of how many.
        reason: what is missing, where it is not rows that decided.
    """

    status: Status
    passed: int
    of: int
    reason: str = ""


@dataclass(frozen=True)
class Level:
    """A measured signal-to-noise ratio and the gate that it had to reach."""

    row: Row
    snr_db: float
    gate_db: float | None

    @property
    def margin_db(self) -> float:
        """By how much the gate was cleared; negative where it was missed."""
        return self.snr_db - (self.gate_db or 0.0)


def verdict_of(rows: Iterable[Row]) -> Verdict:
    """The verdict on ``rows``: failed without any, and as soon as one failed."""
    found = tuple(rows)
    statuses = {row.status for row in found}
    passed = sum(row.status is Status.PASSED for row in found)
    if not found:
        return Verdict(Status.FAILED, 0, 0, "nothing was compared")
    worst = next(s for s in (Status.FAILED, Status.NOT_RUN, Status.PASSED) if s in statuses)
    return Verdict(worst, passed, len(found))


def verdict_of_target(content: ReportContent, target: str) -> Verdict:
    """The verdict on one target: on its rows, and on there being some of every component that it holds."""
    exported = content.manifest.targets[target].exported
    found = verdict_of(content.rows_of(target))
    if not exported:
        return Verdict(Status.NOT_RUN, 0, 0, "every component is skipped")
    missing = [name for name in exported if not content.rows_of(target, name)]
    if missing:
        reason = f"nothing was compared of {', '.join(missing)}"
        return Verdict(Status.FAILED, found.passed, found.of, reason)
    return found


def verdict_of_bundle(content: ReportContent) -> Verdict:
    """The verdict on the bundle: passed only if all that it holds has passed."""
    entries = content.manifest.targets
    verdicts = [verdict_of_target(content, name) for name, entry in entries.items() if entry.exported]
    statuses = {verdict.status for verdict in verdicts} | {verdict_of(content.rows).status}
    worst = next(s for s in (Status.FAILED, Status.NOT_RUN, Status.PASSED) if s in statuses)
    return Verdict(worst, sum(row.status is Status.PASSED for row in content.rows), len(content.rows))


def gate_db(entry: TargetEntry, row: Row) -> float | None:
    """The least signal-to-noise ratio that the manifest asks of a row; None where it asks for none."""
    if row.component != CHAIN:
        gate = entry.components[row.component].gate if row.component in entry.components else None
        return None if gate is None else gate.snr_db
    if entry.chain_gate is None:
        return None
    if row.step is not None:
        return entry.chain_gate.latent_db
    return {
        "image_features": entry.chain_gate.image_features_db,
        "hidden_states": entry.chain_gate.hidden_states_db,
        "conditional": entry.chain_gate.conditioning_db,
        "unconditional": entry.chain_gate.conditioning_db,
        "logits": entry.chain_gate.logits_db,
    }.get(row.output)


def nearest_to_gate(entry: TargetEntry, rows: Iterable[Row]) -> Level | None:
    """The measured row that cleared its gate by the least; None where none was measured."""
    levels = [
        Level(row, row.snr_db, gate_db(entry, row))
        for row in rows
        if row.snr_db is not None and math.isfinite(row.snr_db)
    ]
    return min(levels, key=lambda level: level.margin_db, default=None)


def worst_image(rows: Iterable[Row]) -> Row | None:
    """The chain's image that is least like PyTorch's."""
    measured = [(row.psnr_db, row) for row in rows if row.psnr_db is not None and math.isfinite(row.psnr_db)]
    return min(measured, key=lambda pair: pair[0])[1] if measured else None
