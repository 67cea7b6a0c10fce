"""Symmetric integers: nearest, within range, zero kept, and scales that runtimes take."""

from __future__ import annotations

import numpy as np
import pytest

from mobile_o_export.compression.integers import LEAST_SCALE, quantize
from mobile_o_export.errors import ExportError
from mobile_o_export.parity.metrics import measure


def weights(groups: int = 6, length: int = 512, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    spread = 10.0 ** rng.uniform(-1.5, 1, (groups, 1))
    return (spread * rng.standard_normal((groups, length))).astype(np.float16).astype(np.float32)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_weights_are_off_by_half_a_step_at_most(bits: int) -> None:
    source = weights()
    found = quantize(source, bits)
    most = 2 ** (bits - 1) - 1
    assert found.values.dtype == np.int8
    assert np.abs(found.values).max() == most
    step = found.scales.astype(np.float64)[:, None]
    assert (np.abs(found.values * step - source) <= 0.5001 * step).all()
    # No wider than it has to be.
    assert (np.abs(source).max(axis=1) >= 0.999 * most * step[:, 0]).all()


def test_restored_weights_are_what_a_runtime_computes_in_fp16() -> None:
    found = quantize(weights(), 8)
    restored = found.restored()
    assert restored.dtype == np.float16
    exact = found.values.astype(np.float64) * found.scales.astype(np.float64)[:, None]
    np.testing.assert_array_equal(restored, exact.astype(np.float16))


def test_eight_bits_keep_forty_decibels_of_normal_weights() -> None:
    source = weights()
    for row, restored in zip(source, quantize(source, 8).restored(), strict=True):
        assert measure(row, restored).snr_db > 40


def test_clipping_never_has_more_error_and_helps_four_bits() -> None:
    source = weights(length=64)
    errors = []
    for clip in (False, True):
        restored = quantize(source, 4, clip=clip).restored().astype(np.float64)
        errors.append(np.square(restored - source).sum(axis=1))
    assert (errors[1] <= errors[0] * (1 + 1e-3)).all()
    assert (errors[1] < 0.95 * errors[0]).any()


def test_zero_stays_zero_and_zeros_have_a_scale() -> None:
    source = np.zeros((2, 32), np.float32)
    source[1, 3] = 1e-7
    found = quantize(source, 4)
    assert (found.scales > 0).all()
    assert found.scales[0] == 1
    assert found.scales[1] == LEAST_SCALE
    np.testing.assert_array_equal(found.restored()[0], 0)


def test_small_weights_keep_their_bits_though_their_scales_are_subnormal() -> None:
    source = np.random.default_rng(0).normal(0, 3e-4, (8, 512)).astype(np.float32)
    found = quantize(source, 8)
    assert (found.scales < np.finfo(np.float16).tiny).all()
    assert measure(source, found.restored(np.float32)).snr_db > 40


@pytest.mark.parametrize("bad", [np.nan, np.inf, 70_000.0])
def test_weights_that_fp16_cannot_hold_are_refused(bad: float) -> None:
    source = weights()
    source[2, 2] = bad
    with pytest.raises(ExportError, match="fp16's range"):
        quantize(source, 8)
