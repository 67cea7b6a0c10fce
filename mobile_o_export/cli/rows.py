"""How parity rows are shown: one line a component, and every row that did not pass."""

from __future__ import annotations

from collections.abc import Sequence

from mobile_o_export.cli.console import table
from mobile_o_export.legible import legible, legible_message
from mobile_o_export.parity.chain import CHAIN
from mobile_o_export.parity.judge import Row, Status

SHOWN_FAILURES = 20
SHOWN_STEPS = 5


def summary(rows: Sequence[Row]) -> str:
    """Checks, the worst value of each component, each chain's drift, then rows that failed or did not run."""
    checks = [row for row in rows if is_check(row)]
    outputs = [row for row in rows if not is_check(row)]
    alone = [row for row in outputs if row.component != CHAIN]
    chains = [row for row in outputs if row.component == CHAIN]
    parts = ((_checks, checks), (_functions, alone), (_chains, chains))
    tables = [shown(found) for shown, found in parts if found]
    text = "\n\n".join(tables)
    bad = [row for row in rows if row.status is not Status.PASSED]
    for row in bad[:SHOWN_FAILURES]:
        place = " ".join(
            part for part in (row.target, row.component, row.function, row.case, row.output) if part
        )
        text += "\n" + legible_message(f"{row.status}: {legible(place)}: {row.reason}")
    if len(bad) > SHOWN_FAILURES:
        text += f"\n… and {len(bad) - SHOWN_FAILURES} more; --json lists them all"
    return text


def is_check(row: Row) -> bool:
    """Whether it is the result of a check, and not of comparing an output."""
    return not row.function and bool(row.output)


def _checks(rows: Sequence[Row]) -> str:
    """A line for the bundle and one for each target: how many of its checks passed, and what they were of."""
    lines = []
    for target in dict.fromkeys(row.target for row in rows):
        own = [row for row in rows if row.target == target]
        passed = sum(row.status is Status.PASSED for row in own)
        of = ", ".join(dict.fromkeys(row.component for row in own))
        lines.append([target, f"{passed}/{len(own)}", _status(own), of])
    return table(["files and records", "passed", "status", "of"], lines, right=(1,))


def _functions(rows: Sequence[Row]) -> str:
    """A line a component on a target, with its worst value."""
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
                _status(own),
                own[0].runtime,
            ]
        )
    return table(
        ["target", "component", "passed", "worst dB", "gate", "status", "runtime"], lines, right=(2, 3)
    )


def _chains(rows: Sequence[Row]) -> str:
    """A line a chain, with how its latents drift from step to step and what comes out."""
    lines = []
    for target, task, case in dict.fromkeys((row.target, row.function, row.case) for row in rows):
        own = [row for row in rows if (row.target, row.function, row.case) == (target, task, case)]
        passed = sum(row.status is Status.PASSED for row in own)
        levels = [row.snr_db for row in own if row.snr_db is not None]
        drift = [row for row in own if row.step is not None]
        result = ""
        for row in own:
            if row.psnr_db is not None:
                result = f"PSNR {row.psnr_db:.1f} dB, SSIM {row.ssim:.4f}"
            if row.identical_tokens is not None:
                result = f"{row.identical_tokens} tokens the same"
                if row.tied_tokens:
                    result += f", {row.tied_tokens} as likely"
        lines.append(
            [
                target,
                f"{task} {case}".strip(),
                f"{passed}/{len(own)}",
                f"{min(levels):.1f}" if levels else "-",
                " → ".join(f"{row.step}: {_rounded(row.snr_db)}" for row in _sampled(drift)) or "-",
                result or "-",
                _status(own),
            ]
        )
    header = ["target", "chain", "passed", "worst dB", "latents after step, dB", "result", "status"]
    return table(header, lines, right=(2, 3))


def _rounded(level: float | None) -> str:
    return "-" if level is None else f"{level:.0f}"


def _sampled(drift: Sequence[Row]) -> list[Row]:
    """At most ``SHOWN_STEPS`` of a chain's steps, the first and the last among them."""
    count = min(len(drift), SHOWN_STEPS)
    return [drift[round(i * (len(drift) - 1) / max(1, count - 1))] for i in range(count)]


def _status(rows: Sequence[Row]) -> str:
    statuses = {row.status for row in rows}
    return str(next(s for s in (Status.FAILED, Status.NOT_RUN, Status.PASSED) if s in statuses))
