"""Text to token ids and back, with the checkpoint's own tokenizer."""

from __future__ import annotations

from collections.abc import Sequence
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
                # Not by its path, which the library takes as UTF-8 only.
                self._tokenizer: Any = Fast.from_buffer(path.read_bytes())
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
        return np.array([ids], np.int32).reshape(1, -1)

    def ends(self, text: str) -> list[int]:
        """Where in ``text`` each of its tokens ends, in characters."""
        return [end for _, end in self._tokenizer.encode(text, add_special_tokens=False).offsets]

    def id_of(self, token: str) -> int | None:
        """The id of one token, or None where the vocabulary lacks it."""
        found: int | None = self._tokenizer.token_to_id(token)
        return found

    def decode(self, ids: Sequence[int]) -> str:
        """Ids → text, special tokens left out."""
        text: str = self._tokenizer.decode(list(ids), skip_special_tokens=True)
        return text

    def save(self, path: Path) -> None:
        """Writes it as one ``tokenizer.json``."""
        self._tokenizer.save(str(path))

    def stream(self) -> TextStream:
        """Text of ids that come one by one."""
        return TextStream(self._tokenizer)


class TextStream:
    """Token ids → text, piece by piece; a character whose bytes are spread over tokens comes whole."""

    def __init__(self, tokenizer: Any) -> None:
        from tokenizers.decoders import DecodeStream

        self._tokenizer = tokenizer
        self._stream: Any = DecodeStream(skip_special_tokens=True)
        self._ids: list[int] = []
        self._given = ""

    def add(self, token: int) -> str:
        """What ``token`` adds to the text; empty in the middle of a character."""
        self._ids.append(token)
        piece: str = self._stream.step(self._tokenizer, token) or ""
        self._given += piece
        return piece

    def rest(self) -> str:
        """What is left when no token follows: the replacement of a character that was cut off."""
        whole: str = self._tokenizer.decode(self._ids, skip_special_tokens=True)
        return whole[len(self._given) :] if whole.startswith(self._given) else ""
