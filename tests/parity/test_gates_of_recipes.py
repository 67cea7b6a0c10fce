"""Which gate a component gets: by what its weights are stored as, not by what is named."""

from __future__ import annotations

from pathlib import Path

import pytest

from mobile_o_export.checkpoint import Checkpoint
from mobile_o_export.parity.gates import shipped_gates
from mobile_o_export.plan import PlanItem, plan
from mobile_o_export.targets import load_targets

MCP = "[components.mcp]\nprecision = 'w8'\n"


def planned(checkpoint: Checkpoint, path: Path, content: str) -> PlanItem:
    path.write_text(content)
    (item,) = plan(checkpoint, load_targets(["coreml-ane"], (), path), ["mcp"])
    return item


@pytest.mark.parametrize(
    "rules",
    [
        ("*.bias", "w4"),  # vectors are never compressed
        ("*", "w8", "*", "w1_lut"),  # the first rule has them all
    ],
)
def test_precisions_that_no_weight_has_loosen_nothing(
    reference_checkpoint: Checkpoint, tmp_path: Path, rules: tuple[str, ...]
) -> None:
    pairs = zip(rules[::2], rules[1::2], strict=True)
    made = [f"[[components.mcp.rules]]\nmatch = '{name}'\nprecision = '{own}'\n" for name, own in pairs]
    item = planned(reference_checkpoint, tmp_path / "r.toml", MCP + "".join(made))
    assert item.gate == shipped_gates().w8.function
    assert {str(precision) for precision in item.precisions} == {"fp16", "w8"}


def test_a_recipe_may_carry_a_gate(reference_checkpoint: Checkpoint, tmp_path: Path) -> None:
    content = MCP + "[components.mcp.gate]\nsnr_db = 20.0\nreason = 'measured'\n"
    item = planned(reference_checkpoint, tmp_path / "r.toml", content)
    assert item.gate is not None
    assert item.gate.snr_db == 20.0


def test_a_target_s_gate_stays_with_the_precisions_that_it_is_for() -> None:
    (own,) = load_targets(["mobile-o-app"])
    gate = own.components["llm"].gate
    assert gate is not None

    def asked(precision: str) -> object:
        return load_targets(["mobile-o-app"], [f"llm={precision}"])[0].components["llm"].gate

    assert asked("w4_affine_b64") == gate
    assert asked("w8_affine_b64") is None
