"""The page's head: whether the bundle and each target passed, the figures behind it, and every failure."""

from __future__ import annotations

from collections.abc import Iterable

from mobile_o_export.parity.chain import CHAIN
from mobile_o_export.parity.judge import NO_RUNTIME, Row, Status
from mobile_o_export.report import scores
from mobile_o_export.report.badges import WORDS, badge, sign
from mobile_o_export.report.content import ReportContent
from mobile_o_export.report.judged import (
    Level,
    Verdict,
    component_name,
    nearest_to_gate,
    verdict_of_bundle,
    verdict_of_target,
    worst_image,
)
from mobile_o_export.report.markup import Html, cell, joined, row, small, table, tag
from mobile_o_export.report.quantities import DASH, count, decibels, fixed, limit, size
from mobile_o_export.report.sizes import sizes_of, total, versus_fp32


def header(content: ReportContent) -> Html:
    """The bundle's name and the verdict on all of it."""
    verdict = verdict_of_bundle(content)
    return tag(
        "header",
        tag("p", "mobile-o-export · bundle report", class_="kicker"),
        tag("h1", f"Mobile-O bundle {content.manifest.bundle_version}"),
        tag(
            "p",
            sign(verdict.status),
            " ",
            tag("strong", WORDS[verdict.status]),
            " ",
            tag("span", _sentence(content, verdict), class_="sentence"),
            class_=f"overall {verdict.status.value}",
        ),
    )


def verdicts(content: ReportContent) -> Html:
    """Each target's verdict and figures, and below them every output that failed or was not run."""
    return joined(
        [
            tag("div", *(_card(content, name) for name in content.manifest.targets), class_="cards"),
            _listed("Failed", "failures", content.rows, Status.FAILED),
            _listed("Not run", "not-run", content.rows, Status.NOT_RUN),
        ]
    )


def _sentence(content: ReportContent, verdict: Verdict) -> str:
    targets = [name for name, entry in content.manifest.targets.items() if entry.exported]
    statuses = [verdict_of_target(content, name).status for name in targets]
    good = f"{statuses.count(Status.PASSED)} of {count(len(targets), 'target')} passed"
    others = [f"{n} {WORDS[s]}" for s in (Status.FAILED, Status.NOT_RUN) if (n := statuses.count(s))]
    return f"{', '.join([good, *others])} · {verdict.passed:,} of {count(verdict.of, 'output')} passed"


def _card(content: ReportContent, name: str) -> Html:
    """One target: its verdict, large, and the figures that release managers ask for."""
    entry = content.manifest.targets[name]
    verdict = verdict_of_target(content, name)
    rows = content.rows_of(name)
    alone = [own for own in rows if own.component != CHAIN]
    chained = [own for own in rows if own.component == CHAIN]
    whole = total(sizes_of(content.manifest, name))
    runtimes = list(dict.fromkeys(own.runtime for own in rows if own.runtime != NO_RUNTIME))
    facts: list[tuple[str, Html]] = [
        ("size", _two(size(whole.size_bytes) if entry.exported else DASH, versus_fp32(whole))),
        ("worst function", _level(nearest_to_gate(entry, alone))),
        ("worst picture", _image(worst_image(chained))),
        ("answers", _answers(chained)),
        *([("tasks", tasks)] if (tasks := scores.summarised(content, name)) else []),
        ("outputs", _two(f"{verdict.passed:,} of {verdict.of:,} passed", verdict.reason)),
        ("computed by", joined([", ".join(runtimes) or DASH])),
    ]
    return tag(
        "section",
        tag("div", tag("h2", name), badge(verdict.status), class_="card-head"),
        tag("p", tag("strong", entry.backend), f" · {entry.description}", class_="about"),
        tag("dl", *(tag("div", tag("dt", title), tag("dd", value)) for title, value in facts)),
        class_=f"card {verdict.status.value}",
    )


def _level(level: Level | None) -> Html:
    if level is None:
        return Html(DASH)
    place = f"{level.row.component} {level.row.function}"
    return _two(decibels(level.snr_db), f"gate {limit(level.gate_db)} · {place}")


def _image(worst: Row | None) -> Html:
    if worst is None:
        return Html(DASH)
    similarity = f"SSIM {fixed(worst.ssim, 4)} · gate {worst.gate} · {worst.function} {worst.case}"
    return _two(f"PSNR {decibels(worst.psnr_db)}", similarity)


def _answers(chained: Iterable[Row]) -> Html:
    """Of answers: how many tokens are PyTorch's."""
    found = [own for own in chained if own.output == "tokens"]
    if not found:
        return Html(DASH)
    tokens = sum(own.identical_tokens or 0 for own in found)
    passed = sum(own.status is Status.PASSED for own in found)
    return _two(
        f"{passed} of {count(len(found), 'answer')} passed", f"{count(tokens, 'token')} the same as PyTorch’s"
    )


def _two(main: str, about: str) -> Html:
    """A figure, and what explains it in small print."""
    return joined([main, small(about)]) if about and about != DASH else joined([main])


def _listed(title: str, identifier: str, rows: Iterable[Row], status: Status) -> Html:
    """Every row of a status other than passed, with its reason; nothing if there are none."""
    found = [own for own in rows if own.status is status]
    if not found:
        return Html()
    lines = [
        row(
            own.target,
            cell(component_name(own.component)),
            cell(" ".join(part for part in (own.function, own.case, own.output) if part) or DASH),
            cell(own.gate or DASH),
            cell(own.reason or DASH),
        )
        for own in found
    ]
    columns = ["target", "component", "output", "gate", "reason"]
    return tag(
        "section",
        tag("h2", badge(status), f" {count(len(found), 'output')}", id=f"{identifier}-title"),
        table(title, columns, tag("tbody", *lines), class_="broad"),
        class_=f"listed {status.value}",
        id=identifier,
        aria_labelledby=f"{identifier}-title",
    )
