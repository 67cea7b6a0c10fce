"""Exports of which it is told what they make and what they find."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from cache_harness import Exports

from mobile_o_export.checkpoint import Checkpoint
from mobile_o_export.exporting import chaining, lowering, making, verifying
from mobile_o_export.golden import Golden


@pytest.fixture
def exports(
    tmp_path: Path,
    reference_checkpoint: Checkpoint,
    small_golden: Golden,
    monkeypatch: pytest.MonkeyPatch,
) -> Exports:
    found = Exports(tmp_path, reference_checkpoint, small_golden.path)
    lower, verify, chains, record = (
        lowering.lower_component,
        verifying.verify_component,
        chaining.verify_chains,
        making.record_golden,
    )

    def lowered(request: Any, *given: Any) -> Any:
        found.made.append(f"lowered {request.component.name}")
        return lower(request, *given)

    def judged(*given: Any) -> Any:
        found.made.append(f"judged {given[4]}")
        return verify(*given)

    def chained(*given: Any) -> Any:
        found.made.append("judged chains")
        return chains(*given)

    def recorded(*given: Any) -> Any:
        found.made.append("golden")
        return record(*given)

    monkeypatch.setattr(lowering, "lower_component", lowered)
    monkeypatch.setattr(verifying, "verify_component", judged)
    monkeypatch.setattr(chaining, "verify_chains", chained)
    monkeypatch.setattr(making, "record_golden", recorded)
    return found
