"""Levels held to those that an export recorded: gates lie far below what most outputs reach."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from mobile_o_export.parity.chain import CHAIN
from mobile_o_export.parity.judge import Row, Status
from mobile_o_export.parity.metrics import SNR_CEILING_DB

FUNCTION_APART_DB, CHAIN_APART_DB = 70.0, 65.0
"""How far two CPUs' computations of one file by one version of a runtime may be apart.

The MIL interpreter, whose rounding to fp16 makes a step of the least difference, was measured with AVX2
kernels of torch against plain ones (``ATEN_CPU_CAPABILITY=default``) on the demo's ``coreml-ane``: functions
were 75.6 dB apart at the worst, chains 72.7. ONNX Runtime and LiteRT compute in fp32; numbers of threads
change nothing.
"""

REFERENCE = "torch"
"""The target of rows that compare PyTorch with the golden itself."""

LEAST_TOLERANCE_DB = 0.05
"""Levels are recorded to two places."""

RECORDED = ("gate", "max_abs", "cosine", "ssim", "identical_tokens", "tied_tokens", "step")
"""What a record says of an output beside its level."""

MOST_TIMES = 2.0
"""By how much the single largest difference may be another on another CPU."""

LEAST_DIFFERENCE = 1e-6

Key = tuple[str, str, str, str, str]


@dataclass(frozen=True)
class Scope:
    """What a run was asked to judge: only what lies in it is missed where it is recorded."""

    targets: Collection[str]
    components: Collection[str]
    chains: bool

    def holds(self, row: Row) -> bool:
        """Whether ``row`` should have been found."""
        asked = self.chains if row.component == CHAIN else row.component in self.components
        return row.target in self.targets and asked


def tolerance_db(level: float, apart: float) -> float:
    """By how much a level may differ from its record on another CPU.

    Against a golden, an output has an error of ``level`` dB; the same output computed on another CPU differs
    from it by no more than ``apart`` dB. In the worst case the two add up in phase, or cancel.
    """
    return max(LEAST_TOLERANCE_DB, 20.0 * math.log10(1.0 + 10.0 ** ((level - apart) / 20.0)))


def versions_in(runtime: str) -> frozenset[str]:
    """The versions that the name of a runtime holds."""
    return frozenset(re.findall(r"\d+(?:\.\d+)+", runtime))


def held(rows: Sequence[Row], recorded: Sequence[Row], scope: Scope, *, own: bool = True) -> list[Row]:
    """``rows``, each failed that is not what was recorded, and a failed one for each that is missed.

    ``own`` says that this version of the package made the record: then equal versions have equal names.

    Levels are compared where the same version of the same runtime computed both; a level above the recorded
    one fails like one below it, since nothing but another file, golden or record makes it.
    """
    known: Mapping[Key, Row] = {_key(row): row for row in recorded}
    found = {_key(row) for row in rows}
    judged = [_held(row, known.get(_key(row)), own) for row in rows]
    missed = [row for row in recorded if scope.holds(row) and _key(row) not in found]
    # Where a component could not be opened, or a chain not be run, one row says so for all of its outputs.
    closed = {(row.target, row.component, row.case) for row in rows if _closes(row)}
    return judged + [
        _failed(row, "it is in the export's record, and was not computed now")
        for row in missed
        if not closed & {(row.target, row.component, case) for case in ("", row.case)}
    ]


def incomparable(rows: Sequence[Row]) -> list[str]:
    """Runtimes whose levels could not be held to a record, since another one made it; PyTorch has none."""
    free = (row for row in rows if row.recorded_db is None and row.target != REFERENCE)
    return list(
        dict.fromkeys(row.runtime for row in free if row.status is Status.PASSED and _level(row) is not None)
    )


def _held(row: Row, recorded: Row | None, own: bool) -> Row:
    # What has no function is the result of a check, and no output.
    if row.status is not Status.PASSED or not row.function:
        return row
    if recorded is None:
        return _failed(row, "the export's record does not have it")
    level, before = _level(row), _level(recorded)
    renamed = row.runtime != recorded.runtime and versions_in(row.runtime) == versions_in(recorded.runtime)
    if own and renamed:
        return _failed(
            row, f"the record has it of {recorded.runtime!r}, and these versions have another name"
        )
    if row.runtime != recorded.runtime:
        return row
    if level is None or before is None:
        names = ("snr_db", "psnr_db", *RECORDED)
        other = next((name for name in names if getattr(row, name) != getattr(recorded, name)), None)
        return row if other is None else _failed(row, f"the export recorded another {other}")
    row = row.model_copy(update={"recorded_db": before})
    tolerance = tolerance_db(before, CHAIN_APART_DB if row.component == CHAIN else FUNCTION_APART_DB)
    if abs(level - before) > tolerance:
        return _failed(
            row,
            f"{level:.1f} dB, and the export recorded {before:.1f} dB on the same runtime, from which other "
            f"CPUs may differ by {tolerance:.1f} dB: the file, the golden or the record was changed",
        )
    if other := next((name for name in RECORDED if _differs(name, row, recorded, level)), None):
        said, found = getattr(recorded, other), getattr(row, other)
        return _failed(row, f"the export recorded {said!r} for {other}, and it is {found!r}")
    return row


def _differs(name: str, row: Row, recorded: Row, level: float) -> bool:
    """Whether a recorded value other than the level is more off than another CPU could make it."""
    now, before = getattr(row, name), getattr(recorded, name)
    if name not in ("max_abs", "cosine", "ssim") or now is None or before is None:
        return bool(now != before)
    if name == "max_abs":
        return not before / MOST_TIMES <= now <= before * MOST_TIMES
    noise = 10.0 ** (-level / 10.0)
    return bool(abs(now - before) > max(LEAST_DIFFERENCE, noise if name == "cosine" else noise**0.5))


def _closes(row: Row) -> bool:
    """Whether it stands for all outputs of its component, or of its chain."""
    whole = bool(row.case) if row.component == CHAIN else not row.function
    return whole and not row.output


def _failed(row: Row, reason: str) -> Row:
    return row.model_copy(update={"status": Status.FAILED, "reason": reason})


def _key(row: Row) -> Key:
    return row.target, row.component, row.function, row.case, row.output


def _level(row: Row) -> float | None:
    """The SNR, of an image the PSNR; equal arrays have none that could be written."""
    level = row.psnr_db if row.psnr_db is not None else row.snr_db
    return level if level is None else min(level, SNR_CEILING_DB)
