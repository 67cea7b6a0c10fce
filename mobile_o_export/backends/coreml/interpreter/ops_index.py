"""Slices, gathers and scatters (defs/iOS15-18/{tensor_transformation,scatter_gather}.py)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mobile_o_export.backends.coreml.interpreter.errors import EvaluationError
from mobile_o_export.backends.coreml.interpreter.registry import Call, Result, implements

_SLICE_OPTIONS = "stride begin_mask end_mask squeeze_mask"


def _sliced(call: Call, x: Tensor) -> Tensor:
    """NumPy's ``x[begin:end:stride]`` on every axis, as ``solve_slice_by_index_slice`` builds it.

    A set ``begin_mask`` or ``end_mask`` leaves that bound out; ``squeeze_mask`` takes the one index
    ``begin`` and drops the axis. A view wherever no stride is negative.
    """
    begin, end = call.integers("begin"), call.integers("end")
    stride = call.integers("stride") or [1] * x.dim()
    no_begin = call.integers("begin_mask") or [0] * x.dim()
    no_end = call.integers("end_mask") or [0] * x.dim()
    squeeze = call.integers("squeeze_mask") or [0] * x.dim()
    # From the last axis on, so that dropped axes do not move those still to come.
    for axis in reversed(range(x.dim())):
        size = x.shape[axis]
        if squeeze[axis]:
            x = x.select(axis, 0 if no_begin[axis] else begin[axis])
            continue
        bounds = slice(
            None if no_begin[axis] else begin[axis], None if no_end[axis] else end[axis], stride[axis]
        )
        places = range(*bounds.indices(size))
        if stride[axis] < 0:
            x = x.index_select(axis, torch.tensor(list(places), dtype=torch.long))
        elif len(places) < size:
            x = x[(slice(None),) * axis + (slice(places.start, places.stop, places.step),)]
    return x


@implements("slice_by_index", "x begin end", _SLICE_OPTIONS, exact=True)
def _slice_by_index(call: Call) -> Result:
    return _sliced(call, call.tensor("x"))


@implements("slice_update", "x update begin end", _SLICE_OPTIONS, exact=True)
def _slice_update(call: Call) -> Result:
    x, update = call.tensor("x"), call.tensor("update")
    result = x.clone(memory_format=torch.contiguous_format)
    if any(step < 0 for step in call.integers("stride")):
        places = _sliced(call, torch.arange(x.numel()).reshape(x.shape))
        result.view(-1)[places.reshape(-1)] = update.reshape(-1)
        return result
    target = _sliced(call, result)
    target.copy_(update.reshape(target.shape))
    return result


@implements("slice_by_size", "x begin size", exact=True)
def _slice_by_size(call: Call) -> Result:
    """A size of -1 takes the rest of the axis."""
    x = call.tensor("x")
    for axis, (begin, size) in enumerate(zip(call.integers("begin"), call.integers("size"), strict=True)):
        begin += x.shape[axis] if begin < 0 else 0
        x = x.narrow(axis, begin, x.shape[axis] - begin if size == -1 else size)
    return x


def _indices(call: Call, name: str, size: int) -> Tensor:
    """The indices given for ``name`` as int64, negative ones counted from the end by iOS 15 and 16.

    From iOS 17 on, whose operators have ``validate_indices``, these are out of bounds. Core ML leaves the
    behaviour there undefined, so that no result after one means anything.
    """
    indices = call.tensor(name).long()
    least = 0 if call.has("validate_indices") else -size
    if indices.numel() and (int(indices.min()) < least or int(indices.max()) >= size):
        raise EvaluationError(
            f"{call.op_type} {call.op_name}: an index in {name!r} is outside of [{least}, {size})"
        )
    return torch.where(indices < 0, indices + size, indices)


def _take(x: Tensor, indices: Tensor, axis: int) -> Tensor:
    shape = (*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :])
    return x.index_select(axis, indices.reshape(-1)).reshape(shape)


@implements("gather", "x indices", "axis batch_dims validate_indices", exact=True)
def _gather(call: Call) -> Result:
    """For x D, indices N: D[:axis] + N[batch_dims:] + D[axis + 1:]."""
    x, batch = call.tensor("x"), call.integer("batch_dims", 0)
    axis = call.integer("axis", 0) % x.dim()
    indices = _indices(call, "indices", x.shape[axis])
    if batch == 0:
        return _take(x, indices, axis)
    # Every batch's own positions, in one step: batches may be as many as tokens.
    groups = math.prod(x.shape[:batch])
    rows, own = x.reshape(groups, *x.shape[batch:]), indices.reshape(groups, *indices.shape[batch:])
    rows = rows.movedim(axis - batch + 1, 1)
    taken = rows[torch.arange(groups).reshape(-1, *([1] * (own.dim() - 1))), own]
    between = range(own.dim(), own.dim() + axis - batch)
    taken = taken.permute(0, *between, *range(1, own.dim()), *range(own.dim() + axis - batch, taken.dim()))
    return taken.reshape(*x.shape[:batch], *taken.shape[1:])


@implements("gather_along_axis", "x indices", "axis validate_indices", exact=True)
def _gather_along_axis(call: Call) -> Result:
    x = call.tensor("x")
    axis = call.integer("axis", 0) % x.dim()
    return x.gather(axis, _indices(call, "indices", x.shape[axis]))


def _coordinates(call: Call, sizes: torch.Size | tuple[int, ...]) -> tuple[Tensor, ...]:
    """The last axis of ``indices`` as one checked index tensor an axis of ``sizes``."""
    parts: list[Tensor] = []
    for place, part in enumerate(call.tensor("indices").unbind(-1)):
        only = Call(call.op_type, call.op_name, {**call.arguments, "indices": (part,)}, call.outputs)
        parts.append(_indices(only, "indices", sizes[place]))
    return tuple(parts)


@implements("gather_nd", "x indices", "batch_dims validate_indices", exact=True)
def _gather_nd(call: Call) -> Result:
    """For x D, indices K: K[:-1] + D[batch_dims + K[-1]:]."""
    x, batch = call.tensor("x"), call.integer("batch_dims", 0)
    parts = _coordinates(call, x.shape[batch:])
    if batch == 0:
        return x[parts]
    groups = math.prod(x.shape[:batch])
    rows = x.reshape(groups, *x.shape[batch:])
    flat = [part.reshape(groups, *part.shape[batch:]) for part in parts]
    taken = rows[(torch.arange(groups).reshape(-1, *([1] * (flat[0].dim() - 1))), *flat)]
    return taken.reshape(*x.shape[:batch], *taken.shape[1:])


def _scattered(call: Call, data: Tensor, places: Tensor) -> Tensor:
    """``data`` with ``updates`` combined in at ``places``, flat positions in the shape of the updates."""
    mode, updates = call.text("mode", "add"), call.tensor("updates")
    flat, where = data.reshape(-1).clone(), places.reshape(-1)
    values = updates.expand(places.shape).reshape(-1).to(flat.dtype)
    if mode == "update":
        flat[where] = values
    elif mode in ("add", "sub"):
        flat.scatter_add_(0, where, -values if mode == "sub" else values)
    elif mode in ("mul", "max", "min"):
        reduce = {"mul": "prod", "max": "amax", "min": "amin"}[mode]
        flat.scatter_reduce_(0, where, values, reduce)
    elif mode == "div" and flat.is_floating_point():
        flat = flat / torch.ones_like(flat).scatter_reduce_(0, where, values, "prod")
    else:
        raise call.unsupported(f"mode {mode!r} on {data.dtype}")
    return flat.reshape(data.shape)


def _positions(data: Tensor) -> Tensor:
    return torch.arange(data.numel()).reshape(data.shape)


@implements("scatter", "data indices updates", "axis mode validate_indices")
def _scatter(call: Call) -> Result:
    data = call.tensor("data")
    axis = call.integer("axis", 0) % data.dim()
    indices = _indices(call, "indices", data.shape[axis])
    return _scattered(call, data, _take(_positions(data), indices, axis))


@implements("scatter_along_axis", "data indices updates", "axis mode validate_indices")
def _scatter_along_axis(call: Call) -> Result:
    data = call.tensor("data")
    axis = call.integer("axis", 0) % data.dim()
    indices = _indices(call, "indices", data.shape[axis])
    return _scattered(call, data, _positions(data).gather(axis, indices))


@implements("scatter_nd", "data indices updates", "mode validate_indices")
def _scatter_nd(call: Call) -> Result:
    data = call.tensor("data")
    return _scattered(call, data, _positions(data)[_coordinates(call, data.shape)])
