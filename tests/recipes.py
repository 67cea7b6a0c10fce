"""Recipes in few words, for tests of compression."""

from __future__ import annotations

from mobile_o_export.compression.recipe import Recipe, Rule
from mobile_o_export.precision import Precision


def recipe(default: str, *rules: tuple[str, str], floating: str = "fp16") -> Recipe:
    """The recipe of a precision's name and of (pattern, precision's name) rules."""
    made = tuple(Rule(match=match, precision=Precision.parse(name)) for match, name in rules)
    return Recipe(floating=Precision.parse(floating), default=Precision.parse(default), rules=made)
