"""Distances, against numbers that were worked out by hand or by another formula."""

from __future__ import annotations

import math

import numpy as np
import pytest

from mobile_o_export.parity import metrics
from mobile_o_export.parity.metrics import SNR_CEILING_DB, Array, measure


@pytest.mark.parametrize(
    ("golden", "actual", "snr_db"),
    [
        # Σg² = 25, Σ(g - a)² = 0.25: a quotient of 100.
        ([3.0, 4.0], [3.0, 4.5], 20.0),
        # 4 / 1 = 4, and 10·log10(4) = 6.0206.
        ([2.0, 0.0], [1.0, 0.0], 6.0206),
        # As much noise as signal.
        ([1.0, -1.0], [1.0, -1.0 + math.sqrt(2)], 0.0),
        # Twice the golden: the noise is the golden itself.
        ([1.0, 2.0, 3.0], [2.0, 4.0, 6.0], 0.0),
        # The golden turned round: noise 4 times the signal.
        ([1.0, 2.0], [-1.0, -2.0], -6.0206),
        # An amplitude error of 1 % is 40 dB.
        ([10.0, 20.0], [10.1, 20.2], 40.0),
    ],
)
def test_signal_to_noise(golden: list[float], actual: list[float], snr_db: float) -> None:
    assert measure(np.array(golden), np.array(actual)).snr_db == pytest.approx(snr_db, abs=1e-4)


def test_signal_to_noise_does_not_depend_on_scale() -> None:
    random = np.random.default_rng(1)
    golden, noise = random.standard_normal((2, 1000))
    expected = 10 * math.log10(np.var(golden) / np.var(0.01 * noise))
    for scale in (1e-18, 1.0, 1e18):
        found = measure(scale * golden, scale * (golden + 0.01 * noise)).snr_db
        # The mean of 1000 samples is not quite 0, which the variance leaves out and the energy does not.
        assert found == pytest.approx(expected, abs=0.05)


def test_one_large_error_is_not_averaged_away() -> None:
    golden = np.ones(10_000, np.float32)
    actual = golden.copy()
    actual[1234] = 101.0
    metrics = measure(golden, actual)
    # 10⁴ / 100² = 1.
    assert metrics.snr_db == pytest.approx(0.0)
    assert metrics.max_abs == 100.0
    assert metrics.max_index == (1234,)


def test_half_precision_is_measured_in_double() -> None:
    """Squares of 300 overflow fp16 and those of 1e-4 vanish in it."""
    for value in (300.0, 1e-4):
        golden = np.full(8, value, np.float16)
        actual = golden + np.float16(value / 8)
        # Its last bits apart, the error is an eighth: 20·log10(8) = 18.06.
        assert measure(golden, actual).snr_db == pytest.approx(18.06, abs=0.1)


@pytest.mark.parametrize("value", [0.0, 1.5, -3e38])
def test_identical_arrays_score_the_ceiling(value: float) -> None:
    golden = np.full((2, 3), value, np.float32)
    metrics = measure(golden, golden.copy())
    assert metrics.snr_db == SNR_CEILING_DB
    assert metrics.max_abs == 0.0
    assert metrics.cosine == pytest.approx(1.0)


def test_no_distance_scores_above_the_ceiling() -> None:
    golden = np.array([1e15, 1.0])
    assert measure(golden, np.array([1e15, 1.0 + 1e-9])).snr_db == SNR_CEILING_DB


def test_a_zero_golden_against_anything_else_scores_minus_infinity() -> None:
    metrics = measure(np.zeros(3), np.array([0.0, 1e-30, 0.0]))
    assert metrics.snr_db == -math.inf
    assert metrics.cosine == 0.0


@pytest.mark.parametrize(
    ("golden", "actual", "cosine"),
    [
        ([1.0, 0.0], [0.0, 1.0], 0.0),
        ([1.0, 0.0], [1.0, 1.0], math.sqrt(0.5)),
        ([1.0, 2.0], [-1.0, -2.0], -1.0),
        ([1.0, 2.0], [10.0, 20.0], 1.0),
        ([1.0, 2.0], [0.0, 0.0], 0.0),
    ],
)
def test_cosine(golden: list[float], actual: list[float], cosine: float) -> None:
    assert measure(np.array(golden), np.array(actual)).cosine == pytest.approx(cosine)


def test_the_largest_difference_is_given_with_its_place() -> None:
    golden = np.zeros((2, 3, 4), np.float32)
    golden[0, 0, 0] = 1.0
    actual = golden.copy()
    actual[1, 2, 3] = -0.5
    actual[0, 1, 0] = 0.25
    metrics = measure(golden, actual)
    assert (metrics.max_abs, metrics.max_index) == (0.5, (1, 2, 3))


@pytest.mark.parametrize(
    ("golden", "actual", "message"),
    [
        (np.ones(2), np.ones(3), r"cannot compare shapes \(2,\) and \(3,\)"),
        (np.ones((2, 3)), np.ones((3, 2)), "cannot compare shapes"),
        (np.ones(0), np.ones(0), "cannot compare shapes"),
        (np.ones(2), np.array([1.0, math.nan]), "not finite"),
        (np.array([1.0, math.inf]), np.ones(2), "not finite"),
        (np.array([math.inf, 1.0]), np.array([math.inf, 1.0]), "not finite"),
    ],
)
def test_what_cannot_be_compared_is_refused(golden: Array, actual: Array, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        measure(golden, actual)


@pytest.mark.parametrize("shape", [(3,), (7, 11), (5, 4, 3)])
def test_the_level_alone_is_that_of_all_measures(
    shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics, "PIECE", 4)
    rng = np.random.default_rng(0)
    golden = rng.normal(size=shape).astype(np.float32)
    actual = (golden + rng.normal(scale=0.01, size=shape)).astype(np.float16)
    assert metrics.snr_db(golden, actual) == pytest.approx(measure(golden, actual).snr_db)
    assert metrics.snr_db(golden, golden) == metrics.SNR_CEILING_DB
    assert metrics.snr_db(np.zeros(shape), golden) == -np.inf
