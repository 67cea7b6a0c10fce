"""Activations as integers: what a layer's inputs are like, and the scale that suits them.

A layer whose weight has static integer activations gets its inputs rounded to integers in PyTorch, before
lowering, by a hook of PT2E's operators; every backend lowers these to its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

if TYPE_CHECKING:
    from mobile_o_export.parity.metrics import Array

LOWEST, HIGHEST, PER_OCTAVE = -30, 20, 32
"""Magnitudes are counted from 2**LOWEST to 2**HIGHEST in bins that are equally wide in their logarithm."""

SAMPLE = 1_000_000
"""No more magnitudes of one call are counted, evenly over the tensor; its largest always is."""

CLIPPED = 2.0 ** -np.linspace(0, 6, 97)
"""Parts of the largest magnitude that integers are tried to span."""


@dataclass
class Inputs:
    """What one layer's inputs were, over all calls.

    Attributes:
        counts: int64, how many magnitudes fell into each bin.
        largest: magnitude.
        squares: float64 [C], the sum of squares of each input channel; ``positions`` of each were summed.
    """

    counts: Array = field(
        default_factory=lambda: np.zeros((HIGHEST - LOWEST) * PER_OCTAVE, np.int64), repr=False
    )
    largest: float = 0.0
    squares: Array | float = field(default=0.0, repr=False)
    positions: int = 0

    def add(self, x: torch.Tensor, channel: int) -> None:
        """Counts the elements of ``x``, whose input channels are the axis ``channel``."""
        magnitudes = x.detach().float().abs()
        self.largest = max(self.largest, float(magnitudes.max()))
        others = [axis for axis in range(x.dim()) if axis != channel % x.dim()]
        self.squares = self.squares + magnitudes.square().sum(others, dtype=torch.float64).numpy()
        self.positions += x.numel() // x.shape[channel]
        flat = magnitudes.flatten()
        flat = flat[:: -(-len(flat) // SAMPLE)]
        bins = ((flat[flat > 0].log2() - LOWEST) * PER_OCTAVE).long()
        self.counts += torch.bincount(bins.clamp(0, len(self.counts) - 1), minlength=len(self.counts)).numpy()

    def scale(self, bits: int) -> float:
        """The step of symmetric integers with the least squared error: an fp16 number.

        What is clipped loses its excess; what is not, a uniform error of a step's width.
        """
        most = 2 ** (bits - 1) - 1
        centres = 2.0 ** ((np.arange(len(self.counts)) + 0.5) / PER_OCTAVE + LOWEST)
        clips = (self.largest * CLIPPED)[:, None]
        rounding = np.minimum(np.square(clips / most) / 12, np.square(centres))
        excess = np.square(np.maximum(centres - clips, 0))
        errors = (self.counts * np.where(centres > clips, excess, rounding)).sum(axis=1)
        wanted = self.largest * CLIPPED[int(np.argmin(errors))] / most
        return float(max(np.float16(wanted), np.finfo(np.float16).tiny)) if wanted > 0 else 1.0

    def importance(self, shape: tuple[int, ...]) -> Array:
        """How much an error of each weight of ``shape`` [O, I, …] matters: its input's power."""
        power = np.asarray(self.squares) / max(self.positions, 1)
        groups = len(power) // shape[1]
        rows = np.repeat(power.reshape(groups, shape[1]), shape[0] // groups, axis=0)
        return np.broadcast_to(rows.reshape(*rows.shape, *[1] * (len(shape) - 2)), shape)


Statistics = Mapping[str, Inputs]
"""By the name of the weight that the inputs meet."""


@contextmanager
def observed(module: nn.Module) -> Iterator[dict[str, Inputs]]:
    """Counts the inputs of every linear layer and convolution of ``module`` while it is called."""
    found: dict[str, Inputs] = {}
    hooks = []
    for name, layer in layers(module).items():
        found[name] = own = Inputs()
        channel = -1 if isinstance(layer, nn.Linear) else 1

        def count(
            _layer: nn.Module, given: tuple[torch.Tensor, ...], own: Inputs = own, channel: int = channel
        ) -> None:
            own.add(given[0], channel)

        hooks.append(layer.register_forward_pre_hook(count))
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def layers(module: nn.Module) -> dict[str, nn.Linear | nn.Conv2d]:
    """The layers whose inputs can be integers, by the name of their weight."""
    return {
        f"{name}.weight": layer
        for name, layer in module.named_modules()
        if isinstance(layer, nn.Linear | nn.Conv2d)
    }


def quantize_inputs(layer: nn.Module, scale: float, bits: int) -> None:
    """Has ``layer`` compute with inputs that are integers of ``bits`` times ``scale``."""
    # Registers the operators that torch's exporters know quantisation by.
    from torch.ao.quantization.fx import _decomposed  # noqa: F401

    least, most = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    dtype = {8: torch.int8, 16: torch.int16}[bits]
    there = torch.ops.quantized_decomposed.quantize_per_tensor
    back = torch.ops.quantized_decomposed.dequantize_per_tensor

    def rounded(_layer: nn.Module, given: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        integers = there(given[0], scale, 0, least, most, dtype)
        return back(integers, scale, 0, least, most, dtype).to(given[0].dtype), *given[1:]

    layer.register_forward_pre_hook(rounded)
