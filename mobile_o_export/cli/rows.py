"""How parity rows are shown: one line a component, and every row that did not pass."""

from __future__ import annotations

from collections.abc import Sequence

from mobile_o_export.cli.console import table
from mobile_o_export.parity.judge import Row, Status, verdict

SHOWN_FAILURES = 20


def summary(rows: Sequence[Row]) -> str:
    """The worst value of each component on each target, then the rows that failed or did not run."""
    lines = []
    for target, component in dict.fromkeys((row.target, row.component) for row in rows):
        own = [row for row in rows if (row.target, row.component) == (target, component)]
        levels = [row.snr_db for row in own if row.snr_db is not None]
        passed = sum(row.status is Status.PASSED for row in own)
        lines.append(
            [
                target,
                component,
                f"{passed}/{len(own)}",
                f"{min(levels):.1f}" if levels else "-",
                next((row.gate for row in own if row.gate), "-").split(" and")[0],
                str(verdict(own)) if any(row.status is Status.FAILED for row in own) else str(own[0].status),
                own[0].runtime,
            ]
        )
    text = table(
        ["target", "component", "passed", "worst dB", "gate", "status", "runtime"], lines, right=(2, 3)
    )
    bad = [row for row in rows if row.status is not Status.PASSED]
    for row in bad[:SHOWN_FAILURES]:
        place = " ".join(part for part in (row.function, row.case, row.output) if part)
        text += f"\n{row.status}: {row.target} {row.component} {place}: {row.reason}"
    if len(bad) > SHOWN_FAILURES:
        text += f"\n… and {len(bad) - SHOWN_FAILURES} more; --json lists them all"
    return text
