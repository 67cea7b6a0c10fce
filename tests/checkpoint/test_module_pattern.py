"""Patterns of modules mean what they mean to PEFT, and take no longer than names can need."""

from __future__ import annotations

import random
import re

import pytest

from mobile_o_export.checkpoint.module_pattern import MOST_STEPS, ModulePatterns

MODULES = (
    "model.layers.0.self_attn.q_proj",
    "model.layers.12.mlp.down_proj",
    "model.embed_tokens",
    "lm_head",
    "",
)

PATTERNS = (
    "q_proj",
    "layers.0.self_attn.q_proj",
    r"model\.layers\.\d+\.mlp\..*",
    "^model.layers.0.*",
    "[a-z_]+",
    "[^0-9]+",
    "x|lm_head",
    r"layers\.(0|1|12)\.(self_attn|mlp)\.\w+_proj",
    r"layers.\d{1,2}.mlp.down_proj",
    "(?:q|k)_proj",
    "down_proj$",
    r"\Amodel.*\Z",
    "(q?)*_proj",
    "(l|a){3,5}yers",
    "",
    ".*",
)


def found(pattern: str, module: str) -> bool:
    return ModulePatterns({pattern: 1.0}).value(module, 0.0) == 1.0


def pefts(pattern: str, module: str) -> bool:
    """``get_pattern_key`` of PEFT 0.21, peft/utils/other.py."""
    return re.match(rf"(.*\.)?({pattern})$", module) is not None


@pytest.mark.parametrize("pattern", PATTERNS)
def test_patterns_that_people_write(pattern: str) -> None:
    assert [found(pattern, module) for module in MODULES] == [pefts(pattern, module) for module in MODULES]


def test_ten_thousand_patterns_of_chance() -> None:
    pieces = ("a", "b", ".", r"\.", "[ab]", "[^a]", r"\w", "(a|b.)", "(ab)?", "a*", "b+", "(a.){0,2}", "(b|)")
    chance = random.Random(16)
    for _ in range(10_000):
        pattern = "".join(chance.choices((*pieces, "a??", "(a|ab)", "^", "$"), k=chance.randint(0, 5)))
        module = "".join(chance.choices("ab.", k=chance.randint(0, 8)))
        assert found(pattern, module) == pefts(pattern, module), (pattern, module)


def test_the_first_pattern_that_fits_counts() -> None:
    patterns = ModulePatterns({"v_proj": 1.0, r".*q_proj": 2.0, "q_proj": 3.0})
    assert [patterns.value(f"layers.0.{name}_proj", 9.0) for name in "vqk"] == [1.0, 2.0, 9.0]


def test_what_takes_too_long_is_refused() -> None:
    """Ten patterns that people write, on three hundred modules, take a fifth of what is allowed."""
    patterns = ModulePatterns({"(.*)*" * 40 + "x": 1.0})

    def every_layer() -> None:
        for layer in range(MOST_STEPS):
            patterns.value(f"model.layers.{layer}.self_attn.q_proj.{'a' * 60}", 0.0)

    with pytest.raises(ValueError, match="its patterns take too long to match"):
        every_layer()


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        (r"(a)\1", "uses groupref"),
        ("(?i:a)", "uses subpattern"),
        ("(?i)a", "global flags not at the start"),
        ("a{99999999999999999999}", "the repetition number is too large"),
        ("a++", "uses possessive repeat"),
        ("(?>a)", "uses atomic group"),
        (r"a\b", "uses at"),
        ("a)|(b", "unbalanced parenthesis"),
        ("[[", "unterminated character set"),
    ],
)
def test_what_no_name_needs_is_refused(pattern: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ModulePatterns({pattern: 1.0})
