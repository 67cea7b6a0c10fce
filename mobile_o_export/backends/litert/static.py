"""Layers of .tflite files that compute with integers whose scales were found by calibration.

LiteRT's integer kernels take integers and give integers, so a layer stands between ``QUANTIZE`` and
``DEQUANTIZE``; an NPU's compiler joins what it can join. Everything is symmetric: zero is the integer 0.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from mobile_o_export.backends.litert import flatbuffer
from mobile_o_export.errors import LoweringError

if TYPE_CHECKING:
    from mobile_o_export.backends.litert.encode import Found, Pass, Use

KERNELS = ("FULLY_CONNECTED", "CONV_2D", "DEPTHWISE_CONV_2D")
"""What takes integer weights and activations."""

ACTIVATIONS = {8: "INT8", 16: "INT16"}
SUMS = {8: "INT32", 16: "INT64"}
"""Types by the bits of activations; products are summed, and biases stored, in wider ones."""

MOST_STEPS = np.iinfo(np.int32).max
"""Of a bias, in either: compilers for NPUs make int64 ones int32."""


def surround(work: Pass, graph: Any, found: Found, use: Use) -> tuple[Any, Any]:
    """Has an operator take and give integers; gives the new operators that come before and after it.

    Raises:
        LoweringError: its bias is beyond the integers that products are summed in.
    """
    weight, operator = found.placed.weight, use.operator
    bits = weight.form.precision.calibrated_bits
    assert bits is not None
    assert weight.input_scale is not None
    assert weight.output_scale is not None
    kind = ACTIVATIONS[bits]

    def as_integers(number: int, scale: float) -> int:
        tensor = graph.tensors[number]
        return work.add_tensor(
            graph, tensor.name + b".integers", tensor.shape, kind, quantization=work.symmetric([scale])
        )

    given, result = int(operator.inputs[0]), int(operator.outputs[0])
    taken = as_integers(given, weight.input_scale)
    made = as_integers(result, weight.output_scale)
    work.require(use.kind, kind)
    operator.inputs[0], operator.outputs[0] = taken, made
    if len(operator.inputs) > 2 and operator.inputs[2] >= 0:
        operator.inputs[2] = _bias(work, graph, found, int(operator.inputs[2]), SUMS[bits])
    return (
        work.operator("QUANTIZE", kind, [given], [taken]),
        work.operator("DEQUANTIZE", kind, [made], [result]),
    )


def _bias(work: Pass, graph: Any, found: Found, number: int, kind: str) -> int:
    """The number of a new tensor with the bias ``number`` in steps of the products of a layer."""
    weight, tensor = found.placed.weight, graph.tensors[number]
    assert weight.input_scale is not None
    scales = np.float64(weight.input_scale) * found.scales().reshape(-1).astype(np.float64)
    steps = np.rint(work.content(tensor) / scales)
    if np.abs(steps).max() > MOST_STEPS:
        raise LoweringError(
            f"{weight.name}: its layer's bias is beyond int32 in steps of its scales. Give it another "
            "precision by a rule."
        )
    key = (weight.name, int(tensor.buffer), "bias")
    if key not in work.buffers:
        work.buffers[key] = flatbuffer.add_buffer(work.model, steps.astype(kind.lower()))
    return work.add_tensor(
        graph,
        tensor.name + b".integers",
        tensor.shape,
        kind,
        buffer=work.buffers[key],
        quantization=work.symmetric(scales),
    )
