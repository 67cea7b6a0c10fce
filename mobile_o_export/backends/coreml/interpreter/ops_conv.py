"""Convolutions (defs/iOS15/conv.py); x [B, C, spatial...], one to three spatial axes."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.nn import functional

from mobile_o_export.backends.coreml.interpreter.registry import Call, Result, implements

_CONV = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}
_CONV_TRANSPOSE = {
    1: functional.conv_transpose1d,
    2: functional.conv_transpose2d,
    3: functional.conv_transpose3d,
}


def window_pads(
    call: Call, sizes: Sequence[int], extents: Sequence[int], strides: Sequence[int]
) -> list[tuple[int, int]]:
    """Padding before and after each spatial axis, for windows of ``extents`` (dilation included).

    ``aggregated_pad`` in defs/_utils.py; an odd rest goes after the data under ``same``, before it
    under ``same_lower``.
    """
    pad_type = call.text("pad_type", "valid").lower()
    if pad_type == "valid":
        return [(0, 0)] * len(sizes)
    if pad_type == "custom":
        pads = call.integers("pad") or [0] * (2 * len(sizes))
        return [(pads[2 * axis], pads[2 * axis + 1]) for axis in range(len(sizes))]
    if pad_type not in ("same", "same_lower"):
        raise call.unsupported(f"pad_type {pad_type!r}")
    result: list[tuple[int, int]] = []
    for size, extent, stride in zip(sizes, extents, strides, strict=True):
        total = max(0, stride * -(-size // stride) - size + extent - stride)
        before = total // 2 if pad_type == "same" else total - total // 2
        result.append((before, total - before))
    return result


def pad_spatial(x: Tensor, pads: Sequence[tuple[int, int]], value: float = 0.0) -> Tensor:
    """``x`` with its last axes padded by ``pads`` (first spatial axis first)."""
    if not any(before or after for before, after in pads):
        return x
    flat = [amount for pair in reversed(pads) for amount in pair]
    return functional.pad(x, flat, value=value)


@implements("conv", "x weight", "bias strides pad_type pad dilations groups")
def _conv(call: Call) -> Result:
    """For weight [C_out, C_in/groups, kernel...]."""
    x, weight = call.tensor("x"), call.tensor("weight")
    rank = x.dim() - 2
    strides = call.integers("strides") or [1] * rank
    dilations = call.integers("dilations") or [1] * rank
    extents = [(k - 1) * d + 1 for k, d in zip(weight.shape[2:], dilations, strict=True)]
    pads = window_pads(call, list(x.shape[2:]), extents, strides)
    padding = [0] * rank
    if all(before == after for before, after in pads):
        padding = [before for before, _ in pads]
    else:
        x = pad_spatial(x, pads)
    return _CONV[rank](
        x, weight, call.optional("bias"), strides, padding, dilations, call.integer("groups", 1)
    )


@implements("conv_transpose", "x weight", "bias pad output_shape pad_type strides dilations groups")
def _conv_transpose(call: Call) -> Result:
    """For weight [C_in, C_out/groups, kernel...]; the full result is cropped by ``pad``.

    ``output_shape`` may ask for more than what ``pad`` leaves; that rest holds the bias alone.
    """
    x, weight = call.tensor("x"), call.tensor("weight")
    rank = x.dim() - 2
    strides = call.integers("strides") or [1] * rank
    dilations = call.integers("dilations") or [1] * rank
    full = _CONV_TRANSPOSE[rank](x, weight, None, strides, 0, 0, call.integer("groups", 1), dilations)
    sizes, wanted = list(full.shape[2:]), call.integers("output_shape")[2:]
    pad_type = call.text("pad_type", "valid").lower()
    starts, lengths = [0] * rank, sizes
    if pad_type == "custom":
        pads = call.integers("pad") or [0] * (2 * rank)
        starts = pads[0::2]
        lengths = [size - pads[2 * i] - pads[2 * i + 1] for i, size in enumerate(sizes)]
    elif pad_type == "same":
        lengths = [size * stride for size, stride in zip(x.shape[2:], strides, strict=True)]
        starts = [max(0, size - length) // 2 for size, length in zip(sizes, lengths, strict=True)]
    elif pad_type != "valid":
        raise call.unsupported(f"pad_type {pad_type!r}")
    if wanted and pad_type == "same":
        starts = [max(0, size - length) // 2 for size, length in zip(sizes, wanted, strict=True)]
    cuts = [
        (-start, start + length - size)
        for start, length, size in zip(starts, wanted or lengths, sizes, strict=True)
    ]
    result = pad_spatial(full, cuts)
    bias = call.optional("bias")
    return result if bias is None else result + bias.reshape(1, -1, *([1] * rank))
