"""What LiteRT's GPU accelerator, ML Drift, takes of a .tflite file, and what it takes and gets wrong.

From its model builder (ml_drift_delegate/tflite/model_builder.cc) and from running it. A file of which one
operator is refused does not load on the GPU alone.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from mobile_o_export.backends.litert import flatbuffer
from mobile_o_export.errors import LoweringError

if TYPE_CHECKING:
    from pathlib import Path

MOST_AXES = 4

TAKEN = frozenset(
    """
    ABS ADD BATCH_MATMUL CAST CONCATENATION CONV_2D COS DEPTHWISE_CONV_2D DEPTH_TO_SPACE DEQUANTIZE DIV ELU
    EMBEDDING_LOOKUP EXP FULLY_CONNECTED GELU HARD_SWISH LEAKY_RELU LOG LOGISTIC MAXIMUM MEAN MINIMUM MUL NEG
    PAD PADV2 POW PRELU REDUCE_MAX REDUCE_MIN RELU RELU6 RELU_N1_TO_1 RESHAPE RESIZE_BILINEAR
    RESIZE_NEAREST_NEIGHBOR RSQRT SIN SLICE SOFTMAX SPACE_TO_DEPTH SPLIT SQRT SQUARE SQUARED_DIFFERENCE
    STRIDED_SLICE SUB SUM TANH TILE TRANSPOSE TRANSPOSE_CONV
    """.split()  # noqa: SIM905 - a list of 52 lines says no more
)

ELEMENTWISE = ("ADD", "DIV", "MAXIMUM", "MINIMUM", "MUL", "POW", "SQUARED_DIFFERENCE", "SUB")

FILTER_DEPTH = 4
"""Channels of a group of a convolution, in and out, that its kernel is right for multiples of."""


def require_taken(path: Path, component: str) -> None:
    """Raises LoweringError unless a GPU takes every operator of ``path``, and computes it right."""
    model = flatbuffer.read_model(path)
    refused: Counter[str] = Counter()
    for graph in model.subgraphs:
        for operator in graph.operators:
            kind = flatbuffer.operator_name(model, operator.opcodeIndex)
            if problem := _problem(model, graph, operator, kind):
                refused[f"{kind} {problem}"] += 1
    if refused:
        kinds = "; ".join(f"{count} × {problem}" for problem, count in refused.most_common())
        raise LoweringError(
            f"{component}: LiteRT's GPU accelerator does not take all of it: {kinds}. Weights that are not "
            "fp16 need a kernel there; give them fp16, or w8 to tables of embeddings, by a rule."
        )


def _problem(model: Any, graph: Any, operator: Any, kind: str) -> str:
    """Why an operator is not for the GPU, or an empty string."""
    from ai_edge_litert.schema_py_generated import TensorType

    given = [graph.tensors[number] for number in operator.inputs if number >= 0]
    tensors = [*given, *(graph.tensors[number] for number in operator.outputs)]
    if kind not in TAKEN:
        return "is not taken"
    if (most := max(len(_shape(tensor)) for tensor in tensors)) > MOST_AXES:
        return f"of a tensor of {most} axes"
    constant = [model.buffers[tensor.buffer].data is not None for tensor in given]
    if all(constant) and kind != "DEQUANTIZE":
        return "of constants alone"
    if kind == "DEQUANTIZE" and given[0].type != TensorType.FLOAT16:
        return "of integers"
    if kind == "EMBEDDING_LOOKUP" and given[1].type not in (TensorType.INT8, TensorType.INT4):
        return "in a table that is not of int8 or int4"
    if kind in ("PAD", "PADV2") and (len(_shape(given[0])) < 3 or _is_batched(given[0])):
        return "along what would be the batch"
    if kind in ELEMENTWISE:
        (left, right), (left_fixed, right_fixed) = given, constant
        for tensor, other, fixed in ((left, right, right_fixed), (right, left, left_fixed)):
            if fixed and _is_batched(tensor) and _reaches_batch(_shape(other), _shape(tensor)):
                return "of a constant along what would be the batch"
    if kind == "CONV_2D":
        depth, outputs = _shape(given[1])[3], _shape(given[1])[0]
        groups = _shape(given[0])[3] // depth
        if groups > 1 and (depth % FILTER_DEPTH or outputs // groups % FILTER_DEPTH):
            return f"in groups of {depth} to {outputs // groups} channels"
    return ""


def _shape(tensor: Any) -> tuple[int, ...]:
    return () if tensor.shape is None else tuple(int(size) for size in tensor.shape)


def _is_batched(tensor: Any) -> bool:
    """Whether its first axis, which is the batch to a GPU whatever the rank, is longer than 1."""
    shape = _shape(tensor)
    return 0 < len(shape) < MOST_AXES and shape[0] > 1


def _reaches_batch(constant: tuple[int, ...], shape: tuple[int, ...]) -> bool:
    """Whether a constant, aligned on the right, varies along the first axis of ``shape``."""
    if len(shape) == 1:
        return any(size > 1 for size in constant)
    return len(constant) == len(shape) and constant[0] > 1
