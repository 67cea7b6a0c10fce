"""Changes of shape and order of axes (defs/iOS15-17/tensor_transformation.py)."""

from __future__ import annotations

import torch
from torch.nn import functional

from mobile_o_export.backends.coreml.interpreter.registry import Call, Result, implements


@implements("reshape", "x shape", exact=True)
def _reshape(call: Call) -> Result:
    """0 keeps the size of x, counted from the right (iOS 17; the same as iOS 15 at equal ranks)."""
    x, shape = call.tensor("x"), call.integers("shape")
    for place in range(1, len(shape) + 1):
        if shape[-place] == 0 and x.numel() > 0:
            shape[-place] = x.shape[-place] if place <= x.dim() else 1
    return x.reshape(shape)


@implements("reshape_like", "x ref_tensors begins ends end_masks", exact=True)
def _reshape_like(call: Call) -> Result:
    shape: list[int] = []
    parts = zip(
        call.tensors("ref_tensors"),
        call.tensors("begins"),
        call.tensors("ends"),
        call.tensors("end_masks"),
        strict=True,
    )
    for reference, begin, end, end_mask in parts:
        stop = None if bool(end_mask) else int(end)
        shape.extend(reference.shape[int(begin) : stop])
    return call.tensor("x").reshape(shape)


@implements("transpose", "x perm", exact=True)
def _transpose(call: Call) -> Result:
    return call.tensor("x").permute(call.integers("perm"))


@implements("squeeze", "x", "axes", exact=True)
def _squeeze(call: Call) -> Result:
    x = call.tensor("x")
    return x.squeeze(tuple(call.integers("axes"))) if call.has("axes") else x.squeeze()


@implements("expand_dims", "x axes", exact=True)
def _expand_dims(call: Call) -> Result:
    """``axes`` count in the result."""
    x, axes = call.tensor("x"), call.integers("axes")
    rank = x.dim() + len(axes)
    for axis in sorted(axis % rank for axis in axes):
        x = x.unsqueeze(axis)
    return x


@implements("flatten2d", "x", "axis", exact=True)
def _flatten2d(call: Call) -> Result:
    x, axis = call.tensor("x"), call.integer("axis", 1)
    rows = 1
    for size in x.shape[:axis]:
        rows *= size
    return x.reshape(rows, -1)


@implements("concat", "values axis", "interleave", exact=True)
def _concat(call: Call) -> Result:
    values, axis = call.tensors("values"), call.integer("axis", 0)
    if values[0].dim() == 0:
        return torch.stack(values)
    if not call.flag("interleave", False):
        return torch.cat(values, axis)
    axis %= values[0].dim()
    return torch.stack(values, axis + 1).flatten(axis, axis + 1)


@implements("stack", "values axis", exact=True)
def _stack(call: Call) -> Result:
    return torch.stack(call.tensors("values"), call.integer("axis", 0))


@implements("split", "x axis", "num_splits split_sizes", exact=True)
def _split(call: Call) -> Result:
    x, axis = call.tensor("x"), call.integer("axis", 0)
    sizes = call.integers("split_sizes")
    if not sizes:
        count = call.integer("num_splits", 1)
        sizes = [x.shape[axis] // count] * count
    return torch.split_with_sizes(x, sizes, axis)


@implements("tile", "x reps", exact=True)
def _tile(call: Call) -> Result:
    return call.tensor("x").repeat(call.integers("reps"))


@implements("reverse", "x", "axes", exact=True)
def _reverse(call: Call) -> Result:
    x = call.tensor("x")
    return x.flip(call.integers("axes") if call.has("axes") else list(range(x.dim())))


@implements("sliding_windows", "x axis size", "stride", exact=True)
def _sliding_windows(call: Call) -> Result:
    """[..., n, ...] to [..., windows, size, ...]."""
    x = call.tensor("x")
    axis = call.integer("axis", 0) % x.dim()
    windows = x.unfold(axis, call.integer("size", 1), call.integer("stride", 1))
    return windows.movedim(-1, axis + 1)


@implements("pixel_shuffle", "x upscale_factor", exact=True)
def _pixel_shuffle(call: Call) -> Result:
    return functional.pixel_shuffle(call.tensor("x"), call.integer("upscale_factor", 1))


@implements("pixel_unshuffle", "x downscale_factor", exact=True)
def _pixel_unshuffle(call: Call) -> Result:
    return functional.pixel_unshuffle(call.tensor("x"), call.integer("downscale_factor", 1))


@implements("depth_to_space", "x block_size", exact=True)
def _depth_to_space(call: Call) -> Result:
    """TensorFlow's order: the block's position is the slow part of the channel, unlike pixel_shuffle."""
    x, block = call.tensor("x"), call.integer("block_size", 1)
    batch, channels, height, width = x.shape
    depth = channels // block**2
    x = x.reshape(batch, block, block, depth, height, width).permute(0, 3, 4, 1, 5, 2)
    return x.reshape(batch, depth, height * block, width * block)


@implements("space_to_depth", "x block_size", exact=True)
def _space_to_depth(call: Call) -> Result:
    """The inverse of ``depth_to_space``."""
    x, block = call.tensor("x"), call.integer("block_size", 1)
    batch, channels, height, width = x.shape
    x = x.reshape(batch, channels, height // block, block, width // block, block).permute(0, 3, 5, 1, 2, 4)
    return x.reshape(batch, channels * block**2, height // block, width // block)


@implements("shape", "x")
def _shape(call: Call) -> Result:
    return torch.tensor(list(call.tensor("x").shape), dtype=torch.int32)


@implements("reverse_sequence", "x lengths", "seq_axis batch_axis", exact=True)
def _reverse_sequence(call: Call) -> Result:
    """The first ``lengths[i]`` elements along ``seq_axis`` turned round, for each i of ``batch_axis``."""
    x, lengths = call.tensor("x"), call.tensor("lengths").long()
    along, across = call.integer("seq_axis", 0) % x.dim(), call.integer("batch_axis", 0) % x.dim()
    steps = torch.arange(x.shape[along])
    places = torch.where(steps < lengths[:, None], lengths[:, None] - 1 - steps, steps)
    shape = [1] * x.dim()
    shape[across], shape[along] = places.shape
    oriented = places if across < along else places.T
    return x.gather(along, oriented.reshape(shape).expand(x.shape))


@implements("space_to_batch", "x block_shape paddings", exact=True)
def _space_to_batch(call: Call) -> Result:
    """[N, C, H, W] → [N * b0 * b1, C, H', W']: every b-th pixel of the padded picture, offsets first."""
    x, (tall, wide) = call.tensor("x"), call.integers("block_shape")
    top, bottom, left, right = call.tensor("paddings").reshape(-1).tolist()
    x = torch.nn.functional.pad(x, (left, right, top, bottom))
    count, channels, height, width = x.shape
    split = x.reshape(count, channels, height // tall, tall, width // wide, wide)
    return split.permute(3, 5, 0, 1, 2, 4).reshape(-1, channels, height // tall, width // wide)


@implements("batch_to_space", "x block_shape crops", exact=True)
def _batch_to_space(call: Call) -> Result:
    """The way back, cropped."""
    x, (tall, wide) = call.tensor("x"), call.integers("block_shape")
    top, bottom, left, right = call.tensor("crops").reshape(-1).tolist()
    count, channels, height, width = x.shape
    split = x.reshape(tall, wide, count // (tall * wide), channels, height, width)
    whole = split.permute(2, 3, 4, 0, 5, 1).reshape(-1, channels, height * tall, width * wide)
    return whole[:, :, top : height * tall - bottom, left : width * wide - right]
