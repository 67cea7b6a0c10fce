"""Distances between a golden array and an actual one."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

SSIM_WINDOW, SSIM_SIGMA = 11, 1.5
SSIM_K1, SSIM_K2 = 0.01, 0.03
"""As in the paper; for images in 0..1."""

SNR_CEILING_DB = 200.0
"""What bit-identical arrays score: beyond anything two fp32 computations can differ by."""

PIECE = 1 << 22
"""Elements that are taken at a time where arrays may be large."""


@dataclass(frozen=True)
class Metrics:
    """Distances of ``actual`` from ``golden``.

    Attributes:
        snr_db: 10·log10(Σ golden² / Σ (golden − actual)²), in double precision; at most
            ``SNR_CEILING_DB``, and minus infinity where a zero golden met a non-zero actual.
        max_abs: the largest absolute difference.
        max_index: where it is.
        cosine: of the angle between the two as vectors; 1 for two zero vectors.
    """

    snr_db: float
    max_abs: float
    max_index: tuple[int, ...]
    cosine: float


def measure(golden: Array, actual: Array) -> Metrics:
    """The distances between two finite arrays of one shape.

    Raises:
        ValueError: the shapes differ, an array is empty, or a value is not finite: judge those first.
    """
    if golden.shape != actual.shape or golden.size == 0:
        raise ValueError(f"cannot compare shapes {golden.shape} and {actual.shape}")
    reference, candidate = golden.astype(np.float64), actual.astype(np.float64)
    if not (np.isfinite(reference).all() and np.isfinite(candidate).all()):
        raise ValueError("cannot compare values that are not finite")
    difference = np.abs(reference - candidate)
    worst = np.unravel_index(int(difference.argmax()), difference.shape)
    signal, noise = float(np.square(reference).sum()), float(np.square(difference).sum())
    energy = math.sqrt(signal) * math.sqrt(float(np.square(candidate).sum()))
    product = float((reference * candidate).sum())
    cosine = product / energy if energy > 0.0 else float(noise == 0.0)
    return Metrics(_level(signal, noise), float(difference.max()), tuple(int(i) for i in worst), cosine)


def snr_db(golden: Array, actual: Array) -> float:
    """The SNR alone, as in ``Metrics``, of finite arrays of one shape; a piece at a time, for large ones."""
    return snr_of_pieces([(golden, actual)])


def snr_of_pieces(pairs: Iterable[tuple[Array, Array]]) -> float:
    """``snr_db`` of what ``pairs`` of a golden and an actual array make up together."""
    signal = noise = 0.0
    for pair in pairs:
        for reference, candidate in zip(*map(_pieces, pair), strict=True):
            wide = reference.astype(np.float64)
            signal += float(np.square(wide).sum())
            noise += float(np.square(wide - candidate).sum())
    return _level(signal, noise)


def _pieces(array: Array) -> list[Array]:
    flat = np.ravel(array)
    return [flat[start : start + PIECE] for start in range(0, len(flat), PIECE)]


def _level(signal: float, noise: float) -> float:
    """Powers as dB."""
    if noise == 0.0:
        return SNR_CEILING_DB
    return -math.inf if signal == 0.0 else min(SNR_CEILING_DB, 10.0 * math.log10(signal / noise))


def psnr_db(golden: Array, actual: Array) -> float:
    """Peak signal-to-noise ratio of two finite images in 0..1: 10·log10(1 / mean squared difference).

    At most ``SNR_CEILING_DB``, which equal images score.
    """
    noise = float(np.square(golden.astype(np.float64) - actual.astype(np.float64)).mean())
    return SNR_CEILING_DB if noise == 0.0 else min(SNR_CEILING_DB, -10.0 * math.log10(noise))


def ssim(golden: Array, actual: Array) -> float:
    """Mean structural similarity of two finite images [..., Y, X] in 0..1, at least 11 pixels a side.

    Wang et al. 2004 (Image quality assessment: from error visibility to structural similarity): Gaussian
    windows of 11 × 11 with σ 1.5 that lie inside the image, each channel by itself; the mean over all.
    """
    x, y = golden.astype(np.float64), actual.astype(np.float64)
    mean_x, mean_y = _windowed_mean(x), _windowed_mean(y)
    variance_x = _windowed_mean(x * x) - mean_x**2
    variance_y = _windowed_mean(y * y) - mean_y**2
    covariance = _windowed_mean(x * y) - mean_x * mean_y
    c1, c2 = SSIM_K1**2, SSIM_K2**2
    luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    structure = (2 * covariance + c2) / (variance_x + variance_y + c2)
    return float((luminance * structure).mean())


def _windowed_mean(image: Array) -> Array:
    """The Gaussian-weighted mean around each pixel whose window lies inside the image."""
    offsets = np.arange(SSIM_WINDOW) - SSIM_WINDOW // 2
    kernel = np.exp(-(offsets**2) / (2 * SSIM_SIGMA**2))
    kernel /= kernel.sum()
    for axis in (-2, -1):
        image = np.lib.stride_tricks.sliding_window_view(image, SSIM_WINDOW, axis=axis) @ kernel
    return image
