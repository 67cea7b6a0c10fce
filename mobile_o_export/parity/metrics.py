"""Distances between a golden array and an actual one."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

SNR_CEILING_DB = 200.0
"""What bit-identical arrays score: beyond anything two fp32 computations can differ by."""


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
    if noise == 0.0:
        snr_db = SNR_CEILING_DB
    elif signal == 0.0:
        snr_db = -math.inf
    else:
        snr_db = min(SNR_CEILING_DB, 10.0 * math.log10(signal / noise))
    product = float((reference * candidate).sum())
    cosine = product / energy if energy > 0.0 else float(noise == 0.0)
    return Metrics(snr_db, float(difference.max()), tuple(int(i) for i in worst), cosine)
