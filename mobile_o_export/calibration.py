"""What a model's layers take and give: one set of statistics for every target."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from mobile_o_export.components.base import CacheStyle, GraphOptions
from mobile_o_export.components.registry import component
from mobile_o_export.quiet import quiet_vendor
from mobile_o_export.reference import TorchRunner
from mobile_o_export.tensors import DType

if TYPE_CHECKING:
    from mobile_o_export.checkpoint import Checkpoint
    from mobile_o_export.compression.activations import Statistics
    from mobile_o_export.golden import Golden
    from mobile_o_export.progress import Say

PREPARED = GraphOptions(
    lengths=(), max_length=1, context=2, cache=CacheStyle.GROWING, token_dtype=DType.INT64
)
"""Layers have the names that they are lowered under; lengths do not matter to PyTorch."""


class Calibration:
    """Statistics of a checkpoint's layers on recorded goldens, in fp32; each component is run once."""

    def __init__(self, checkpoint: Checkpoint, goldens: Sequence[Golden]) -> None:
        self._checkpoint = checkpoint
        self._goldens = goldens
        self._known: dict[str, Statistics] = {}

    def of(self, name: str, say: Say) -> Statistics:
        """What the layers of the component ``name`` take and give, over every recorded call."""
        if name not in self._known:
            self._known[name] = self._collected(name, say)
        return self._known[name]

    def _collected(self, name: str, say: Say) -> Statistics:
        from mobile_o_export.components import building
        from mobile_o_export.compression.activations import observed

        part = component(name)
        with quiet_vendor():
            module = building.prepare(part, part.load(self._checkpoint), PREPARED)
        runner = TorchRunner(part.reference(module, self._checkpoint))
        steps = [
            (golden, step) for golden in self._goldens for case in golden.cases(name) for step in case.steps
        ]
        with observed(module) as found:
            for index, (golden, step) in enumerate(steps):
                say(f"calibrating on call {index + 1} of {len(steps)}")
                runner.run(step.function, golden.inputs(step))
        return found
