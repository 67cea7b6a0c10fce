"""Recipes: the first rule that matches, and none that matches nothing."""

from __future__ import annotations

import pytest

from mobile_o_export.compression.recipe import Recipe, Rule
from mobile_o_export.errors import ConfigError
from mobile_o_export.precision import Precision

W4, W6, W8 = (Precision.parse(name) for name in ("w4_lut_g16", "w6_lut", "w8"))
NAMES = ("blocks.0.attn.to_q.weight", "blocks.0.ff.weight", "proj_out.weight")


def recipe(*rules: tuple[str, Precision], default: Precision = W4) -> Recipe:
    made = tuple(Rule(match=match, precision=precision) for match, precision in rules)
    return Recipe(floating=Precision.FP16, default=default, rules=made)


def test_the_first_rule_that_matches_decides() -> None:
    found = recipe(("*.attn.*", W8), ("blocks.*", W6))
    assert [found.of(name) for name in NAMES] == [W8, W6, W4]


def test_a_rule_matches_whole_names_and_cases() -> None:
    found = recipe(("ff", W8), ("Blocks.*", W8), ("proj_out", W8))
    assert [found.of(name) for name in NAMES] == [W4, W4, W4]


def test_every_precision_once() -> None:
    assert recipe(("a", W8), ("b", W4)).precisions == (Precision.FP16, W4, W8)
    assert recipe(("a", W8)).compresses
    assert not recipe(("a", Precision.FP16), default=Precision.FP16).compresses
    assert str(recipe(("a", W8), ("b", W8))) == "w4_lut_g16 (w8 by rules)"
    assert str(recipe()) == "w4_lut_g16"


def test_a_rule_that_matches_nothing_is_refused_with_the_nearest_name() -> None:
    found = recipe(("blocks.*", W8), ("proj_aut.weight", W8))
    with pytest.raises(
        ConfigError, match=r"dit: the rule 'proj_aut.weight' matches no weight. Did you mean 'proj_out"
    ):
        found.require_used(NAMES, "dit")
    found.require_used([*NAMES, "proj_aut.weight"], "dit")
