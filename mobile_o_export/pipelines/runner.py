"""What a pipeline needs of whatever computes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from typing import Protocol

from mobile_o_export.parity.metrics import Array


class Runner(Protocol):
    """One component's functions, unpadded; ``session.Session`` and ``reference.TorchRunner`` are two.

    ``runtime`` names what computes.
    """

    @property
    def runtime(self) -> str: ...  # noqa: D102

    def run(self, function: str, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Outputs of ``function`` by name; an LLM keeps its sequence between calls."""
        ...


@dataclass(frozen=True)
class Limits:
    """How long sequences may get.

    Attributes:
        source: what sets the limits, for messages: a target's name.
        prompt: the longest prompt, tokens; image tokens included.
        context: the longest conversation, tokens: prompts and answers together.
    """

    source: str
    prompt: int
    context: int


class Runners(Protocol):
    """The components of one model in one place: a checkpoint, or a bundle's target."""

    @property
    def limits(self) -> Limits: ...  # noqa: D102

    def require(self, names: Sequence[str]) -> None:
        """Raises UsageError unless the components ``names`` are there."""
        ...

    def open(self, name: str) -> AbstractContextManager[Runner]:
        """The component ``name``, loaded; freed when the context ends."""
        ...


class KeptRunners:
    """Runners of which some stay loaded until ``close``: those that were asked to, or all that are opened."""

    def __init__(self, runners: Runners, keep_all: bool) -> None:
        self._runners = runners
        self._keep_all = keep_all
        self._stack = ExitStack()
        self._kept: dict[str, Runner] = {}
        self.limits = runners.limits

    def require(self, names: Sequence[str]) -> None:
        """As the runners underneath."""
        self._runners.require(names)

    @contextmanager
    def open(self, name: str) -> Iterator[Runner]:
        """The component ``name``; freed when the context ends, unless it is kept."""
        if self._keep_all or name in self._kept:
            yield self.keep(name)
        else:
            with self._runners.open(name) as runner:
                yield runner

    def keep(self, name: str) -> Runner:
        """The component ``name``, loaded now if it was not, until ``close``."""
        if name not in self._kept:
            self._kept[name] = self._stack.enter_context(self._runners.open(name))
        return self._kept[name]

    def close(self) -> None:
        """Frees everything."""
        self._kept.clear()
        self._stack.close()
