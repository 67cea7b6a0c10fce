"""LiteRT's converter sees no weight; one that it has computed with is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from mobile_o_export.backends.litert import flatbuffer
from mobile_o_export.backends.litert.backend import LiteRTExecutor
from mobile_o_export.backends.litert.encode import Encoder
from mobile_o_export.backends.litert.write import write_graphs
from mobile_o_export.components.base import GraphSpec
from mobile_o_export.compression.placeholders import Placeholders
from mobile_o_export.errors import ExportError
from mobile_o_export.tensors import DType, Role, TensorSpec

X = TensorSpec("x", (1, 4, 128), DType.FLOAT32, "B N D", Role.FEATURES)
Y = TensorSpec("y", (1, 4, 128), DType.FLOAT32, "B N D", Role.FEATURES)


class TwoLayers(nn.Module):
    def __init__(self, factor: float) -> None:
        super().__init__()
        self.first = nn.Linear(128, 128)
        self.second = nn.Linear(128, 128, bias=False)
        self.factor = factor

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.linear(self.first(x), self.second.weight * self.factor)


def graph(name: str) -> GraphSpec:
    return GraphSpec(name, (name,), (X,), (Y,))


@pytest.mark.parametrize("half", [False, True])
def test_signatures_share_weights_which_have_their_parameters_names(tmp_path: Path, half: bool) -> None:
    module, x, path = TwoLayers(1.0).eval(), torch.randn(1, 4, 128), tmp_path / "two.tflite"
    wanted = module(x).detach().numpy()
    graphs = [(graph(name), module) for name in ("one", "other")]
    write_graphs(path, graphs, Encoder(Placeholders(module, {}), half=half), "two")
    with LiteRTExecutor(path, {"one": "one", "other": "other"}, "two") as executor:
        for name in ("one", "other"):
            found = executor.run(name, {"x": x.numpy()})["y"]
            np.testing.assert_allclose(found, wanted, atol=1e-2 if half else 1e-5)
    assert path.stat().st_size < 2 * 128 * 128 * (2 if half else 4) + 8000
    for subgraph in flatbuffer.read_model(path).subgraphs:
        names = {tensor.name.decode() for tensor in subgraph.tensors}
        assert {"first.weight", "second.weight"} <= names
        assert [subgraph.tensors[number].name for number in subgraph.inputs] == [subgraph.tensors[0].name]


def test_a_weight_that_a_pass_has_changed_is_refused(tmp_path: Path) -> None:
    module = TwoLayers(2.0).eval()
    with pytest.raises(ExportError, match=r"1 weights are not in the converted graph.* second\.weight"):
        write_graphs(
            tmp_path / "one.tflite",
            [(graph("one"), module)],
            Encoder(Placeholders(module, {}), half=True),
            "one",
        )
    assert not (tmp_path / "one.tflite").exists()
