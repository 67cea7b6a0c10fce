"""The page: one HTML file that fetches nothing and runs nothing."""

from __future__ import annotations

import base64
from pathlib import Path

from mobile_o_export.report import (
    answers,
    comparisons,
    contract,
    drawings,
    drift,
    provenance,
    scores,
    sizes,
    summary,
)
from mobile_o_export.report.badges import WORDS
from mobile_o_export.report.content import ReportContent
from mobile_o_export.report.judged import verdict_of_bundle
from mobile_o_export.report.markup import Html, tag

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
"""What a browser may load: pictures and styles of the page itself, nothing else."""

SECTIONS = (
    ("parity", "Parity", comparisons.render),
    ("sizes", "Sizes", sizes.render),
    ("drift", "Drift", drift.render),
    ("pictures", "Pictures", drawings.render),
    ("answers", "Answers", answers.render),
    ("scores", "Task scores", scores.render),
    ("contract", "I/O contract", contract.render),
    ("provenance", "Provenance", provenance.render),
)

_ICON = (
    b'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 16 16"><rect width="16" height="16" rx="3" '
    b'fill="#0b57a4"/><path d="M4 8.5l3 3 5.5-7" fill="none" stroke="#fff" stroke-width="2"/></svg>'
)


def page(content: ReportContent) -> str:
    """The whole HTML text; equal contents give equal texts."""
    word = WORDS[verdict_of_bundle(content).status]
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=POLICY),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("title", f"Mobile-O bundle {content.manifest.bundle_version}: {word}"),
        tag("link", rel="icon", href=f"data:image/svg+xml;base64,{base64.b64encode(_ICON).decode()}"),
        tag("style", Html(Path(__file__).with_name("style.css").read_text(encoding="utf-8"))),
    )
    links = [tag("li", tag("a", title, href=f"#{name}")) for name, title, _ in SECTIONS]
    body = tag(
        "body",
        summary.header(content),
        tag(
            "main",
            summary.verdicts(content),
            tag("nav", tag("ul", *links), aria_label="Sections"),
            *(render(content) for _, _, render in SECTIONS),
        ),
    )
    return f"<!DOCTYPE html>\n{tag('html', head, body, lang='en')}"
