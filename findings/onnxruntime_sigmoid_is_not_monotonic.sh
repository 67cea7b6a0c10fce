#!/usr/bin/env bash
# ONNX Runtime 1.31.1 on a CPU (x86-64, AVX2): the fp32 Sigmoid rises and falls again in its tail.
#
# Behaviour: sigmoid(-17) is larger than sigmoid(-16), and from -18 down it is 0. The kernel clamps its input to
# 18 and divides two polynomials, so that its error is about 1e-7 of 1 and not of the result: -47 % at -16,
# +116 % at -17. PyTorch is right to a rounding. A gate, SiLU or a focal loss that takes a logarithm or a ratio of
# what comes out is wrong there, and a comparison by relative error fails on a file that is exact elsewhere.
#
# Output seen:
#     x = -15: 3.576e-07, right 3.059e-07 (+17 %)
#     x = -16: 5.960e-08, right 1.125e-07 (-47 %)
#     x = -17: 8.941e-08, right 4.140e-08 (+116 %)
#     x = -18: 0.000e+00, right 1.523e-08 (-100 %)
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q --disable-pip-version-check onnx==1.23.2 onnxruntime==1.31.1 numpy==2.4.6
"$work/venv/bin/python" - <<'PYTHON'
import numpy as np
import onnxruntime
from onnx import TensorProto, helper

x = np.array([-15, -16, -17, -18], np.float32)
ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [4]) for name in "xy"]
graph = helper.make_graph([helper.make_node("Sigmoid", ["x"], ["y"])], "g", ports[:1], ports[1:])
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
(found,) = session.run(None, {"x": x})
right = 1 / (1 + np.exp(-x.astype(np.float64)))
for one, got, wanted in zip(x, found, right):
    print(f"x = {one:.0f}: {got:.3e}, right {wanted:.3e} ({100 * (got / wanted - 1):+.0f} %)")
assert found[2] > found[1], "it is monotonic now"
assert abs(found[1] / right[1] - 1) > 0.3, "its tail is right now"
assert found[3] == 0, "it no longer ends at -18"
PYTHON
