"""Pooling (defs/iOS15/pool.py); x [B, C, spatial...]."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from mobile_o_export.backends.coreml.interpreter.ops_conv import pad_spatial, window_pads
from mobile_o_export.backends.coreml.interpreter.registry import Call, Result, implements

_AVG = {1: functional.avg_pool1d, 2: functional.avg_pool2d, 3: functional.avg_pool3d}
_MAX = {1: functional.max_pool1d, 2: functional.max_pool2d, 3: functional.max_pool3d}
_OPTIONS = "strides pad_type pad ceil_mode"


def _window(call: Call) -> tuple[int, list[int], list[int], list[tuple[int, int]], list[tuple[int, int]]]:
    """Rank, kernel, strides, padding, and padding with what ``ceil_mode`` adds after the data.

    The number of windows under ``ceil_mode`` is ``spatial_dimensions_out_shape``'s: the last one must
    start inside of the data or of the padding before it.
    """
    x, kernel = call.tensor("x"), call.integers("kernel_sizes")
    rank = x.dim() - 2
    sizes = list(x.shape[2:])
    strides = call.integers("strides") or [1] * rank
    pads = window_pads(call, sizes, kernel, strides)
    grown = list(pads)
    if call.flag("ceil_mode", False):
        for axis, (before, after) in enumerate(pads):
            span = sizes[axis] + before + after - kernel[axis]
            count = -(-span // strides[axis]) + 1
            if (count - 1) * strides[axis] >= sizes[axis] + before:
                count -= 1
            grown[axis] = (before, after + max(0, (count - 1) * strides[axis] - span))
    return rank, kernel, strides, pads, grown


def _sums(x: Tensor, rank: int, kernel: list[int], strides: list[int]) -> Tensor:
    return _AVG[rank](x, kernel, strides) * math.prod(kernel)


@implements("avg_pool", "x kernel_sizes", f"{_OPTIONS} exclude_padding_from_average")
def _avg_pool(call: Call) -> Result:
    x = call.tensor("x")
    rank, kernel, strides, pads, grown = _window(call)
    exclude = call.flag("exclude_padding_from_average", False)
    if grown == pads and (not exclude or not any(map(sum, pads))):
        return _AVG[rank](pad_spatial(x, pads), kernel, strides)
    # Count what each window averages over: data, plus padding unless excluded, never ceil_mode's rest.
    counted = torch.ones(1, 1, *x.shape[2:])
    rest = [(g[0] - p[0], g[1] - p[1]) for g, p in zip(grown, pads, strict=True)]
    counted = pad_spatial(pad_spatial(counted, pads, 0.0 if exclude else 1.0), rest)
    return _sums(pad_spatial(x, grown), rank, kernel, strides) / _sums(counted, rank, kernel, strides)


@implements("max_pool", "x kernel_sizes", _OPTIONS, exact=True)
def _max_pool(call: Call) -> Result:
    rank, kernel, strides, _, grown = _window(call)
    result: Tensor = _MAX[rank](pad_spatial(call.tensor("x"), grown, -math.inf), kernel, strides)
    return result


@implements("l2_pool", "x kernel_sizes", _OPTIONS)
def _l2_pool(call: Call) -> Result:
    rank, kernel, strides, _, grown = _window(call)
    return _sums(pad_spatial(call.tensor("x").square(), grown), rank, kernel, strides).sqrt()
