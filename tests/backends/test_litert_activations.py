"""Calibrated activations in .tflite files: integer kernels, their scales, what LiteRT computes with them."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import recipes
import torch
from torch import nn

from mobile_o_export.backends.litert import convert, flatbuffer, static
from mobile_o_export.backends.litert.backend import LiteRTExecutor
from mobile_o_export.backends.litert.encode import Encoder
from mobile_o_export.backends.litert.write import write_graphs
from mobile_o_export.components.base import GraphSpec
from mobile_o_export.compression.activations import observed
from mobile_o_export.compression.check import check_weights
from mobile_o_export.compression.compress import Compressed, compress_module
from mobile_o_export.compression.placeholders import Placeholders
from mobile_o_export.errors import LoweringError
from mobile_o_export.parity.metrics import Array, measure
from mobile_o_export.tensors import DType, Role, TensorSpec

IMAGE = TensorSpec("image", (1, 8, 12, 12), DType.FLOAT32, "B C Y X", Role.IMAGE)
SCORES = TensorSpec("scores", (1, 48), DType.FLOAT32, "B D", Role.LOGITS)
SPEC = GraphSpec("score", ("score",), (IMAGE,), (SCORES,))
LAYERS = {"dense.weight": "CONV_2D", "depth.weight": "DEPTHWISE_CONV_2D", "head.weight": "FULLY_CONNECTED"}


class Small(nn.Module):
    """One layer of each kind that has an integer kernel, and one that stays floating point."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.dense = nn.Conv2d(8, 128, 3, padding=1)
        self.depth = nn.Conv2d(128, 128, 3, padding=1, groups=128)
        self.free = nn.Linear(128, 128)
        self.head = nn.Linear(128, 48)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = nn.functional.relu(self.dense(image))
        x = nn.functional.gelu(self.depth(x)).mean((2, 3))
        out: torch.Tensor = self.head(torch.tanh(self.free(x)))
        return out


@dataclass(frozen=True)
class Lowered:
    file: Path
    weights: dict[str, Compressed]
    encoder: Encoder
    given: Array
    exact: Array
    rounded: Array


def rounding(layer: nn.Module, weight: Compressed) -> None:
    """Has ``layer`` take and give integers as its file does."""
    bits = weight.form.precision.calibrated_bits
    assert bits is not None

    def nearest(x: torch.Tensor, scale: float | None) -> torch.Tensor:
        assert scale is not None
        return (x / scale).round().clamp(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) * scale

    layer.register_forward_pre_hook(lambda _layer, given: (nearest(given[0], weight.input_scale),))
    layer.register_forward_hook(lambda _layer, _given, result: nearest(result, weight.output_scale))


def encoded(module: nn.Module, weights: dict[str, Compressed], path: Path) -> Encoder:
    module = copy.deepcopy(module)
    convert.fence(module)
    encoder = Encoder(Placeholders(module, weights), half=True)
    write_graphs(path, [(SPEC, module)], encoder, "small")
    return encoder


@pytest.fixture(scope="module", params=["w8a8", "w8a16"])
def lowered(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Lowered:
    module, path = Small().eval(), tmp_path_factory.mktemp("static") / "small.tflite"
    images = torch.randn(4, 1, 8, 12, 12, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        with observed(module) as found:
            exact = [module(image) for image in images]
        wanted = recipes.recipe(request.param, ("free*", "w16"), floating="w16")
        weights = compress_module(module, wanted, "small", statistics=found)
        encoder = encoded(module, weights, path)
        for name, weight in weights.items():
            rounding(module.get_submodule(name.removesuffix(".weight")), weight)
        rounded = module(images[0])
    return Lowered(path, weights, encoder, images[0].numpy(), exact[0].numpy(), rounded.numpy())


def test_layers_take_and_give_integers_at_the_calibrated_scales(lowered: Lowered) -> None:
    from ai_edge_litert.schema_py_generated import TensorType

    model = flatbuffer.read_model(lowered.file)
    [graph] = model.subgraphs
    seen: dict[str, list[Any]] = {}
    for operator in graph.operators:
        kind = flatbuffer.operator_name(model, operator.opcodeIndex)
        tensors = [graph.tensors[number] for number in (*operator.inputs, *operator.outputs)]
        if tensors[0].type != TensorType.FLOAT32 and kind in static.KERNELS:
            seen[kind] = tensors
    assert set(seen) == set(LAYERS.values())
    for name, weight in lowered.weights.items():
        taken, numbers, bias, made = seen[LAYERS[name]]
        wide = weight.form.precision.calibrated_bits == 16
        assert taken.type == made.type == (TensorType.INT16 if wide else TensorType.INT8)
        assert (numbers.type, bias.type) == (
            TensorType.INT8,
            TensorType.INT64 if wide else TensorType.INT32,
        )
        assert [taken.quantization.scale, made.quantization.scale] == [
            [weight.input_scale],
            [weight.output_scale],
        ]
        np.testing.assert_allclose(
            bias.quantization.scale, numbers.quantization.scale * np.float64(weight.input_scale)
        )


def test_weights_are_read_back(lowered: Lowered) -> None:
    rows = check_weights(lowered.weights, lowered.encoder.stored(lowered.file), "small")
    assert [row.name for row in rows] == sorted(LAYERS)
    assert all(row.input_scale == lowered.weights[row.name].input_scale for row in rows)


def test_litert_computes_what_pytorch_does_with_rounded_activations(lowered: Lowered) -> None:
    wide = next(iter(lowered.weights.values())).form.precision.calibrated_bits == 16
    executor = LiteRTExecutor(lowered.file, {"score": "score"}, "small")
    computed = executor.run("score", {"image": lowered.given})["scores"]
    # Measured: 53 and 85 dB; a kernel's sums are rounded once, by a multiplier of 31 bits.
    assert measure(lowered.rounded, computed).snr_db > (75 if wide else 40)
    # int8 weights are as far from the model itself, and with them int8 activations.
    assert measure(lowered.exact, computed).snr_db > (35 if wide else 28)


def test_a_bias_beyond_what_sums_are_kept_in_is_refused(lowered: Lowered, tmp_path: Path) -> None:
    precision = lowered.weights["head.weight"].form.precision
    module, path = Small().eval(), tmp_path / "small.tflite"
    module.head.bias.data[:] = 1e6
    with observed(module) as found, torch.no_grad():
        module(torch.from_numpy(lowered.given))
    found["head.weight"].inputs.largest = 1e-4
    wanted = recipes.recipe(str(precision), ("free*", "w16"), floating="w16")
    weights = compress_module(module, wanted, "small", statistics=found)
    with pytest.raises(LoweringError, match=r"head\.weight: its layer's bias is beyond int32"):
        encoded(module, weights, path)
