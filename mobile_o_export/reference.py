"""PyTorch as a runner: the truth that goldens record, behind the interface that files are run by."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

from mobile_o_export.components.registry import component
from mobile_o_export.parity.metrics import Array

if TYPE_CHECKING:
    from mobile_o_export.checkpoint import Checkpoint
    from mobile_o_export.components.base import ReferenceCalls


class TorchRunner:
    """One component in PyTorch, fp32, unpadded."""

    def __init__(self, calls: ReferenceCalls) -> None:
        self._calls: ReferenceCalls | None = calls

    @classmethod
    def of(cls, checkpoint: Checkpoint, name: str) -> TorchRunner:
        """The component ``name`` of ``checkpoint``."""
        found = component(name)
        return cls(found.reference(found.load(checkpoint), checkpoint))

    def run(self, function: str, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Outputs of ``function`` by name."""
        import torch

        assert self._calls is not None, "the runner is closed"
        with torch.no_grad():
            tensors = {name: torch.from_numpy(value) for name, value in inputs.items()}
            outputs = self._calls.call(function, tensors)
        return {name: tensor.contiguous().numpy() for name, tensor in outputs.items()}

    def close(self) -> None:
        """Lets go of the weights."""
        self._calls = None


class TorchRunners:
    """Opens components of a checkpoint; each is loaded when opened and freed when closed."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint

    @contextmanager
    def open(self, name: str) -> Iterator[TorchRunner]:
        """The component ``name`` as a runner."""
        runner = TorchRunner.of(self._checkpoint, name)
        try:
            yield runner
        finally:
            # Whoever still holds the runner must not hold the weights.
            runner.close()
