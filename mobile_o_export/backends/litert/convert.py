"""PyTorch graphs → one .tflite with a signature each."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from mobile_o_export.backends.litert.encode import FENCE
from mobile_o_export.backends.tracing import Named, unprinted
from mobile_o_export.components import building

if TYPE_CHECKING:
    from mobile_o_export.components.base import GraphSpec


def convert(graphs: Sequence[tuple[GraphSpec, nn.Module]], path: Path) -> None:
    """Writes ``graphs`` as signatures of one file; weights that they share are stored once."""
    import litert_torch

    converter = litert_torch
    with torch.no_grad(), unprinted():
        for spec, module in graphs:
            arguments = dict(
                zip((tensor.name for tensor in spec.inputs), building.examples(spec), strict=True)
            )
            converter = converter.signature(spec.name, Named(module, spec).eval(), sample_kwargs=arguments)
        converter.convert().export(str(path))


def fence(module: nn.Module) -> None:
    """Keeps the converter from multiplying norms and scales into the weights of linear layers.

    It would give products that fp16 rounds, and that integers do not restore.
    """
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            layer.register_forward_pre_hook(_fenced_input)
            layer.register_forward_hook(_fenced_output)


def _fenced_input(_layer: nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    return tuple(x.clamp_min(float(FENCE)) for x in inputs)


def _fenced_output(_layer: nn.Module, _inputs: object, output: torch.Tensor) -> torch.Tensor:
    return output.clamp_min(float(FENCE))
