"""The tokenizer's six files, which the app downloads: the checkpoint's own, or derived from one another."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mobile_o_export.tokenizer import Tokenizer

TOKENIZER, CONFIG = "tokenizer.json", "tokenizer_config.json"
VOCABULARY, MERGES = "vocab.json", "merges.txt"
ADDED, SPECIAL = "added_tokens.json", "special_tokens_map.json"
FILES = (ADDED, MERGES, SPECIAL, TOKENIZER, CONFIG, VOCABULARY)

SPECIAL_KEYS = ("bos_token", "eos_token", "unk_token", "pad_token", "additional_special_tokens")


def write_tokenizer(own: Sequence[Path], folder: Path) -> None:
    """Writes all of ``FILES`` into ``folder``: copies of those in ``own``, and what these say of the rest."""
    for path in own:
        if path.name in FILES:
            shutil.copyfile(path, folder / path.name)
    if not (folder / CONFIG).is_file():
        _write(folder / CONFIG, {"tokenizer_class": "Qwen2Tokenizer"})
    if not (folder / TOKENIZER).is_file():
        Tokenizer(folder).save(folder / TOKENIZER)
    whole, config = json.loads((folder / TOKENIZER).read_text()), json.loads((folder / CONFIG).read_text())
    model = whole["model"]
    derived = {
        VOCABULARY: model["vocab"],
        ADDED: {token["content"]: token["id"] for token in whole["added_tokens"]},
        SPECIAL: {key: config[key] for key in SPECIAL_KEYS if config.get(key)},
    }
    for name, content in derived.items():
        if not (folder / name).is_file():
            _write(folder / name, content)
    if not (folder / MERGES).is_file():
        # Older versions of the format have a pair as one string.
        pairs = (pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"])
        (folder / MERGES).write_text("\n".join(["#version: 0.2", *pairs]) + "\n")


def _write(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, ensure_ascii=False, indent=2) + "\n")
