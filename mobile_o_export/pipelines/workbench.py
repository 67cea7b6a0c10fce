"""What every task works with: runners that load on demand, tokenizer, settings, and a stopwatch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from mobile_o_export.errors import UsageError
from mobile_o_export.parity.metrics import Array
from mobile_o_export.pipelines import tasks
from mobile_o_export.pipelines.answering import TokenSequence
from mobile_o_export.pipelines.preprocessing import as_rgb, load_picture, pixel_values
from mobile_o_export.pipelines.prompts import Task
from mobile_o_export.pipelines.runner import KeptRunners, Runner, Runners
from mobile_o_export.pipelines.settings import Settings
from mobile_o_export.progress import Say
from mobile_o_export.tokenizer import Tokenizer

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

VISION, LLM, MCP, DIT, VAE = "vision_encoder", "llm", "mcp", "dit", "vae_decoder"

LOADING = "loading"
"""The stage of a timing that opens files; the others are called after their component."""

ImageInput: TypeAlias = "Path | str | Picture | Array"
"""A picture's file, the picture, or the encoder's own input, float32 [1, 3, R, R] in 0..1."""


class Stopwatch:
    """Seconds by stage."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        """Adds what the body takes to ``stage``."""
        started = monotonic()
        try:
            yield
        finally:
            self.seconds[stage] = self.seconds.get(stage, 0.0) + monotonic() - started


class Workbench:
    """One model in one place.

    Attributes:
        runtimes: what computed each component that was opened.
    """

    def __init__(
        self, runners: Runners, tokenizer: Tokenizer, settings: Settings, *, keep: bool, say: Say
    ) -> None:
        self._runners = KeptRunners(runners, keep_all=keep)
        self._sequence: TokenSequence | None = None
        self.tokenizer = tokenizer
        self.settings = settings
        self.limits = runners.limits
        self.say = say
        self.runtimes: dict[str, str] = {}

    def require(self, *names: str) -> None:
        """Raises UsageError unless the components ``names`` are there."""
        self._runners.require(names)

    @contextmanager
    def open(self, name: str, watch: Stopwatch) -> Iterator[Runner]:
        """The component ``name``, loaded."""
        with ExitStack() as stack:
            yield self._loaded(name, watch, lambda: stack.enter_context(self._runners.open(name)))

    def keep(self, name: str, watch: Stopwatch) -> Runner:
        """The component ``name``, loaded until the bench is closed."""
        return self._loaded(name, watch, lambda: self._runners.keep(name))

    def _loaded(self, name: str, watch: Stopwatch, load: Callable[[], Runner]) -> Runner:
        """What ``load`` gives, with what it took and what computes it."""
        self.say(f"loading {name}")
        with watch(LOADING):
            runner = load()
        self.runtimes[name] = runner.runtime
        return runner

    def close(self) -> None:
        """Frees what is loaded."""
        self._runners.close()

    def fitted_prompt(
        self, task: Task, text: str, truncate: bool, longest: int | None = None
    ) -> tasks.Prompt:
        """The prompt of ``task``, no longer than the ``longest`` that a conversation has room for, if given.

        Raises:
            UsageError: it is empty, or longer and may not be cut.
        """
        return tasks.fitted_prompt(
            self.tokenizer,
            self.settings.templates,
            task,
            text,
            self.settings.numbers.image_tokens,
            self.limits.source if longest is None else "the conversation",
            self.limits.prompt if longest is None else longest,
            truncate,
        )

    def encode(self, image: ImageInput, watch: Stopwatch) -> Array:
        """Features [1, N, D] of a picture.

        Raises:
            UsageError: the file is no picture.
        """
        pixels = self._pixels(image)
        with self.open(VISION, watch) as runner, watch(VISION):
            self.say("looking at the picture")
            return runner.run("encode", {"image": pixels})["image_features"]

    def begin_sequence(self, llm: Runner) -> TokenSequence:
        """A new sequence in the LLM's cache; the one before it is over."""
        if self._sequence is not None:
            self._sequence.interrupted = True
        self._sequence = TokenSequence(llm, self.limits)
        return self._sequence

    def _pixels(self, image: ImageInput) -> Array:
        wanted = self.settings.preprocessing
        if isinstance(image, np.ndarray):
            return checked_array("the image", image, (1, 3, wanted.image_size, wanted.image_size))
        picture = load_picture(Path(image)) if isinstance(image, Path | str) else as_rgb(image)
        return pixel_values(picture, wanted.image_size, square=wanted.square_first)


def checked_array(what: str, value: Array, shape: Sequence[int]) -> Array:
    """A caller's array as float32.

    Raises:
        UsageError: it has another shape, or is not finite.
    """
    if value.shape != tuple(shape):
        raise UsageError(f"{what} has shape {list(value.shape)}; this model takes {list(shape)}.")
    if not np.issubdtype(value.dtype, np.number) or not np.isfinite(value).all():
        raise UsageError(f"{what} holds values that are no finite numbers.")
    return value.astype(np.float32, copy=False)
