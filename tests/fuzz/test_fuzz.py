"""A few damaged inputs for every reader, the same in every run; ``benchmarks/fuzz.py`` gives thousands."""

from __future__ import annotations

from pathlib import Path

import pytest
from fuzz import Count, fuzz
from fuzz_readers import Reader

INPUTS = 20
SEED = 16

SLOW = {"checkpoint, opened": 3, "vocab.json": 5, "merges.txt": 5}
"""Of those that build whole models or tokenizers, fewer."""

NAMES = (
    "manifest.json",
    "parity.json",
    "chains.json",
    "weights.json",
    "config/*.json",
    "tokenizer.json",
    "golden.json",
    "golden's tensors",
    "checkpoint's config.json",
    "checkpoint, opened",
    "vocab.json",
    "merges.txt",
    "sharded index",
    "safetensors",
    "adapter_config.json",
    "adapter's tensors",
    "target.toml",
    "recipe.toml",
    "prompts.toml",
    "tasks' JSON lines",
    "evaluation.json",
    "sensitivities",
    "Manifest.json of a package",
    "model.mlmodel",
    "weight.bin",
    "llm/config.json",
    "llm/model.safetensors",
    "pictures",
)


def test_every_reader_is_listed(found: dict[str, Reader]) -> None:
    assert tuple(found) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_damage_is_read_or_refused(name: str, found: dict[str, Reader]) -> None:
    inputs = SLOW.get(name, INPUTS)
    count = fuzz(found[name], inputs, SEED)
    assert count.bugs == []
    assert count.inputs == inputs


@pytest.fixture
def broken(tmp_path: Path) -> Reader:
    """A reader with a bug: what it is given has to be a JSON list."""
    path = tmp_path / "a.json"
    path.write_text("[1, 2]")
    return Reader("broken", (path,), (lambda *_: b"{}",), lambda: len(path.read_text()[5]))


def test_a_traceback_is_found(broken: Reader) -> None:
    count = fuzz(broken, 2, SEED)
    assert (count.accepted, count.refused.total(), len(count.bugs)) == (0, 0, 2)
    assert count.bugs[0].startswith("broken, input 0 of seed 16 (<lambda> a.json):\nTraceback")
    assert count.bugs[0].rstrip().endswith("IndexError: string index out of range")
    assert broken.files[0].read_text() == "[1, 2]"
    assert Count().inputs == 0
