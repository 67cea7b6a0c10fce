"""Layers' inputs: what is counted, which step of integers suits them, what a layer computes with them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from mobile_o_export.calibration import Calibration
from mobile_o_export.checkpoint import Checkpoint
from mobile_o_export.components import registry
from mobile_o_export.compression.activations import (
    Magnitudes,
    Observed,
    layers,
    observed,
    quantize_inputs,
)
from mobile_o_export.compression.compress import compress_module, round_inputs
from mobile_o_export.compression.recipe import Recipe, Rule
from mobile_o_export.golden import Golden
from mobile_o_export.parity.metrics import measure
from mobile_o_export.precision import Precision

W8A8 = Precision.parse("w8a8")


def counted(values: torch.Tensor) -> Magnitudes:
    magnitudes = Magnitudes()
    magnitudes.add(values)
    return magnitudes


def layer_over(values: torch.Tensor, channel: int = -1) -> Observed:
    layer = Observed()
    layer.add(values, values, channel)
    return layer


def error(values: torch.Tensor, scale: float, bits: int = 8) -> float:
    most = 2 ** (bits - 1) - 1
    rounded = (values / scale).round().clamp(-most - 1, most) * scale
    return float((rounded - values).square().sum())


@pytest.mark.parametrize("tail", ["uniform", "normal", "outliers", "tiny", "huge"])
@pytest.mark.parametrize("bits", [8, 16])
def test_the_step_is_about_the_best_there_is(tail: str, bits: int) -> None:
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(64, 2000, generator=generator)
    if tail == "uniform":
        values = torch.rand(64, 2000, generator=generator) * 2 - 1
    if tail == "outliers":
        values[0, :20] *= 60
    values *= {"tiny": 2e-2, "huge": 3e4}.get(tail, 1.0)
    scale = counted(values).scale(bits)
    assert bits > 8 or np.float16(scale) == scale
    largest = float(values.abs().max()) / (2 ** (bits - 1) - 1)
    # Below fp16's normal numbers no smaller step can be had for int8.
    least = 6.1035e-05 if bits == 8 else 0.0
    tried = [max(largest * part, least) for part in np.linspace(0.02, 1, 200)]
    assert error(values, scale, bits) <= 1.03 * min(error(values, step, bits) for step in tried)


def test_one_outlier_does_not_cost_everything_else_its_bits() -> None:
    values = torch.randn(1000, 100, generator=torch.Generator().manual_seed(0))
    plain = counted(values).scale(8)
    values[0, 0] = 10.0
    clipped = counted(values)
    assert clipped.largest == 10.0
    assert plain <= clipped.scale(8) < 0.8 * 10 / 127


def test_calls_add_up() -> None:
    values = torch.randn(300, 64, generator=torch.Generator().manual_seed(0))
    parts = Observed()
    for part in values.split(100):
        parts.add(part, 2 * part, -1)
    whole = layer_over(values)
    np.testing.assert_array_equal(parts.inputs.counts, whole.inputs.counts)
    np.testing.assert_allclose(parts.squares, whole.squares)
    assert parts.positions == whole.positions == 300
    assert parts.inputs.largest == whole.inputs.largest == parts.outputs.largest / 2


def test_inputs_that_are_all_zero_have_a_step_that_nothing_divides_by_zero_with() -> None:
    assert counted(torch.zeros(4, 8)).scale(8) == 1.0


def test_importance_is_the_power_of_the_channel_that_a_weight_meets() -> None:
    values = torch.ones(2, 6, 5, 5) * torch.tensor([1.0, 2, 3, 4, 5, 6])[:, None, None]
    layer = layer_over(values, channel=1)
    dense = layer.importance((4, 6, 3, 3))
    assert dense.shape == (4, 6, 3, 3)
    np.testing.assert_allclose(dense[1, :, 0, 0], [1, 4, 9, 16, 25, 36])
    grouped = layer.importance((4, 3, 1, 1))  # two groups of three channels
    np.testing.assert_allclose(grouped[:, :, 0, 0], [[1, 4, 9], [1, 4, 9], [16, 25, 36], [16, 25, 36]])


def test_a_channel_that_was_silent_still_matters_a_little() -> None:
    values = torch.ones(2, 4) * torch.tensor([1.0, 1, 1, 0])
    importance = layer_over(values).importance((8, 4))
    assert 0 < importance[0, 3] < 0.01 * importance[0, 0]


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Embedding(64, 64)
        self.first = nn.Linear(64, 64)
        self.never = nn.Linear(64, 64)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.first(self.table(ids))
        return out


def test_observation_counts_each_layer_and_leaves_no_trace() -> None:
    module = Small()
    ids = torch.arange(10)[None]
    with observed(module) as found:
        module(ids)
        module(ids)
    assert set(found) == set(layers(module)) == {"first.weight", "never.weight"}
    assert (found["first.weight"].positions, found["never.weight"].positions) == (20, 0)
    module(ids)
    assert found["first.weight"].positions == 20


def test_layers_compute_with_integers_and_others_do_not() -> None:
    module, ids = Small(), torch.arange(64)[None]
    with observed(module) as found, torch.no_grad():
        module(ids)
    recipe = Recipe(floating=Precision.FP16, default=W8A8)
    done = compress_module(module, recipe, "small", statistics=found)
    round_inputs(module, done)
    scale = found["first.weight"].inputs.scale(8)
    assert {name: weight.input_scale for name, weight in done.items()} == {
        "table.weight": None,
        "first.weight": scale,
        "never.weight": None,  # nothing was recorded that it could be calibrated on
    }
    assert done["first.weight"].output_scale == found["first.weight"].outputs.scale(8)
    with torch.no_grad():
        integers = (module.table(ids) / scale).round().clamp(-128, 127)
        expected = nn.functional.linear(integers * scale, module.first.weight, module.first.bias)
        torch.testing.assert_close(module(ids), expected)
        exact = nn.functional.linear(module.table(ids), module.first.weight, module.first.bias)
    assert 30 < measure(exact.numpy(), expected.numpy()).snr_db < 55


def test_a_rule_leaves_a_layer_s_inputs_floating_point() -> None:
    module = Small()
    with observed(module) as found, torch.no_grad():
        module(torch.arange(64)[None])
    rules = (Rule(match="first.*", precision=Precision.parse("w8")),)
    done = compress_module(
        module, Recipe(floating=Precision.FP16, default=W8A8, rules=rules), "small", statistics=found
    )
    assert done["first.weight"].input_scale is None


def test_a_layer_whose_inputs_were_all_zero_has_palettes_as_without_importance() -> None:
    silent = layer_over(torch.zeros(4, 32))
    np.testing.assert_array_equal(silent.importance((8, 32)), np.ones((8, 32)))


def test_a_step_for_what_fp16_cannot_hold_is_finite() -> None:
    assert counted(torch.tensor([1e9, -3e9])).scale(8) == np.finfo(np.float16).max
    assert counted(torch.tensor([1e9, -3e9])).scale(16) == pytest.approx(3e9 / 32767, rel=0.2)


def test_palettes_serve_the_inputs_that_a_layer_gets_where_that_is_asked_for() -> None:
    def outputs_db(importance: bool) -> float:
        module, ids = Small(), torch.arange(64)[None]
        # Where inputs are large weights are small, and an error of theirs counts.
        power = torch.linspace(0.2, 3, 64)
        module.table.weight.data *= power
        module.first.weight.data /= power
        with torch.no_grad():
            with observed(module) as found:
                exact = module(ids)
            recipe = Recipe(
                floating=Precision.FP16,
                default=Precision.parse("w3_lut"),
                rules=(Rule(match="table*", precision=Precision.FP16),),
                importance=importance,
            )
            assert recipe.calibrated is importance
            compress_module(module, recipe, "small", statistics=found if importance else None)
            return measure(exact.numpy(), module(ids).numpy()).snr_db

    assert outputs_db(importance=True) > outputs_db(importance=False) + 1.0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_the_dtype_of_the_inputs_stays(dtype: torch.dtype) -> None:
    layer = nn.Linear(8, 8, dtype=dtype)
    quantize_inputs(layer, 0.01, 8)
    assert layer(torch.ones(2, 8, dtype=dtype)).dtype == dtype


def test_a_component_is_run_once_for_all_targets(
    reference_checkpoint: Checkpoint, reference_golden: Golden, monkeypatch: pytest.MonkeyPatch
) -> None:
    part = type(registry.component("mcp"))
    loaded = []
    original = part.load
    monkeypatch.setattr(part, "load", lambda self, checkpoint: loaded.append(1) or original(self, checkpoint))
    calibration = Calibration(reference_checkpoint, [reference_golden])
    said: list[str] = []
    first = calibration.of("mcp", said.append)
    assert calibration.of("mcp", said.append) is first
    assert len(loaded) == 1
    assert said[0].startswith("calibrating on call 1 of ")
    assert {name for name, layer in first.items() if layer.positions} == set(first)


def test_two_goldens_count_more_than_one(reference_checkpoint: Checkpoint, reference_golden: Golden) -> None:
    one = Calibration(reference_checkpoint, [reference_golden]).of("mcp", lambda _: None)
    two = Calibration(reference_checkpoint, [reference_golden] * 2).of("mcp", lambda _: None)
    for name, layer in two.items():
        assert layer.positions == 2 * one[name].positions
        assert layer.inputs.scale(8) == one[name].inputs.scale(8)
