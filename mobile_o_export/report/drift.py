"""Drift: how far the latent moves away from PyTorch's, step by step, in every chain that draws."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mobile_o_export.parity.chain import CHAIN
from mobile_o_export.report.charts import Range, line_chart, sample
from mobile_o_export.report.content import ReportContent
from mobile_o_export.report.markup import Html, details, number, row, section, table, tag
from mobile_o_export.report.quantities import DASH, decibels

ABOUT = (
    "SNR of the latent against PyTorch’s after each denoising step, from the same noise: every step adds "
    "its own error to what the steps before it left. The level line marked “gate” is what every step has to "
    "reach."
)

Lines = dict[str, tuple[float | None, ...]]
"""Levels after each step, by target."""


def render(content: ReportContent) -> Html:
    """The section."""
    chains: dict[tuple[str, str], Lines] = {}
    for own in content.rows:
        if own.component == CHAIN and own.step is not None:
            lines = chains.setdefault((own.function, own.case), {})
            lines[own.target] = (*lines.get(own.target, ()), own.snr_db)
    if not chains:
        return section("drift", "Drift per step", "No chain that draws was run.")
    gates = _gates(content)
    levels = [v for lines in chains.values() for line in lines.values() for v in line if v is not None]
    range_ = Range.around([*levels, *gates.values()])
    order = list(content.manifest.targets)
    figures = [
        _figure(task, case, _ordered(lines, order), gates, range_) for (task, case), lines in chains.items()
    ]
    return section(
        "drift", "Drift per step", ABOUT, _legend(order, chains), tag("div", *figures, class_="charts")
    )


def _legend(order: Sequence[str], chains: Mapping[tuple[str, str], Lines]) -> Html:
    """Each line's dash and marker, where a narrow screen hides the labels at the lines' ends."""
    drawn = dict.fromkeys(name for lines in chains.values() for name in lines)
    names = dict.fromkeys([*order, *drawn])
    entries = [tag("li", sample(index), " ", name) for index, name in enumerate(names) if name in drawn]
    return tag("ul", *entries, class_="lines")


def _ordered(lines: Lines, order: Sequence[str]) -> Lines:
    """In the manifest's order in every chart, so that a target always has the same colour and marker."""
    return {name: lines.get(name, ()) for name in dict.fromkeys([*order, *lines])}


def _gates(content: ReportContent) -> dict[str, float]:
    """The gate of latents, by the targets that it applies to."""
    by_level: dict[float, list[str]] = {}
    for name, entry in content.manifest.targets.items():
        if entry.chain_gate is not None and any(row.step is not None for row in content.rows_of(name)):
            by_level.setdefault(entry.chain_gate.latent_db, []).append(name)
    if len(by_level) == 1:
        return {"": next(iter(by_level))}
    return {", ".join(names): level for level, names in by_level.items()}


def _figure(task: str, case: str, lines: Lines, gates: Mapping[str, float], range_: Range) -> Html:
    ends = "; ".join(
        f"{name} from {decibels(values[0])} to {decibels(values[-1])}"
        for name, values in lines.items()
        if values
    )
    steps = max(len(values) for values in lines.values())
    body = tag(
        "tbody",
        *(
            row(f"{step + 1}", *(number(_at(values, step)) for values in lines.values()))
            for step in range(steps)
        ),
    )
    chart = line_chart(f"{task} {case}: {ends}", lines, gates, range_)
    return tag(
        "figure",
        tag("figcaption", tag("strong", f"{task} · {case}")),
        tag("div", chart, class_="scroll", role="region", tabindex="0", aria_label=f"Drift of {task} {case}"),
        details(
            "values",
            table(
                f"SNR after each step, {task} {case}",
                ["step", *(f"#{n}" for n in lines)],
                body,
                class_="compact",
            ),
        ),
    )


def _at(values: tuple[float | None, ...], step: int) -> str:
    return decibels(values[step]) if step < len(values) else DASH
