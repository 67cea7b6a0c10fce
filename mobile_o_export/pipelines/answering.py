"""Text from the LLM: prompts go into its KV cache once, greedy tokens come out one by one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from time import monotonic

import numpy as np

from mobile_o_export.errors import UsageError
from mobile_o_export.parity.metrics import Array
from mobile_o_export.pipelines.runner import Limits, Runner
from mobile_o_export.pipelines.tasks import Prompt, embed, embed_prompt, finite
from mobile_o_export.tokenizer import TextStream


@dataclass(frozen=True)
class Token:
    """One token of an answer.

    Attributes:
        id: in the vocabulary.
        text: what it adds to the text; empty in the middle of a character.
        logits: float32 [V], what it was the largest of.
    """

    id: int
    text: str
    logits: Array


class Stopped(StrEnum):
    """Why an answer ended."""

    END = "end"
    """The model ended its turn."""
    LENGTH = "length"
    """It had as many tokens as were asked for."""
    CONTEXT = "context"
    """The KV cache was full."""


class TokenSequence:
    """One sequence in an LLM's KV cache. An LLM holds one; beginning another interrupts it.

    Attributes:
        position: tokens in the cache.
        logits: float32 [1, 1, V], of the last of them.
        interrupted: whether another sequence took the cache over, or a call failed.
        turn: how many prompts were read.
    """

    def __init__(self, llm: Runner, limits: Limits) -> None:
        self._llm = llm
        self._limits = limits
        self._unread: list[int] = []
        self.position = 0
        self.logits: Array = np.empty((1, 1, 0), np.float32)
        self.interrupted = False
        self.turn = 0

    @property
    def room(self) -> int:
        """Tokens that the cache can still take."""
        return self._limits.context - self.position - len(self._unread)

    def read_prompt(self, prompt: Prompt, image_features: Array | None) -> dict[str, Array]:
        """Puts a prompt into the cache: by one prefill at the start, by decoding later on.

        Returns:
            The last call's outputs: ``hidden_states`` [1, K, S, D] are the whole prompt's after a prefill.

        Raises:
            UsageError: the sequence was interrupted.
        """
        self.turn += 1
        said = embed_prompt(self._llm, prompt, image_features, self._limits.prompt)
        return self._read(np.concatenate([*self._take_unread(), said], axis=1))

    def choose(self) -> int:
        """The most likely next token; it enters the cache with what is read next."""
        token = int(self.logits[0, -1].argmax())
        self._unread = [token]
        return token

    def choose_instead(self, token: int) -> None:
        """Lets ``token`` enter the cache in the place of the one that was chosen."""
        self._unread = [token]

    def read_choice(self) -> None:
        """Puts the chosen token into the cache, for the next one's logits."""
        self._read(*self._take_unread())

    def drop_choice(self) -> None:
        """Takes the chosen token back: the model ended its turn, and the template says how."""
        self._unread = []

    def _take_unread(self) -> list[Array]:
        """Embeddings [1, 1, D] of the token that was chosen last, if the cache lacks it."""
        tokens, self._unread = self._unread, []
        return [embed(self._llm, np.array([[token]], np.int32), self._limits.prompt) for token in tokens]

    def _read(self, embeds: Array) -> dict[str, Array]:
        if self.interrupted:
            raise UsageError(
                "the conversation was broken off: another task used the LLM, or a call of it failed. Begin a "
                "new conversation."
            )
        # Whatever ends a call in its middle leaves a cache that nobody knows.
        self.interrupted = True
        if self.position == 0:
            outputs = self._llm.run("prefill", {"inputs_embeds": embeds})
        else:
            for index in range(embeds.shape[1]):
                outputs = self._llm.run("decode", {"inputs_embeds": embeds[:, index : index + 1]})
        self.position += embeds.shape[1]
        self.logits = finite("llm", "logits", outputs["logits"])
        self.interrupted = False
        return outputs


class Answer:
    """A greedy answer; iterate over it for its tokens, which are computed then.

    Attributes:
        prompt_tokens: how long the prompt was, image tokens included.
        prompt_seconds: from the prompt to the first token's logits, by stage.
        image_features: [1, N, D] of the picture, if there was one.
        tokens: the ids given so far.
        decode_seconds: what each token after the first took.
        stopped: why it ended; None before it has.
    """

    def __init__(
        self,
        sequence: TokenSequence,
        stream: TextStream,
        max_tokens: int,
        stops: Sequence[int],
        prompt_tokens: int,
        prompt_seconds: dict[str, float],
        image_features: Array | None,
        led_by: Sequence[int] = (),
    ) -> None:
        self._sequence = sequence
        self._led_by = led_by
        self._turn = sequence.turn
        self._stream = stream
        self._max_tokens = max_tokens
        self._stops = frozenset(stops)
        self._pieces: list[str] = []
        self.prompt_tokens = prompt_tokens
        self.prompt_seconds = prompt_seconds
        self.image_features = image_features
        self.tokens: list[int] = []
        self.decode_seconds: list[float] = []
        self.stopped: Stopped | None = None

    @property
    def text(self) -> str:
        """What was said so far."""
        return "".join(self._pieces)

    @property
    def tokens_per_second(self) -> float | None:
        """Of decoding, prompt aside; None for a single token."""
        total = sum(self.decode_seconds)
        return len(self.decode_seconds) / total if total else None

    def __iter__(self) -> Iterator[Token]:
        """The tokens, as they are computed; the token that ends the turn is not among them.

        Raises:
            UsageError: the conversation has gone on, or another task uses the LLM.
            GateError: the logits are not finite.
        """
        while self.stopped is None:
            if self._sequence.turn != self._turn:
                raise UsageError("this answer was left for another message. Read it before asking on.")
            if self.tokens:
                started = monotonic()
                self._sequence.read_choice()
                self.decode_seconds.append(monotonic() - started)
            logits = self._sequence.logits[0, -1]
            token = self._sequence.choose()
            if token in self._stops:
                self._sequence.drop_choice()
                self._pieces.append(self._stream.rest())
                self.stopped = Stopped.END
                return
            if len(self.tokens) < len(self._led_by):
                self._sequence.choose_instead(self._led_by[len(self.tokens)])
            self.tokens.append(token)
            if len(self.tokens) == self._max_tokens:
                self.stopped = Stopped.LENGTH
            elif self._sequence.room < 0:
                self.stopped = Stopped.CONTEXT
            piece = self._stream.add(token)
            if self.stopped is not None:
                piece += self._stream.rest()
            self._pieces.append(piece)
            yield Token(token, piece, logits)
