"""Calibrated int8 activations in ONNX: one type around each rounding, nothing that TensorRT lacks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from shared_exports import SharedExports

from mobile_o_export.backends.base import LowerRequest
from mobile_o_export.backends.onnx import tensorrt
from mobile_o_export.backends.registry import backend
from mobile_o_export.calibration import Calibration
from mobile_o_export.checkpoint import Checkpoint
from mobile_o_export.components.registry import component
from mobile_o_export.compression.recipe import Recipe
from mobile_o_export.golden import Golden
from mobile_o_export.parity.metrics import measure
from mobile_o_export.precision import Precision
from mobile_o_export.session import Session
from mobile_o_export.targets import load_target


@pytest.mark.parametrize(
    ("name", "element"), [("tensorrt-orin", onnx.TensorProto.FLOAT16), ("onnx-cpu", onnx.TensorProto.FLOAT)]
)
def test_rounding_is_in_the_type_of_what_is_rounded(
    reference_checkpoint: Checkpoint,
    reference_golden: Golden,
    shared: SharedExports,
    tmp_path: Path,
    name: str,
    element: int,
) -> None:
    target, mcp, onnx_backend = load_target(name), component("mcp"), backend("onnx")
    request = LowerRequest(
        target=name,
        component=mcp,
        recipe=Recipe(floating=target.floating, default=Precision.parse("w8a8")),
        sequence=target.sequence,
        options=target.options,
        statistics=Calibration(reference_checkpoint, [reference_golden]).of("mcp", lambda _: None),
    )
    assert onnx_backend.refusal(request, reference_checkpoint) == ""
    artifact = shared.lower(onnx_backend, request, reference_checkpoint, tmp_path)
    file = tmp_path / "project.onnx"
    onnx.checker.check_model(str(file), full_check=True)
    model = onnx.load(file)
    assert tensorrt.unsupported(node.op_type for node in model.graph.node) == []

    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    roundings = [node for node in model.graph.node if node.op_type == "QuantizeLinear"]
    back = {node.input[0]: node for node in model.graph.node if node.op_type == "DequantizeLinear"}
    wanted = {row.input_scale for row in artifact.weights if row.input_scale is not None}
    found = set()
    for node in roundings:
        steps = [constants[pair.input[1]] for pair in (node, back[node.output[0]])]
        assert [step.data_type for step in steps] == [element, element]
        numbers = {float(onnx.numpy_helper.to_array(step)) for step in steps}
        assert len(numbers) == 1
        found |= numbers
    assert found == wanted
    assert len(wanted) > 3

    (case, *_) = reference_golden.cases("mcp")
    (step,) = case.steps
    with onnx_backend.open(artifact, tmp_path, "mcp") as executor:
        session = Session(mcp.functions(reference_checkpoint), [g.spec for g in artifact.graphs], executor)
        (output,) = session.run(step.function, reference_golden.inputs(step)).values()
    (truth,) = (reference_golden.tensor(path) for path in step.outputs.values())
    assert np.isfinite(output).all()
    assert 25 < measure(truth, output).snr_db < 60
