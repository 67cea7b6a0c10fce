"""Where the bundle comes from: weights, tools, targets' settings, its own digest, the weights' licence."""

from __future__ import annotations

import json
from collections.abc import Iterable

from mobile_o_export.bundle.manifest import MANIFEST, TargetEntry
from mobile_o_export.report.content import ReportContent
from mobile_o_export.report.markup import Html, cell, joined, number, row, section, table, tag
from mobile_o_export.report.quantities import count, size

ABOUT = "What this bundle was made from, and with. The page shows the report that was written at export."


def render(content: ReportContent) -> Html:
    """The section."""
    manifest = content.manifest
    checkpoint = manifest.checkpoint
    shipped = sum(file.size_bytes for file in manifest.files.values())
    facts = [
        ("checkpoint", tag("code", checkpoint.digest)),
        ("parameters", Html(f"{checkpoint.parameters:,}")),
        ("adapter", tag("code", checkpoint.adapter) if checkpoint.adapter else Html("none")),
        ("files", joined([f"{count(len(manifest.files), 'file')}, {size(shipped)}"])),
        (f"{MANIFEST}, SHA-256", tag("code", content.manifest_digest)),
    ]
    return section(
        "provenance",
        "Provenance",
        ABOUT,
        tag("dl", *(tag("div", tag("dt", name), tag("dd", value)) for name, value in facts), class_="facts"),
        tag(
            "div",
            _table("Tools", ["package", "version"], manifest.made_with.items()),
            *([_parameters(content)] if checkpoint.component_parameters else []),
            class_="columns",
        ),
        table(
            "Targets",
            ["target", "backend", "sequences", "options"],
            tag("tbody", *(_target(name, entry) for name, entry in manifest.targets.items())),
        ),
        *(
            []
            if content.licence is None
            else [tag("h3", "Licence of the weights"), _licence(content.licence)]
        ),
    )


def _table(caption: str, columns: list[str], pairs: Iterable[tuple[str, str]]) -> Html:
    body = tag("tbody", *(row(name, cell(value)) for name, value in pairs))
    return table(caption, columns, body, class_="compact")


def _parameters(content: ReportContent) -> Html:
    found = content.manifest.checkpoint.component_parameters
    body = tag("tbody", *(row(name, number(f"{own:,}")) for name, own in found.items()))
    return table("Parameters", ["component", "#parameters"], body, class_="compact")


def _target(name: str, entry: TargetEntry) -> Html:
    options = ", ".join(
        f"{key} = {json.dumps(value, ensure_ascii=False)}" for key, value in entry.options.items()
    )
    return row(
        name, cell(entry.backend), cell(_sequence(entry)), cell(tag("code", options) if options else "none")
    )


def _sequence(entry: TargetEntry) -> str:
    sequence = entry.sequence
    if sequence.lengths:
        lengths = f"static, {', '.join(f'{length:,}' for length in sequence.lengths)} tokens"
    else:
        lengths = f"dynamic, up to {sequence.longest:,} tokens"
    return f"{lengths}; KV cache for {sequence.context:,} positions"


def _licence(notice: str) -> Html:
    return tag("p", notice.strip(), class_="licence")
