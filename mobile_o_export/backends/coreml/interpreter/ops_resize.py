"""Resizing, cropping and padding of images (defs/iOS15-17/image_resizing.py), x [..., H, W]."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mobile_o_export.backends.coreml.interpreter.registry import Call, Result, implements


def _grid(call: Call, mode: str, size: int, target: int) -> Tensor:
    """Where each of ``target`` samples lies in ``[0, size - 1]``; formulas of ``resize_bilinear``'s Notes."""
    index = torch.arange(target, dtype=torch.float64)
    if mode in ("STRICT_ALIGN_CORNERS", "ALIGN_CORNERS"):
        points = index * ((size - 1) / (target - 1)) if target > 1 else index * 0.0
        if target == 1 and mode == "ALIGN_CORNERS":
            points = points + (size - 1) / 2
    elif mode == "DEFAULT":
        points = index * (size / target)
    elif mode == "OFFSET_CORNERS":
        points = (index + 0.5) * (max(1, size - 1) / target)
    elif mode == "UNALIGN_CORNERS":
        points = (index + 0.5) * (size / target) - 0.5
    else:
        raise call.unsupported(f"sampling_mode {mode!r}")
    return points.clamp(0, size - 1)


def _linear(call: Call, x: Tensor, axis: int, target: int, mode: str) -> Tensor:
    """``x`` sampled linearly along ``axis``."""
    size = x.shape[axis]
    points = _grid(call, mode, size, target)
    low = points.floor().long()
    weight = (points - low).to(x.dtype).reshape(-1, *([1] * (x.dim() - 1 - axis % x.dim())))
    lower = x.index_select(axis, low)
    if not bool(weight.any()):
        return lower
    return torch.lerp(lower, x.index_select(axis, (low + 1).clamp(max=size - 1)), weight)


def _floored(x: Tensor, axis: int, target: int) -> Tensor:
    """``x`` sampled along ``axis`` at floor(i * size / target)."""
    if target % x.shape[axis] == 0:
        # A strided copy: many times faster than an index for each element of the last axis.
        return x.repeat_interleave(target // x.shape[axis], axis)
    return x.index_select(axis, torch.arange(target) * x.shape[axis] // target)


def _nearest(call: Call, x: Tensor, axis: int, target: int, mode: str) -> Tensor:
    """``x`` sampled along ``axis`` at the pixel nearest to where ``mode`` of ``resize`` puts the sample.

    ``DEFAULT`` is there what ``UNALIGN_CORNERS`` is, the pixel under the sample's centre: coremltools 9.0
    makes it of TensorFlow's ``half_pixel_centers``, and its own test has 2 rows to 3 as the 1st, 2nd and 2nd.
    """
    index, size = torch.arange(target), x.shape[axis]
    if mode in ("DEFAULT", "UNALIGN_CORNERS"):
        return x.index_select(axis, (2 * index + 1) * size // (2 * target))
    places = (_grid(call, mode, size, target) + 0.5).floor().long()
    return x.index_select(axis, places.clamp(max=size - 1))


def _scaled_sizes(call: Call) -> tuple[int, int]:
    x = call.tensor("x")
    height = math.floor(x.shape[-2] * call.number("scale_factor_height", 1))
    return height, math.floor(x.shape[-1] * call.number("scale_factor_width", 1))


@implements("upsample_nearest_neighbor", "x", "scale_factor_height scale_factor_width", exact=True)
def _upsample_nearest_neighbor(call: Call) -> Result:
    height, width = _scaled_sizes(call)
    return _floored(_floored(call.tensor("x"), -2, height), -1, width)


@implements("resize_nearest_neighbor", "x target_size_height target_size_width", exact=True)
def _resize_nearest_neighbor(call: Call) -> Result:
    height, width = call.integer("target_size_height", 1), call.integer("target_size_width", 1)
    return _floored(_floored(call.tensor("x"), -2, height), -1, width)


@implements(
    "upsample_bilinear", "x", "scale_factor_height scale_factor_width align_corners half_pixel_centers"
)
def _upsample_bilinear(call: Call) -> Result:
    align = call.flag("align_corners", True)
    half_pixel = call.flag("half_pixel_centers", not align)
    if align and half_pixel:
        raise call.unsupported("align_corners together with half_pixel_centers")
    mode = "STRICT_ALIGN_CORNERS" if align else "UNALIGN_CORNERS" if half_pixel else "DEFAULT"
    height, width = _scaled_sizes(call)
    return _linear(call, _linear(call, call.tensor("x"), -2, height, mode), -1, width, mode)


@implements("resize_bilinear", "x", "target_size_height target_size_width sampling_mode")
def _resize_bilinear(call: Call) -> Result:
    mode = call.text("sampling_mode", "DEFAULT")
    x = _linear(call, call.tensor("x"), -2, call.integer("target_size_height", 1), mode)
    return _linear(call, x, -1, call.integer("target_size_width", 1), mode)


@implements("resize", "x shape resized_dims", "interpolation_mode sampling_mode")
def _resize(call: Call) -> Result:
    """The last ``resized_dims`` of ``shape`` are the sizes wanted; 0 keeps the size."""
    x, count = call.tensor("x"), call.integer("resized_dims", 0)
    mode = call.text("sampling_mode", "DEFAULT")
    interpolation = call.text("interpolation_mode", "LINEAR")
    if interpolation not in ("LINEAR", "NEAREST_NEIGHBOR"):
        raise call.unsupported(f"interpolation_mode {interpolation!r}")
    targets = call.integers("shape")[-count:] if count else []
    for axis, target in zip(range(-count, 0), targets, strict=True):
        if target in (0, x.shape[axis]):
            continue
        if interpolation == "LINEAR":
            x = _linear(call, x, axis, target, mode)
        else:
            x = _nearest(call, x, axis, target, mode)
    return x


@implements("crop", "x crop_height crop_width", exact=True)
def _crop(call: Call) -> Result:
    x = call.tensor("x")
    top, bottom = call.integers("crop_height")
    left, right = call.integers("crop_width")
    return x[..., top : x.shape[-2] - bottom, left : x.shape[-1] - right]


@implements("pad", "x pad", "mode constant_val", exact=True)
def _pad(call: Call) -> Result:
    """``pad`` holds (before, after) of the last axes of x, as many as it has pairs."""
    x, mode, pads = call.tensor("x"), call.text("mode", "constant"), call.integers("pad")
    pairs = list(zip(pads[0::2], pads[1::2], strict=True))
    if mode == "constant":
        flat = [amount for pair in reversed(pairs) for amount in pair]
        value = call.tensor("constant_val").item() if call.has("constant_val") else 0
        return torch.nn.functional.pad(x, flat, value=value)
    for axis, (before, after) in zip(range(-len(pairs), 0), pairs, strict=True):
        index, last = torch.arange(-before, x.shape[axis] + after), x.shape[axis] - 1
        if mode == "replicate":
            index = index.clamp(0, last)
        elif mode == "reflect":
            index = last - (last - index.abs()).abs()
        else:
            raise call.unsupported(f"mode {mode!r}")
        x = x.index_select(axis, index)
    return x
