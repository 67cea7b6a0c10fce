"""The four tasks of a model in one place: draw, edit, answer about a picture, chat."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Self

from mobile_o_export.parity.metrics import Array
from mobile_o_export.pipelines.answering import Answer
from mobile_o_export.pipelines.conversation import DEFAULT_ANSWER_TOKENS, Conversation
from mobile_o_export.pipelines.drawing import Brush, Drawing, SchedulerFactory, draw
from mobile_o_export.pipelines.settings import Settings
from mobile_o_export.pipelines.workbench import ImageInput, Workbench

TORCH = "torch"
"""The target that is no file: a checkpoint in PyTorch."""


class Pipeline:
    """The tasks; use it in a ``with`` statement. Components are loaded when they are first needed.

    Attributes:
        target: of the bundle whose files these are, or ``TORCH``.
    """

    def __init__(self, bench: Workbench, scheduler: SchedulerFactory, target: str) -> None:
        self.target = target
        self._bench = bench
        self._scheduler = scheduler

    @property
    def settings(self) -> Settings:
        """What the model needs beside its graphs."""
        return self._bench.settings

    @property
    def runtimes(self) -> Mapping[str, str]:
        """What computed each component that was used so far."""
        return self._bench.runtimes

    def generate(
        self,
        prompt: str,
        *,
        seed: int = 0,
        steps: int | None = None,
        guidance: float | None = None,
        truncate: bool = False,
        latent: Array | None = None,
    ) -> Drawing:
        """Draws a picture.

        Args:
            prompt: what to draw.
            seed: 0 to 2^32 - 1; the same seed is the same picture everywhere.
            steps: 1 to 250; the model's own, 20, by default.
            guidance: weight of the conditional branch; the model's own, 1.2, by default.
            truncate: cut a prompt that is too long at its end.
            latent: the initial latent float32 [1, C, Y, X] itself, instead of a seed.

        Raises:
            UsageError: the prompt is empty or too long, a number is out of range, a component is not there.
        """
        brush = Brush(seed, steps, guidance, truncate, latent)
        return draw(self._bench, self._scheduler, prompt, None, brush)

    def edit(
        self,
        image: ImageInput,
        prompt: str,
        *,
        seed: int = 0,
        steps: int | None = None,
        guidance: float | None = None,
        truncate: bool = False,
        latent: Array | None = None,
    ) -> Drawing:
        """Draws ``image`` changed as ``prompt`` says; otherwise like :meth:`generate`.

        ``image`` is a file, a picture, or the encoder's input, float32 [1, 3, R, R] in 0..1.
        """
        brush = Brush(seed, steps, guidance, truncate, latent)
        return draw(self._bench, self._scheduler, prompt, image, brush)

    def describe(
        self,
        image: ImageInput,
        question: str,
        *,
        max_tokens: int = DEFAULT_ANSWER_TOKENS,
        truncate: bool = False,
        stop: bool = True,
        led_by: Sequence[int] = (),
    ) -> Answer:
        """Answers ``question`` about ``image``; see :meth:`Conversation.ask`."""
        return self.chat().ask(
            question, image, max_tokens=max_tokens, truncate=truncate, stop=stop, led_by=led_by
        )

    def chat(self) -> Conversation:
        """A conversation of several turns, about pictures or not."""
        return Conversation(self._bench)

    def close(self) -> None:
        """Frees what is loaded."""
        self._bench.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
