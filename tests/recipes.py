"""Recipes in few words and sequences in short, for tests that lower."""

from __future__ import annotations

from mobile_o_export.compression.recipe import Recipe, Rule
from mobile_o_export.precision import Precision
from mobile_o_export.targets import Sequence, Target


def recipe(default: str, *rules: tuple[str, str], floating: str = "fp16") -> Recipe:
    """The recipe of a precision's name and of (pattern, precision's name) rules."""
    made = tuple(Rule(match=match, precision=Precision.parse(name)) for match, name in rules)
    return Recipe(floating=Precision.parse(floating), default=Precision.parse(default), rules=made)


def short_sequence(target: Target, length: int = 64) -> Sequence:
    """One length instead of a target's own, to be lowered sooner; dynamic axes stay as they are."""
    return Sequence(lengths=(length,), context=2 * length) if target.sequence.lengths else target.sequence
