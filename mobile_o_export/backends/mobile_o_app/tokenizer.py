"""The tokenizer's six files, which the app downloads: the checkpoint's own, or derived from one another."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mobile_o_export.errors import CheckpointError
from mobile_o_export.strict import parse_json
from mobile_o_export.tokenizer import Tokenizer

TOKENIZER, CONFIG = "tokenizer.json", "tokenizer_config.json"
VOCABULARY, MERGES = "vocab.json", "merges.txt"
ADDED, SPECIAL = "added_tokens.json", "special_tokens_map.json"
FILES = (ADDED, MERGES, SPECIAL, TOKENIZER, CONFIG, VOCABULARY)

SPECIAL_KEYS = ("bos_token", "eos_token", "unk_token", "pad_token", "additional_special_tokens")


def write_tokenizer(own: Sequence[Path], folder: Path) -> None:
    """Writes all of ``FILES`` into ``folder``: copies of those in ``own``, and what these say of the rest.

    Raises:
        CheckpointError: they are not a byte-level BPE tokenizer's.
    """
    for path in own:
        if path.name in FILES:
            shutil.copyfile(path, folder / path.name)
    if not (folder / CONFIG).is_file():
        (folder / CONFIG).write_text(_text({"tokenizer_class": "Qwen2Tokenizer"}))
    if not (folder / TOKENIZER).is_file():
        Tokenizer(folder).save(folder / TOKENIZER)
    derived = _derived(folder)
    for name, content in derived.items():
        if not (folder / name).is_file():
            (folder / name).write_text(content)


def _derived(folder: Path) -> dict[str, str]:
    """What ``tokenizer.json`` and ``tokenizer_config.json`` in ``folder`` say of the other files, by name.

    Raises:
        CheckpointError: they are not a byte-level BPE tokenizer's.
    """
    try:
        whole, config = (parse_json((folder / name).read_bytes()) for name in (TOKENIZER, CONFIG))
        model = whole["model"]
        # Older versions of the format have a pair as one string.
        pairs = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
        return {
            VOCABULARY: _text(model["vocab"]),
            ADDED: _text({token["content"]: token["id"] for token in whole["added_tokens"]}),
            SPECIAL: _text({key: config[key] for key in SPECIAL_KEYS if config.get(key)}),
            MERGES: "\n".join(["#version: 0.2", *pairs]) + "\n",
        }
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{folder}: {TOKENIZER} or {CONFIG} is not that of a byte-level BPE tokenizer ({error!r}). Copy "
            "the tokenizer's files from the published checkpoint."
        ) from error


def _text(content: Any) -> str:
    return json.dumps(content, ensure_ascii=False, indent=2) + "\n"
