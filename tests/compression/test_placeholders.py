"""Placeholders: which weight a constant keeps the place of, and in which order of its axes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from mobile_o_export.compression.compress import compress
from mobile_o_export.compression.form import Form
from mobile_o_export.compression.placed import Placed
from mobile_o_export.compression.placeholders import LEAST_SIZE, Kept, Placeholders
from mobile_o_export.parity.metrics import Array
from mobile_o_export.precision import Palette, Precision


class Layers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.square = nn.Linear(128, 128)
        self.wide = nn.Linear(256, 128)
        self.kernel = nn.Conv2d(128, 128, 3)
        self.pointwise = nn.Conv2d(1, LEAST_SIZE, 1)
        self.small = nn.Linear(8, 8)


def array(tensor: torch.Tensor, dtype: type[np.floating]) -> Array:
    return tensor.detach().numpy().astype(dtype)


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("name", ["square", "wide", "kernel", "pointwise"])
def test_a_constant_is_found_in_either_order_of_its_axes(name: str, dtype: type[np.floating]) -> None:
    layers = Layers()
    weight = getattr(layers, name).weight
    source = array(weight, dtype)
    placeholders = Placeholders(layers, {})
    constant = array(weight, dtype)
    assert constant.shape == source.shape
    for turned, wanted in ((constant, source), (constant.T, source.T), (constant[None], source[None])):
        found = placeholders.find(turned)
        assert isinstance(found, Kept)
        assert found.name == f"{name}.weight"
        np.testing.assert_array_equal(found.numbers(dtype), wanted)


def test_a_compressed_weight_is_found_in_its_form() -> None:
    layers = Layers()
    form = Form.of(Precision(Palette(4, 16)), (128, 256))
    compressed = compress("wide.weight", array(layers.wide.weight, np.float32), form)
    found = Placeholders(layers, {"wide.weight": compressed}).find(array(layers.wide.weight, np.float16).T)
    assert isinstance(found, Placed)
    np.testing.assert_array_equal(found.numbers(), compressed.data.indices.reshape(128, 256).T)


@pytest.mark.parametrize(
    "change",
    [lambda x: x * 2, lambda x: x[:64], lambda x: x[::-1], lambda x: np.roll(x, 1, 0), np.negative,
     lambda x: x.reshape(64, 512), lambda x: np.concatenate([x[:1], x[:-1]])],
    ids=["scaled", "part", "backwards", "rolled", "negated", "reshaped", "first row twice"],
)  # fmt: skip
def test_what_a_conversion_computed_is_not_taken_for_a_weight(change: object) -> None:
    layers = Layers()
    placeholders = Placeholders(layers, {})
    assert callable(change)
    assert placeholders.find(change(array(layers.wide.weight, np.float16))) is None


def test_no_other_constant_is_taken_for_one() -> None:
    layers = Layers()
    placeholders = Placeholders(layers, {})
    for value in (0.0, 1.0, 1.5, np.nan, np.inf):
        assert placeholders.find(np.full((128, 128), value, np.float16)) is None
    assert placeholders.find(np.random.default_rng(0).random((128, 128)).astype(np.float32)) is None


def test_small_weights_and_those_that_fp16_cannot_hold_stay() -> None:
    layers = Layers()
    with torch.no_grad():
        layers.square.weight[3, 5] = 1e5
        layers.wide.weight[3, 5] = torch.nan
    before = {name: value.clone() for name, value in layers.named_parameters()}
    placeholders = Placeholders(layers, {})
    after = dict(layers.named_parameters())
    kept = {
        name for name, value in after.items() if torch.equal(value.nan_to_num(), before[name].nan_to_num())
    }
    assert kept == before.keys() - {"kernel.weight", "pointwise.weight"}
    assert placeholders.among(after.values()) == {"kernel.weight", "pointwise.weight"}


def test_a_placeholder_takes_no_more_memory_than_a_row() -> None:
    layers = Layers()
    Placeholders(layers, {})
    assert layers.kernel.weight.untyped_storage().nbytes() == 4 * 128
