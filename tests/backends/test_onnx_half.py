"""fp16 storage under fp32 arithmetic: what loses nothing by it, and what stays as it is."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir
import pytest
import torch
from onnx import TensorProto
from onnx.reference import ReferenceEvaluator

from mobile_o_export.backends.onnx.half import round_to_half, store_as_half
from mobile_o_export.errors import ExportError


def test_what_fp16_cannot_hold_and_what_is_small_stays_as_it_is() -> None:
    contents = {
        "exact": np.arange(200, dtype=np.float32),
        "inexact": (1.0 / 3.0 ** np.arange(200)).astype(np.float32),
        "small": np.arange(100, dtype=np.float32),
    }
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Concat", [*contents], ["y"], axis=0)],
        "constants",
        [],
        [onnx.helper.make_tensor_value_info("y", TensorProto.FLOAT, [500])],
        [onnx.numpy_helper.from_array(content, name) for name, content in contents.items()],
    )
    model = onnx_ir.from_proto(onnx.helper.make_model(graph, ir_version=10))
    store_as_half(model.graph)
    stored = onnx_ir.to_proto(model)
    kinds = {tensor.name: tensor.data_type for tensor in stored.graph.initializer}
    assert kinds == {
        "exact.half": TensorProto.FLOAT16,
        "inexact": TensorProto.FLOAT,
        "small": TensorProto.FLOAT,
    }
    (found,) = ReferenceEvaluator(stored).run(None, {})
    assert np.array_equal(found, np.concatenate([*contents.values()]))


def test_a_weight_beyond_fp16_is_not_stored_as_it() -> None:
    layer = torch.nn.Linear(32, 40)
    layer.weight.data[0, 0] = 1e5
    with pytest.raises(ExportError, match="beyond fp16's range"):
        round_to_half(layer, ())
    round_to_half(layer, ("weight",))
    assert layer.weight.data[0, 0] == 1e5
