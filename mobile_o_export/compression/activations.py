"""Activations as integers: what goes into a layer and comes out of it, and the scales that suit them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

if TYPE_CHECKING:
    from torch.utils.hooks import RemovableHandle

    from mobile_o_export.parity.metrics import Array

LOWEST, HIGHEST, PER_OCTAVE = -30, 40, 32
"""Magnitudes are counted from 2**LOWEST to 2**HIGHEST in bins that are equally wide in their logarithm."""

SAMPLE = 1_000_000
"""No more magnitudes of one call are counted, evenly over the tensor; its largest always is."""

LEAST_POWER = 1e-3
"""Of an input channel, over the mean, that the importance of weights counts with."""

CLIPPED = 2.0 ** -np.linspace(0, 6, 97)
"""Parts of the largest magnitude that integers are tried to span."""


@dataclass
class Magnitudes:
    """How large the numbers of a tensor were, over all calls.

    Attributes:
        counts: int64, how many magnitudes fell into each bin.
        largest: of them.
    """

    counts: Array = field(
        default_factory=lambda: np.zeros((HIGHEST - LOWEST) * PER_OCTAVE, np.int64), repr=False
    )
    largest: float = 0.0

    def add(self, x: torch.Tensor) -> None:
        """Counts the elements of ``x``."""
        magnitudes = x.detach().float().abs()
        self.largest = max(self.largest, float(magnitudes.max()))
        flat = magnitudes.flatten()
        flat = flat[:: -(-len(flat) // SAMPLE)]
        bins = ((flat[flat > 0].log2() - LOWEST) * PER_OCTAVE).long()
        self.counts += torch.bincount(bins.clamp(0, len(self.counts) - 1), minlength=len(self.counts)).numpy()

    def scale(self, bits: int) -> float:
        """The step of symmetric integers with the least squared error; an fp16 number up to 8 bits.

        What is clipped loses its excess; what is not, a uniform error of a step's width. Graphs in fp16 have
        their scales in fp16, where those of wider integers would be none of its normal numbers.
        """
        most = 2 ** (bits - 1) - 1
        centres = 2.0 ** ((np.arange(len(self.counts)) + 0.5) / PER_OCTAVE + LOWEST)
        clips = (self.largest * CLIPPED)[:, None]
        rounding = np.minimum(np.square(clips / most) / 12, np.square(centres))
        excess = np.square(np.maximum(centres - clips, 0))
        errors = (self.counts * np.where(centres > clips, excess, rounding)).sum(axis=1)
        wanted = self.largest * CLIPPED[int(np.argmin(errors))] / most
        kind = np.float16 if bits <= 8 else np.float32
        return float(kind(np.clip(wanted, np.finfo(kind).tiny, np.finfo(kind).max))) if wanted > 0 else 1.0


@dataclass
class Observed:
    """What one layer took and gave, over all calls.

    Attributes:
        inputs: of the layer.
        outputs: of the layer, before whatever follows it.
        squares: float64 [C], the sum of squares of each input channel; ``positions`` of each were summed.
    """

    inputs: Magnitudes = field(default_factory=Magnitudes)
    outputs: Magnitudes = field(default_factory=Magnitudes)
    squares: Array | float = field(default=0.0, repr=False)
    positions: int = 0

    def add(self, given: torch.Tensor, result: torch.Tensor, channel: int) -> None:
        """Counts a call; the input channels are the axis ``channel`` of what was ``given``."""
        self.inputs.add(given)
        self.outputs.add(result)
        others = [axis for axis in range(given.dim()) if axis != channel % given.dim()]
        power = given.detach().float().square().sum(others, dtype=torch.float64)
        self.squares = self.squares + power.numpy()
        self.positions += given.numel() // given.shape[channel]

    def importance(self, shape: tuple[int, ...]) -> Array:
        """How much an error of each weight of ``shape`` [O, I, …] matters: its input's power."""
        power = np.asarray(self.squares) / max(self.positions, 1)
        # What was silent in these calls need not be so in others.
        power = np.maximum(power, LEAST_POWER * power.mean()) if power.any() else np.ones_like(power)
        groups = len(power) // shape[1]
        rows = np.repeat(power.reshape(groups, shape[1]), shape[0] // groups, axis=0)
        return np.broadcast_to(rows.reshape(*rows.shape, *[1] * (len(shape) - 2)), shape)


Statistics = Mapping[str, Observed]
"""By the name of the layer's weight."""


@contextmanager
def observed(module: nn.Module) -> Iterator[dict[str, Observed]]:
    """Counts what the ``layers`` of ``module`` take and give while it is called."""
    found: dict[str, Observed] = {}
    hooks = []
    for name, layer in layers(module).items():
        found[name] = own = Observed()
        channel = -1 if isinstance(layer, nn.Linear) else 1

        def count(
            _layer: nn.Module,
            given: tuple[torch.Tensor, ...],
            result: torch.Tensor,
            own: Observed = own,
            channel: int = channel,
        ) -> None:
            own.add(given[0], result, channel)

        hooks.append(layer.register_forward_hook(count))
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def layers(module: nn.Module) -> dict[str, nn.Linear | nn.Conv2d]:
    """The layers whose inputs can be integers, by the name of their weight: linear ones, and convolutions of
    pictures.
    """
    return {
        f"{name}.weight": layer
        for name, layer in module.named_modules()
        if isinstance(layer, nn.Linear | nn.Conv2d)
    }


def quantize_inputs(layer: nn.Module, scale: float, bits: int) -> RemovableHandle:
    """Has ``layer`` compute with inputs that are integers of ``bits`` times ``scale``, until that is removed.

    By PT2E's operators, which converters lower to their own.
    """
    # Registers the operators that torch's exporters know quantisation by.
    from torch.ao.quantization.fx import _decomposed  # noqa: F401

    least, most = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    dtype = {8: torch.int8, 16: torch.int16}[bits]
    there = torch.ops.quantized_decomposed.quantize_per_tensor
    back = torch.ops.quantized_decomposed.dequantize_per_tensor

    def rounded(_layer: nn.Module, given: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        integers = there(given[0], scale, 0, least, most, dtype)
        return back(integers, scale, 0, least, most, dtype).to(given[0].dtype), *given[1:]

    return layer.register_forward_pre_hook(rounded)


def scale_inputs(layer: nn.Module) -> RemovableHandle:
    """Has ``layer`` compute with inputs that are int8, scaled at run time, until that is removed.

    Each row of a linear layer has a step of its own, each picture of a convolution. Runtimes differ in this:
    some have one for the tensor, or one for a block, and some a zero point.
    """
    axes = -1 if isinstance(layer, nn.Linear) else (1, 2, 3)

    def rounded(_layer: nn.Module, given: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        largest = given[0].abs().amax(axes, keepdim=True)
        step = largest.clamp_min(torch.finfo(largest.dtype).tiny) / 127
        return (given[0] / step).round() * step, *given[1:]

    return layer.register_forward_pre_hook(rounded)
