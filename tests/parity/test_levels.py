"""Levels are held to the export's record: a drop, a rise, a row too many or too few is a failure."""

from __future__ import annotations

from typing import Any

import pytest

from mobile_o_export.parity.chain import CHAIN
from mobile_o_export.parity.judge import Row, Status
from mobile_o_export.parity.levels import (
    CHAIN_APART_DB,
    FUNCTION_APART_DB,
    LEAST_TOLERANCE_DB,
    Scope,
    held,
    incomparable,
    tolerance_db,
)

SCOPE = Scope({"phone"}, {"dit"}, chains=False)


def row(**values: Any) -> Row:
    known = {"target": "phone", "component": "dit", "function": "denoise", "case": "a", "output": "velocity"}
    return Row.model_validate({**known, "runtime": "one 1.0", "status": "passed", "snr_db": 37.5, **values})


def verdicts(rows: list[Row], recorded: list[Row], scope: Scope = SCOPE) -> list[tuple[Status, str]]:
    return [(found.status, found.reason) for found in held(rows, recorded, scope)]


@pytest.mark.parametrize("component", ["dit", CHAIN])
def test_the_recorded_level_passes_and_is_told(component: str) -> None:
    (found,) = held([row(component=component)], [row(component=component)], SCOPE)
    assert (found.status, found.recorded_db) == (Status.PASSED, 37.5)


@pytest.mark.parametrize(
    ("recorded", "now"),
    # Each passed its gate: one layer's palettes shifted, a time embedding's bias zeroed, a kernel transposed,
    # two columns of the head swapped; and a level that is better than what was exported.
    [(37.5, 28.1), (68.0, 43.0), (88.0, 56.0), (93.0, 55.0), (37.5, 45.0), (60.0, 200.0)],
)
def test_another_level_on_the_same_runtime_fails(recorded: float, now: float) -> None:
    ((status, reason),) = verdicts([row(snr_db=now)], [row(snr_db=recorded)])
    assert status is Status.FAILED
    assert reason.startswith(f"{now:.1f} dB, and the export recorded {recorded:.1f} dB on the same runtime, ")


@pytest.mark.parametrize(
    "values",
    [
        {"gate": "≥ -200 dB"},
        {"max_abs": 0.9},
        {"cosine": 0.5},
        {"ssim": 0.2},
        {"step": 3},
        {"identical_tokens": 7, "snr_db": None},
        {"snr_db": None},
    ],
)
def test_whatever_else_the_record_says_is_held(values: dict[str, Any]) -> None:
    now = {"gate": "≥ 35 dB", "max_abs": 0.1, "cosine": 0.9999, "ssim": 0.99, "identical_tokens": 24}
    if "identical_tokens" in values:
        now |= {"snr_db": None}
    ((status, reason),) = verdicts([row(**now)], [row(**{**now, **values})])
    assert (status, reason.startswith("the export recorded")) == (Status.FAILED, True)
    assert verdicts([row(**now)], [row(**now)]) == [(Status.PASSED, "")]


def test_a_picture_is_held_to_its_psnr() -> None:
    image = {"component": CHAIN, "output": "image", "snr_db": None}
    ((status, reason),) = verdicts([row(psnr_db=41.0, **image)], [row(psnr_db=49.0, **image)])
    assert (status, reason.partition(",")[0]) == (Status.FAILED, "41.0 dB")


@pytest.mark.parametrize("values", [{"runtime": "one 1.1"}])
def test_what_another_runtime_recorded_is_judged_by_its_gate_alone(values: dict[str, Any]) -> None:
    (found,) = held([row(snr_db=20.0)], [row(**values)], SCOPE)
    assert (found.status, found.recorded_db) == (Status.PASSED, None)
    assert incomparable([found]) == ["one 1.0"]
    assert incomparable(held([row()], [row()], SCOPE)) == []


def test_the_same_versions_under_another_name_fail() -> None:
    """As if nothing could be held to the record."""
    found = [row(runtime="one 1.0 (CPU)")]
    assert verdicts(found, [row()])[0][0] is Status.FAILED
    assert held(found, [row()], SCOPE, own=False)[0].status is Status.PASSED


def test_a_row_that_the_record_does_not_have_fails() -> None:
    assert verdicts([row(case="b"), row()], [row()]) == [
        (Status.FAILED, "the export's record does not have it"),
        (Status.PASSED, ""),
    ]


def test_a_recorded_row_that_is_missed_fails() -> None:
    assert verdicts([row()], [row(), row(case="b")])[1] == (
        Status.FAILED,
        "it is in the export's record, and was not computed now",
    )


@pytest.mark.parametrize("other", [{"target": "board"}, {"component": "llm"}, {"component": CHAIN}])
def test_what_was_not_asked_for_is_not_missed(other: dict[str, Any]) -> None:
    assert len(held([row()], [row(), row(**other)], SCOPE)) == 1
    everything = Scope({"phone", "board"}, {"dit", "llm"}, chains=True)
    assert len(held([row()], [row(), row(**other)], everything)) == 2


def test_a_component_that_could_not_be_opened_has_one_row_for_all() -> None:
    closed = row(function="", case="", output="", status="not_run", snr_db=None, reason="no runtime")
    assert held([closed], [row(), row(case="b")], SCOPE) == [closed]


def test_what_failed_already_keeps_its_reason() -> None:
    failed = row(status="failed", reason="NaN", snr_db=None)
    assert held([failed], [row()], SCOPE) == [failed]


def test_the_tolerance_follows_from_how_far_cpus_are_apart() -> None:
    # A level far below what tells two CPUs apart is the same on both; one above it says nothing of the file.
    assert tolerance_db(20.0, FUNCTION_APART_DB) == LEAST_TOLERANCE_DB
    assert tolerance_db(FUNCTION_APART_DB, FUNCTION_APART_DB) == pytest.approx(6.02, abs=0.01)
    levels = [tolerance_db(float(level), CHAIN_APART_DB) for level in range(0, 200, 5)]
    assert levels == sorted(levels)
