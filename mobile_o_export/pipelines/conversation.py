"""Questions about pictures and conversations of several turns, over one KV cache."""

from __future__ import annotations

from collections.abc import Sequence

from mobile_o_export.errors import PromptTooLongError, UsageError
from mobile_o_export.pipelines.answering import Answer, TokenSequence
from mobile_o_export.pipelines.prompts import Task
from mobile_o_export.pipelines.workbench import LLM, VISION, ImageInput, Stopwatch, Workbench

COMPONENTS = (LLM,)

DEFAULT_ANSWER_TOKENS = 256


class Conversation:
    """Turns of a user and the model. What was said stays in the KV cache and is not read again.

    A bench has one KV cache: another task on it ends the conversation.
    """

    def __init__(self, bench: Workbench) -> None:
        self._bench = bench
        self._sequence: TokenSequence | None = None

    def ask(
        self,
        text: str,
        image: ImageInput | None = None,
        *,
        max_tokens: int = DEFAULT_ANSWER_TOKENS,
        truncate: bool = False,
        stop: bool = True,
        led_by: Sequence[int] = (),
    ) -> Answer:
        """The answer to ``text``, and to ``image`` if there is one; iterate over it for its tokens.

        Image and prompt are read before this returns.

        Args:
            text: what the user says.
            image: a picture's file, a picture, or the encoder's input, float32 [1, 3, R, R] in 0..1.
            max_tokens: the longest answer.
            truncate: cut a text that is too long at its end.
            stop: end where the model ends its turn; False goes on to ``max_tokens``.
            led_by: tokens that the model reads in the places of those that it chooses, so that each choice is
                the one after the same text, whatever was chosen before.

        Raises:
            UsageError: the text is empty or too long, the image cannot be read, the conversation is over, or
                a component is not there.
        """
        if max_tokens < 1:
            raise UsageError(f"an answer of {max_tokens} tokens says nothing. Ask for 1 or more.")
        bench = self._bench
        bench.require(*COMPONENTS, *(() if image is None else (VISION,)))
        if self._sequence is None:
            prompt = bench.fitted_prompt(Task.CHAT if image is None else Task.DESCRIBE, text, truncate)
        elif self._sequence.room < 1:
            raise PromptTooLongError(
                f"the cache is full ({self._sequence.position} tokens). Begin a new conversation."
            )
        else:
            task = Task.NEXT_TURN if image is None else Task.NEXT_TURN_WITH_IMAGE
            prompt = bench.fitted_prompt(task, text, truncate, self._sequence.room)
        watch = Stopwatch()
        features = None if image is None else bench.encode(image, watch)
        llm = bench.keep(LLM, watch)
        if self._sequence is None:
            self._sequence = bench.begin_sequence(llm)
        bench.say(f"reading the prompt, {prompt.length} tokens")
        with watch(LLM):
            self._sequence.read_prompt(prompt, features)
        return Answer(
            sequence=self._sequence,
            stream=bench.tokenizer.stream(),
            max_tokens=max_tokens,
            stops=bench.settings.numbers.stop_token_ids if stop else (),
            prompt_tokens=prompt.length,
            prompt_seconds=watch.seconds,
            image_features=features,
            led_by=led_by,
        )
