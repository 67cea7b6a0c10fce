"""Answers side by side, with the first word in which a target's differs from PyTorch's."""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import takewhile

from mobile_o_export.parity.judge import Row, Status
from mobile_o_export.report.badges import badge
from mobile_o_export.report.content import Chain, ReportContent
from mobile_o_export.report.drawings import picture
from mobile_o_export.report.judged import verdict_of
from mobile_o_export.report.markup import Html, cell, joined, row, section, small, table, tag
from mobile_o_export.report.quantities import DASH, count

ABOUT = (
    "The same picture and question, answered greedily, token by token. Marked: the first word that differs."
)
NOT_KEPT = "This bundle holds no answers of its chains. Export it again with this version to see them."
NO_ANSWER = "No chain that answers was run."
END = "▮ ends here"


@dataclass(frozen=True)
class Parted:
    """An answer as far as it agrees with PyTorch's, the word that does not, and what follows it."""

    same: str
    different: str
    rest: str

    @classmethod
    def at_first_difference(cls, reference: str, actual: str) -> Parted | None:
        """Where ``actual`` leaves ``reference``; None if they are equal."""
        if reference == actual:
            return None
        same = sum(
            1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(reference, actual, strict=False))
        )
        start = same
        # Within a word of either, all of it is different.
        if (reference[same : same + 1] + actual[same : same + 1]).strip():
            while start > 0 and not actual[start - 1].isspace():
                start -= 1
        word = re.match(r"\s*\S+", actual[start:])
        end = start + (word.end() if word else len(actual) - start)
        return cls(actual[:start], actual[start:end], actual[end:])


def marked(reference: str | None, actual: str) -> Html:
    """``actual`` with the first word that is not ``reference``'s marked."""
    parted = None if reference is None else Parted.at_first_difference(reference, actual)
    if parted is None:
        return tag("span", actual, class_="answer")
    return tag("span", parted.same, tag("mark", parted.different or END), parted.rest, class_="answer")


def render(content: ReportContent) -> Html:
    """The section."""
    answered = [chain for chain in content.chains if not chain.draws]
    if not answered:
        return section("answers", "Answers side by side", NO_ANSWER if content.chains else NOT_KEPT)
    return section("answers", "Answers side by side", ABOUT, *(_chain(content, chain) for chain in answered))


def _chain(content: ReportContent, chain: Chain) -> Html:
    reference = chain.reference.answer if chain.reference is not None else None
    lines = [
        row("PyTorch", cell(DASH if reference is None else marked(None, reference)), cell("the reference"))
    ]
    for name in content.targets_of_chain(chain):
        rows = content.rows_of_chain(name, chain)
        result = chain.results.get(name)
        answer = None if result is None else result.answer
        shown = Html(DASH) if answer is None else marked(reference, answer)
        lines.append(row(name, cell(shown), cell(*_verdict(rows, reference, answer))))
    answers = table(
        f"Answers to {chain.case}", ["model", "answer", "against PyTorch’s"], tag("tbody", *lines)
    )
    asked = picture(chain.given, f"The picture of {chain.case}") if chain.given is not None else Html()
    return tag(
        "div",
        tag("h3", f"{chain.task} · {chain.case}"),
        tag("p", tag("q", chain.prompt), class_="prompt"),
        tag("div", tag("div", asked, class_="shot"), answers, class_="asked"),
        class_="chain",
    )


def _verdict(rows: tuple[Row, ...], reference: str | None, answer: str | None) -> list[Html]:
    """The judge's verdict on the chain, and how much of the answer is PyTorch's."""
    parts = [badge(verdict_of(rows).status)] if rows else []
    tokens = next((own.identical_tokens for own in rows if own.identical_tokens is not None), None)
    notes = [] if tokens is None else [f"{count(tokens, 'token')} the same"]
    if reference is not None and answer is not None:
        notes.append(_same_text(reference, answer))
    notes += [own.reason for own in rows if own.status is not Status.PASSED and own.reason]
    return [joined([*parts, *([small("; ".join(notes))] if notes else [])])]


def _same_text(reference: str, answer: str) -> str:
    parted = Parted.at_first_difference(reference, answer)
    if parted is None:
        return "the same text"
    return f"another text from character {len(parted.same) + 1} on"
