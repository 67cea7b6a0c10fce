"""Weights compressed in their module: which, how they are grouped, what is left alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from recipes import recipe
from torch import nn

from mobile_o_export.compression.compress import compress, compress_module, forms
from mobile_o_export.compression.form import Form
from mobile_o_export.errors import ConfigError, ExportError, GateError
from mobile_o_export.parity.metrics import measure
from mobile_o_export.precision import Precision


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(64, 48)
        self.kernel = nn.Conv2d(32, 16, 3)
        self.norm = nn.LayerNorm(2048)
        self.little = nn.Linear(8, 8)
        self.last = nn.Linear(64, 30)
        self.shifts = nn.Parameter(torch.randn(6, 256))


@pytest.mark.parametrize(
    ("name", "shape", "groups", "stored"),
    [
        ("w4_lut_g16", (48, 64), (3, 1), "w4_lut_g16"),
        ("w4_lut_g16", (30, 64), (1, 1), "w4_lut"),
        ("w4_lut", (48, 64), (1, 1), "w4_lut"),
        ("w6_lut_g16", (16, 32, 3, 3), (1, 1, 1, 1), "w6_lut_g16"),
        ("w8", (48, 64), (48, 1), "w8"),
        ("w4_b32", (48, 64), (48, 2), "w4_b32"),
        ("w4_b32", (48, 40), (48, 1), "w4"),
        ("w4_b32", (16, 32, 3, 3), (16, 1, 1, 1), "w4"),
    ],
)
def test_grouping_follows_the_shape(
    name: str, shape: tuple[int, ...], groups: tuple[int, ...], stored: str
) -> None:
    form = Form.of(Precision.parse(name), shape)
    assert (form.groups, str(form.precision)) == (groups, stored)


def test_sizes_count_indices_palettes_and_scales() -> None:
    def size(name: str) -> int:
        return Form.of(Precision.parse(name), (64, 128)).size_bytes

    assert size("w4_lut") == 64 * 128 // 2 + 2 * 16
    assert size("w6_lut_g16") == 64 * 128 * 6 // 8 + 2 * 64 * 4
    assert size("w8") == 64 * 128 + 2 * 64
    assert size("w4_b32") == 64 * 128 // 2 + 2 * 64 * 4


def test_vectors_small_matrices_and_tables_of_shifts_stay_floating_point() -> None:
    assert set(forms(Small(), recipe("w8"), "small")) == {"first.weight", "kernel.weight", "last.weight"}


def test_weights_that_would_not_get_smaller_are_left() -> None:
    module = nn.Conv2d(128, 128, 3, groups=128)  # 9 weights a channel
    assert forms(module, recipe("w8_lut_g16"), "depthwise") == {}
    assert set(forms(module, recipe("w4_lut"), "depthwise")) == {"weight"}


def test_a_rule_decides_which_are_left() -> None:
    found = forms(Small(), recipe("w4_lut_g16", ("last.*", "fp16"), ("kernel.*", "w8")), "small")
    assert {name: str(form.precision) for name, form in found.items()} == {
        "first.weight": "w4_lut_g16",
        "kernel.weight": "w8",
    }
    with pytest.raises(ConfigError, match="small: the rule 'lats"):
        forms(Small(), recipe("w8", ("lats.*", "fp16")), "small")


@pytest.mark.parametrize("name", ["w4_lut_g16", "w6_lut", "w8", "w4_b32"])
def test_the_module_computes_with_what_the_file_restores(name: str) -> None:
    module = Small()
    source = module.first.weight.detach().clone()
    mapped = module.first.weight.data
    done = compress_module(module, recipe(name), "small")
    restored = done["first.weight"].restored()
    assert restored.dtype == np.float16
    np.testing.assert_array_equal(module.first.weight.detach().numpy(), restored.astype(np.float32))
    assert not torch.equal(module.first.weight, source)
    # The parameter's own tensor may be a view of the checkpoint's file.
    assert torch.equal(mapped, source)
    np.testing.assert_array_equal(done["first.weight"].source, source.numpy())


def test_weights_too_small_for_scales_become_palettes() -> None:
    module = Small()
    for layer in (module.first, module.kernel, module.last):
        layer.weight.data[5] *= 1e-3
    done = compress_module(module, recipe("w8", ("kernel.*", "w4")), "small", least_scale=2.0**-14)
    assert {name: str(weight.form.precision) for name, weight in done.items()} == {
        "first.weight": "w8_lut_g16",
        "kernel.weight": "w4_lut_g16",
        "last.weight": "w8_lut",  # 16 do not divide its channels
    }
    usual = compress_module(Small(), recipe("w8"), "small", least_scale=2.0**-14)
    assert {str(weight.form.precision) for weight in usual.values()} == {"w8"}


@pytest.mark.parametrize(
    ("dtype", "size"), [(torch.float16, 2), (torch.bfloat16, 2), (torch.float32, 4)], ids=str
)
def test_a_source_is_kept_exactly_in_as_few_bytes_as_it_has(dtype: torch.dtype, size: int) -> None:
    module = Small()
    with torch.no_grad():
        module.first.weight.copy_(module.first.weight.to(dtype))
    before = module.first.weight.detach().clone().numpy()
    source = compress_module(module, recipe("w4_lut_g16"), "here")["first.weight"].source
    assert source.dtype.itemsize == size
    np.testing.assert_array_equal(source.astype(np.float32), before)


def test_a_module_that_does_not_keep_its_weights_has_no_memory_of_them() -> None:
    module = Small()
    weights = compress_module(module, recipe("w4_lut_g16"), "here", keep=False)
    for name, parameter in module.named_parameters():
        if name in weights:
            assert parameter.shape == weights[name].form.shape
            assert parameter.untyped_storage().nbytes() == 4


def test_tied_weights_stay_tied() -> None:
    embedding, head = nn.Embedding(128, 64), nn.Linear(64, 128, bias=False)
    head.weight = embedding.weight
    module = nn.ModuleList([embedding, head])
    done = compress_module(module, recipe("w4_lut_g16"), "tied")
    assert list(done) == ["0.weight"]
    assert head.weight is embedding.weight
    np.testing.assert_array_equal(head.weight.detach().numpy(), done["0.weight"].restored())


def test_more_bits_and_finer_groups_are_nearer() -> None:
    rng = np.random.default_rng(0)
    spread = np.exp(rng.normal(size=(64, 1)))  # channels differ
    weight = (0.05 * spread * rng.normal(size=(64, 256))).astype(np.float16).astype(np.float32)

    def level(name: str) -> float:
        form = Form.of(Precision.parse(name), weight.shape)
        return measure(weight, compress("w", weight, form).restored()).snr_db

    names = ["w2_lut_g16", "w3_lut_g16", "w4_lut_g16", "w6_lut_g16", "w8_lut_g16"]
    levels = [level(name) for name in names]
    assert levels == sorted(levels)
    assert levels[-1] > 40
    assert level("w4_lut") < level("w4_lut_g16")
    assert level("w4") < level("w4_b32")


def test_importance_takes_error_from_where_it_counts() -> None:
    weight = np.random.default_rng(0).normal(size=(16, 256)).astype(np.float32)
    importance = np.ones_like(weight)
    importance[:, :64] = 50
    form = Form.of(Precision.parse("w3_lut"), weight.shape)
    errors = [
        np.square(compress("w", weight, form, weighing).restored() - weight)[:, :64].sum()
        for weighing in (None, importance)
    ]
    # The values' distribution is the same everywhere, so that there is little to gain; but nothing to lose.
    assert errors[1] <= errors[0]


def test_a_weight_too_far_from_its_source_is_refused_before_anything_is_converted() -> None:
    module = Small()
    # One weight of each channel makes the steps too wide for the others.
    torch.nn.init.normal_(module.kernel.weight, std=0.02)
    module.kernel.weight.data[:, 0, 0, 0] = 1.0
    with pytest.raises(GateError, match=r"small: kernel\.weight is 2\d\.. dB from its source, and w8 should"):
        compress_module(module, recipe("w8"), "small")


def test_weights_that_are_not_finite_are_refused() -> None:
    module = Small()
    module.first.weight.data[3, 3] = torch.nan
    with pytest.raises(ExportError, match="NaN"):
        compress_module(module, recipe("w8"), "small")
