"""One row a compared output, and the rule that decides it: fail closed."""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum
from typing import Any

import numpy as np
from pydantic import Field

from mobile_o_export.parity.gates import Gate
from mobile_o_export.parity.metrics import Array, measure
from mobile_o_export.strict import MOST_WIDTH, Finite, Strict
from mobile_o_export.tensors import Role, TensorSpec

NO_RUNTIME = "none"
"""The runtime of a row that nothing computed."""


class Status(StrEnum):
    """What became of a row. Only ``passed`` is a pass."""

    PASSED = "passed"
    FAILED = "failed"
    NOT_RUN = "not_run"


class Row(Strict):
    """The verdict on one output of one case: the rows of ``verify --json``, schema 1.

    Attributes:
        psnr_db, ssim: of a chain's image.
        step: of a chain's latent, from 1.
        identical_tokens: of a chain's answer, how many are the golden's.
        tied_tokens: how many are others that the golden's own logits show to be as good.
        recorded_db: the level that the export recorded on the same runtime, to which this one was held.
    """

    target: str
    component: str
    function: str
    case: str
    output: str
    runtime: str
    status: Status
    snr_db: Finite | None = None
    max_abs: Finite | None = None
    cosine: Finite | None = None
    psnr_db: Finite | None = None
    ssim: Finite | None = None
    step: int | None = Field(default=None, ge=1, le=MOST_WIDTH)
    identical_tokens: int | None = Field(default=None, ge=0, le=MOST_WIDTH)
    tied_tokens: int | None = Field(default=None, ge=0, le=MOST_WIDTH)
    recorded_db: Finite | None = None
    gate: str = ""
    reason: str = ""


def verdict(rows: Iterable[Row]) -> Status:
    """``passed`` only if there are rows and every one of them passed."""
    statuses = {row.status for row in rows}
    return Status.PASSED if statuses == {Status.PASSED} else Status.FAILED


class Judge:
    """Judges the outputs of one component on one target."""

    def __init__(self, target: str, component: str, runtime: str, gate: Gate) -> None:
        self.target = target
        self.component = component
        self.runtime = runtime
        self.gate = gate

    def row(self, function: str, case: str, output: str, status: Status, reason: str, gate: str = "") -> Row:
        """A row without a measurement."""
        return Row(
            target=self.target,
            component=self.component,
            function=function,
            case=case,
            output=output,
            runtime=self.runtime,
            status=status,
            gate=gate,
            reason=reason,
        )

    def compare(self, function: str, case: str, spec: TensorSpec, golden: Array, actual: Array | None) -> Row:
        """The verdict on one output: presence, shape, dtype, finiteness, then distance."""
        gate = self.gate.describe(spec.role is Role.LOGITS)
        if reason := unfit(np.dtype(str(spec.dtype)), golden, actual):
            return self.row(function, case, spec.name, Status.FAILED, reason, gate)
        assert actual is not None
        metrics = measure(golden, actual)
        reason = ""
        if not metrics.snr_db >= self.gate.snr_db:
            place = list(metrics.max_index)
            worst = f"largest difference {metrics.max_abs:.3g} at {place}"
            reason = f"{metrics.snr_db:.1f} dB is below the gate; {worst}"
        elif spec.role is Role.LOGITS and self.gate.tokens_identical:
            wanted, got = golden.argmax(axis=-1), actual.argmax(axis=-1)
            if not np.array_equal(wanted, got):
                reason = f"the most likely token is {got.flatten().tolist()}, not {wanted.flatten().tolist()}"
        return Row(
            target=self.target,
            component=self.component,
            function=function,
            case=case,
            output=spec.name,
            runtime=self.runtime,
            status=Status.FAILED if reason else Status.PASSED,
            snr_db=round(metrics.snr_db, 2) if np.isfinite(metrics.snr_db) else None,
            max_abs=metrics.max_abs,
            cosine=round(metrics.cosine, 9),
            gate=gate,
            reason=reason,
        )


def unfit(dtype: np.dtype[Any], golden: Array, actual: Array | None) -> str:
    """Why two arrays cannot be compared, or an empty string."""
    if actual is None:
        return "the output is missing"
    if actual.shape != golden.shape:
        return f"shape {list(actual.shape)} instead of {list(golden.shape)}"
    if actual.dtype != dtype:
        return f"dtype {actual.dtype} instead of {dtype}"
    finite = np.isfinite(actual)
    if not finite.all():
        first = [int(i) for i in np.argwhere(~finite)[0]]
        return f"{int((~finite).sum())} of {actual.size} values are NaN or infinite, the first at {first}"
    if not np.isfinite(golden).all():
        return "the golden itself holds NaN or infinite values; record it again"
    return ""
