"""Text to token ids and back, with the checkpoint's own tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from mobile_o_export.errors import CheckpointError
from mobile_o_export.parity.metrics import Array


class Tokenizer:
    """Qwen2's byte-level BPE from ``tokenizer.json``, or from ``vocab.json`` and ``merges.txt``."""

    def __init__(self, folder: Path) -> None:
        from tokenizers import Tokenizer as Fast

        path = folder / "tokenizer.json"
        try:
            if path.is_file():
                self._tokenizer: Any = Fast.from_file(str(path))
            else:
                from transformers import Qwen2Tokenizer

                self._tokenizer = Qwen2Tokenizer.from_pretrained(str(folder)).backend_tokenizer
        except Exception as error:
            # The tokenizers library raises bare Exception for a file it cannot parse.
            raise CheckpointError(
                f"{folder}: the tokenizer cannot be read: {error}. Copy the tokenizer's files from the "
                "published checkpoint."
            ) from error

    def encode(self, text: str) -> Array:
        """``text`` with its special tokens → ids int32 [1, S]."""
        ids = self._tokenizer.encode(text, add_special_tokens=False).ids
        return np.array([ids], np.int32)

    def decode(self, ids: list[int]) -> str:
        """Ids → text, special tokens left out."""
        text: str = self._tokenizer.decode(ids, skip_special_tokens=True)
        return text
