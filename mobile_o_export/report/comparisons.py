"""The parity table: a line a component with its worst level, and every compared output on demand."""

from __future__ import annotations

from collections.abc import Sequence

from mobile_o_export.bundle.manifest import TargetEntry
from mobile_o_export.parity.chain import CHAIN
from mobile_o_export.parity.judge import NO_RUNTIME, Row, Status
from mobile_o_export.report.badges import badge
from mobile_o_export.report.charts import level_bar
from mobile_o_export.report.content import ReportContent
from mobile_o_export.report.judged import component_name, nearest_to_gate, verdict_of
from mobile_o_export.report.markup import Html, cell, details, joined, number, row, section, small, table, tag
from mobile_o_export.report.quantities import DASH, count, decibels, fixed, limit, significant

ABOUT = (
    "Each output of the exported files against PyTorch’s on the same recorded inputs. The signal-to-noise "
    "ratio (SNR) is 10·log₁₀ of the signal’s energy over the error’s: 40 dB is an error of 1 % of the "
    "signal, 60 dB of 0.1 %. Shown is the output that came nearest to its gate; the upright line is the "
    "gate."
)


def render(content: ReportContent) -> Html:
    """The section."""
    columns = ["component", "status", "#passed", "#worst SNR", "0 to 120 dB", "#gate", "precision", "run by"]
    bodies = [_target(content, name, len(columns)) for name in content.manifest.targets]
    return section(
        "parity",
        "Parity",
        ABOUT,
        table("Worst level of each component on each target", columns, *bodies, class_="broad"),
        *(_every_row(content, name) for name in content.manifest.targets),
    )


def _target(content: ReportContent, name: str, width: int) -> Html:
    entry = content.manifest.targets[name]
    heading = tag("tr", tag("th", name, colspan=width, scope="rowgroup", class_="group"))
    lines = [_component(entry, part, content.rows_of(name, part), width) for part in entry.components]
    chained = content.rows_of(name, CHAIN)
    return tag("tbody", heading, *lines, *([_component(entry, CHAIN, chained, width)] if chained else []))


def _component(entry: TargetEntry, name: str, rows: Sequence[Row], width: int) -> Html:
    component = entry.components.get(name)
    if component is not None and component.skipped is not None:
        return row(name, tag("td", f"skipped: {component.skipped}", colspan=width - 1, class_="quiet"))
    verdict = verdict_of(rows)
    level = nearest_to_gate(entry, rows)
    value, gate = (None, None) if level is None else (level.snr_db, level.gate_db)
    if component is not None and component.gate is not None:
        gate = component.gate.snr_db
    looser = component.gate.reason if component is not None and component.gate is not None else ""
    return row(
        component_name(name),
        cell(badge(verdict.status)),
        number(f"{verdict.passed:,} / {verdict.of:,}"),
        number(decibels(value)),
        cell(level_bar(value, gate, verdict.status)),
        number(limit(gate), *([small(looser)] if looser else [])),
        cell(_precision(component.recipe if component is not None else None)),
        cell(joined(dict.fromkeys(own.runtime for own in rows if own.runtime != NO_RUNTIME), ", ") or DASH),
    )


def _precision(precision: object | None) -> str:
    return DASH if precision is None else str(precision)


def _every_row(content: ReportContent, name: str) -> Html:
    rows = content.rows_of(name)
    if not rows:
        return Html()
    columns = ["component", "function", "case", "output", "status"]
    columns += ["#level", "#largest difference", "#cosine", "gate", "reason"]
    lines = [
        row(
            component_name(own.component),
            cell(own.function or DASH),
            cell(own.case or DASH),
            cell(own.output or DASH),
            cell(badge(own.status)),
            number(*_measured(own)),
            number(significant(own.max_abs)),
            number(fixed(own.cosine, 7)),
            cell(own.gate or DASH),
            tag("td", own.reason or DASH, class_="reason" if own.reason else None),
            class_=None if own.status is Status.PASSED else own.status.value,
        )
        for own in rows
    ]
    body = tag("tbody", *lines)
    return details(
        f"{name}: every output, {count(len(rows), 'row')}",
        table(f"Every output of {name}", columns, body, class_="dense every"),
    )


def _measured(own: Row) -> list[str]:
    """The SNR of a tensor; of an image its PSNR and SSIM, of an answer its identical tokens."""
    if own.psnr_db is not None:
        return [decibels(own.psnr_db), small(f"PSNR; SSIM {fixed(own.ssim, 4)}")]
    if own.identical_tokens is not None:
        return [count(own.identical_tokens, "token"), small("identical")]
    return [decibels(own.snr_db)]
