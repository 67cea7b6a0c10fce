"""Text to token ids and back, with the checkpoint's own tokenizer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from mobile_o_export.errors import CheckpointError, ExportError
from mobile_o_export.parity.metrics import Array
from mobile_o_export.quiet import is_failure, without_stderr

LARGEST_ID = 2**24 - 1
"""A hundred times the largest vocabulary's."""


@contextmanager
def _library(what: str) -> Iterator[None]:
    """Runs code of the tokenizers library; its report of a panic stays out of the terminal.

    Raises:
        CheckpointError: it failed; ``what`` says at what, and on which tokenizer.
    """
    with without_stderr():
        try:
            yield
        except (ExportError, ImportError, MemoryError):
            raise
        except BaseException as error:
            # The library raises bare Exception, and where it panics what is no Exception at all.
            if not is_failure(error):
                raise
            raise CheckpointError(
                f"{what}: {error}. Copy the tokenizer's files from the published checkpoint."
            ) from error


class Tokenizer:
    """Qwen2's byte-level BPE from ``tokenizer.json``, or from ``vocab.json`` and ``merges.txt``.

    Raises:
        CheckpointError: the files are damaged; some damage shows only when text is encoded or decoded.
    """

    def __init__(self, folder: Path) -> None:
        from tokenizers import Tokenizer as Fast

        self._folder = folder
        path = folder / "tokenizer.json"
        with _library(f"{folder}: the tokenizer cannot be read"):
            if path.is_file():
                # Not by its path, which the library takes as UTF-8 only.
                self._tokenizer: Any = Fast.from_buffer(path.read_bytes())
            else:
                from transformers import Qwen2Tokenizer

                self._tokenizer = Qwen2Tokenizer.from_pretrained(str(folder)).backend_tokenizer
            # Saved after a padded or truncated call, as trainers do, the file says to do so ever after.
            # transformers drops both when it loads one.
            self._tokenizer.no_padding()
            self._tokenizer.no_truncation()
            largest = max(self._tokenizer.get_vocab().values(), default=0)
        if largest > LARGEST_ID:
            # The library counts up to it, one by one, when it writes the vocabulary.
            raise CheckpointError(
                f"{folder}: the tokenizer has the id {largest}, and {LARGEST_ID} is the largest. Copy the "
                "tokenizer's files from the published checkpoint."
            )

    def encode(self, text: str) -> Array:
        """``text`` with its special tokens → ids int32 [1, S]."""
        with _library(f"{self._folder}: the tokenizer cannot encode {text[:40]!r}"):
            ids = self._tokenizer.encode(text, add_special_tokens=False).ids
        return np.array([ids], np.int32).reshape(1, -1)

    def ends(self, text: str) -> list[int]:
        """Where in ``text`` each of its tokens ends, in characters."""
        with _library(f"{self._folder}: the tokenizer cannot encode {text[:40]!r}"):
            return [end for _, end in self._tokenizer.encode(text, add_special_tokens=False).offsets]

    def id_of(self, token: str) -> int | None:
        """The id of one token, or None where the vocabulary lacks it."""
        found: int | None = self._tokenizer.token_to_id(token)
        return found

    def is_whole(self, token: str) -> bool:
        """Whether ``token``, met in a text, is its one id; false where the vocabulary lacks it."""
        return bool(self.encode(token).tolist() == [[self.id_of(token)]])

    def decode(self, ids: Sequence[int]) -> str:
        """Ids → text, special tokens left out."""
        with _library(f"{self._folder}: the tokenizer cannot decode its ids"):
            text: str = self._tokenizer.decode(list(ids), skip_special_tokens=True)
        return text

    def save(self, path: Path) -> None:
        """Writes it as one ``tokenizer.json``."""
        with _library(f"{self._folder}: the tokenizer cannot be written as one file"):
            content: str = self._tokenizer.to_str(pretty=True)
        path.write_text(content, encoding="utf-8")

    def stream(self) -> TextStream:
        """Text of ids that come one by one."""
        return TextStream(self)

    def step(self, stream: Any, token: int) -> str:
        """What ``token`` adds to the text of a ``DecodeStream``."""
        with _library(f"{self._folder}: the tokenizer cannot decode the id {token}"):
            piece: str = stream.step(self._tokenizer, token) or ""
        return piece


class TextStream:
    """Token ids → text, piece by piece; a character whose bytes are spread over tokens comes whole."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        from tokenizers.decoders import DecodeStream

        self._tokenizer = tokenizer
        self._stream: Any = DecodeStream(skip_special_tokens=True)
        self._ids: list[int] = []
        self._given = ""

    def add(self, token: int) -> str:
        """What ``token`` adds to the text; empty in the middle of a character."""
        self._ids.append(token)
        piece = self._tokenizer.step(self._stream, token)
        self._given += piece
        return piece

    def rest(self) -> str:
        """What is left when no token follows: the replacement of a character that was cut off."""
        whole = self._tokenizer.decode(self._ids)
        return whole[len(self._given) :] if whole.startswith(self._given) else ""
