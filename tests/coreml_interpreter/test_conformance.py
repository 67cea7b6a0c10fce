"""A part of coremltools' own tests, predicted by the interpreter, and how the whole of them is judged."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import conformance
import pytest

from mobile_o_export.backends.coreml.interpreter.ops import implemented_ops


@pytest.mark.slow
def test_a_part_of_coremltools_own_tests_fares_as_recorded() -> None:
    """Other cases than the recorded ones, of operators' tests; ``make conformance`` runs all kinds."""
    lines = conformance.run(["converters/mil/mil/ops/tests"], cases=1, tests=150, seed=1, workers=1)
    recorded = json.loads(conformance.RECORDED.read_text(encoding="utf-8"))
    assert conformance.worse(conformance.failures(lines), recorded, same_cases=False) == []
    fates = Counter(line["fate"] for line in lines)
    assert fates["passed"] >= 60
    assert fates["lacking"] == fates["refused"] == 0
    assert len({operator for line in lines for operator in line["operators"]}) > 40


def test_the_record_is_of_this_coremltools_and_its_goal_is_met() -> None:
    recorded = json.loads(conformance.RECORDED.read_text(encoding="utf-8"))
    assert recorded["asked"]["coremltools"].startswith("9.")
    fates = recorded["fates"]
    assert fates["passed"] > 0.99 * sum(fates.get(fate, 0) for fate in conformance.JUDGED)
    assert not fates.get("lacking")


def test_every_core_operator_is_implemented_but_one() -> None:
    from coremltools.converters.mil.mil.ops.registry import SSAOpRegistry

    lacking = set(SSAOpRegistry.core_ops) - set(implemented_ops())
    # The latter stands for a size within coremltools, and is in no file.
    assert lacking == {"conv_quantized", "_const_symbolic"}


def line(function: str, fate: str, reason: str = "because") -> dict[str, Any]:
    return {"function": function, "id": function, "fate": fate, "operators": ["relu"], "reason": reason}


RECORD = {"failures": {"known": {"wrong": 2, "reason": "wrong: because"}}}


@pytest.mark.parametrize(
    ("fates", "same", "count"),
    [
        ([("known", "wrong")] * 2, True, 0),
        ([("known", "wrong")] * 3, True, 1),
        ([("known", "wrong")] * 3, False, 0),
        ([("known", "crashed")], False, 1),
        ([("new", "lacking"), ("other", "passed"), ("third", "skipped")], False, 1),
    ],
)
def test_what_is_worse_than_the_record(fates: list[tuple[str, str]], same: bool, count: int) -> None:
    found = conformance.failures([line(*fate) for fate in fates])
    assert len(conformance.worse(found, RECORD, same_cases=same)) == count


def test_the_table_counts_every_operator_of_a_test_that_predicts() -> None:
    lines = [line("a", "passed"), line("b", "wrong"), line("c", "silent")]
    assert conformance.by_operator(lines) == {"relu": Counter(passed=1, wrong=1)}
