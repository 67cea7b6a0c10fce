"""Palettes against the global optimum of one-dimensional k-means, and what indices have to be."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
import pytest
import torch

from mobile_o_export.compiled import compiled
from mobile_o_export.compression import palettes
from mobile_o_export.compression.palettes import palettize
from mobile_o_export.errors import ExportError
from mobile_o_export.parity.metrics import Array


def least_error(weights: Array, clusters: int, importance: Array | None = None) -> float:
    """The global optimum, by dynamic programming over every cut: O(k n²)."""
    order = np.argsort(weights)
    places = weights[order].astype(np.float64)
    mass = np.ones(len(places)) if importance is None else importance[order].astype(np.float64)
    sums = [np.concatenate([[0], np.cumsum(mass * places**power)]) for power in range(3)]
    count = len(places)
    best = np.concatenate([[0], np.full(count, np.inf)])
    for _ in range(clusters):
        following = np.full(count + 1, np.inf)
        following[0] = 0
        for stop in range(1, count + 1):
            of_mass, of_moment, of_square = (each[stop] - each[:stop] for each in sums)
            following[stop] = np.min(best[:stop] + of_square - of_moment**2 / of_mass)
        best = following
    return float(best[count])


def errors(weights: Array, found: palettes.Palettes, importance: Array | None = None) -> Array:
    squared = (found.restored().astype(np.float64) - weights) ** 2
    return (squared if importance is None else squared * importance).sum(1)


def drawn(shape: str, groups: int, length: int) -> Array:
    rng = np.random.default_rng(3)
    sample = {
        "normal": rng.normal,
        "laplace": rng.laplace,
        "student 3": lambda size: rng.standard_t(3, size),
        "student 1.5": lambda size: rng.standard_t(1.5, size),
        "two heaps": lambda size: rng.normal(size=size) * 0.5 + rng.choice([-1, 4], size),
    }[shape]
    # Small fp16 numbers, as weights are: with ties.
    return (0.02 * sample(size=(groups, length))).astype(np.float16).astype(np.float32)


@pytest.mark.parametrize("shape", ["normal", "laplace", "student 3", "student 1.5", "two heaps"])
@pytest.mark.parametrize("bits", [1, 2, 3, 4, 6])
def test_error_is_near_the_global_optimum(shape: str, bits: int) -> None:
    weights = drawn(shape, 3, 600)
    optimum = np.array([least_error(row, 2**bits) for row in weights])
    # Values are rounded to fp16, and 600 weights are few: real groups are far nearer.
    assert (errors(weights, palettize(weights, bits)) <= 1.005 * optimum).all()


def test_importance_is_what_an_error_counts() -> None:
    weights = drawn("laplace", 1, 300)
    importance = np.random.default_rng(0).integers(1, 9, weights.shape).astype(np.float32)
    found = palettize(weights, 3, importance)
    optimum = least_error(weights[0], 8, importance[0])
    assert errors(weights, found, importance)[0] <= 1.005 * optimum
    # The same as that many weights of each value.
    repeated = np.repeat(weights, importance[0].astype(int), axis=1)
    np.testing.assert_array_equal(palettize(repeated, 3).values, found.values)
    assert (errors(weights, palettize(weights, 3), importance) > errors(weights, found, importance)).all()


def test_weights_that_no_error_counts_do_not_move_the_palette() -> None:
    weights = np.array([[-1.0, -1.0, 2.0, 2.0, 500.0]], np.float32)
    importance = np.array([[1, 1, 1, 1, 0]], np.float32)
    found = palettize(weights, 1, importance)
    np.testing.assert_array_equal(found.values, [[-1, 2]])
    np.testing.assert_array_equal(found.indices, [[0, 0, 1, 1, 1]])


@pytest.mark.parametrize("bits", range(1, 9))
def test_every_weight_has_its_nearest_value(bits: int) -> None:
    weights = drawn("student 3", 5, 1000)
    found = palettize(weights, bits)
    assert found.values.shape == (5, 2**bits)
    assert found.values.dtype == np.float16
    assert found.indices.dtype == np.uint8
    assert (np.diff(found.values.astype(np.float32)) >= 0).all()
    distances = np.abs(weights[:, :, None].astype(np.float64) - found.values[:, None])
    chosen = np.take_along_axis(distances, found.indices[..., None].astype(int), axis=2)[..., 0]
    np.testing.assert_array_equal(chosen, distances.min(axis=2))


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_few_distinct_weights_are_kept_exactly(bits: int) -> None:
    rng = np.random.default_rng(1)
    kept = rng.normal(size=2**bits).astype(np.float16)
    weights = np.stack(
        [rng.choice(kept, 2000), np.zeros(2000), rng.choice(kept[:3], 2000), np.repeat(kept[:2], 1000)]
    ).astype(np.float32)
    np.testing.assert_array_equal(palettize(weights, bits).restored(), weights)


def test_groups_shorter_than_the_palette_are_kept_exactly() -> None:
    weights = drawn("normal", 4, 5)
    np.testing.assert_array_equal(palettize(weights, 4).restored(), weights)
    assert palettize(weights[:, :1], 4).restored().tolist() == weights[:, :1].tolist()


def test_a_group_does_not_know_of_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    weights = np.concatenate([drawn("normal", 3, 400), 100 * drawn("student 1.5", 3, 400)])
    together = palettize(weights, 4)
    for row in range(len(weights)):
        alone = palettize(weights[row : row + 1], 4)
        np.testing.assert_array_equal(alone.values[0], together.values[row])
        np.testing.assert_array_equal(alone.indices[0], together.indices[row])
    monkeypatch.setattr(palettes, "CHUNK", 900)
    in_parts = palettize(weights, 4)
    np.testing.assert_array_equal(in_parts.values, together.values)


def test_counting_long_groups_finds_what_sorting_finds(monkeypatch: pytest.MonkeyPatch) -> None:
    weights = drawn("student 3", 2, 5000)
    importance = np.random.default_rng(0).random(weights.shape).astype(np.float32)
    sorted_plain, sorted_weighted = palettize(weights, 6), palettize(weights, 6, importance)
    monkeypatch.setattr(palettes, "LONGEST_SORTED", 100)
    monkeypatch.setattr(palettes, "CHUNK", 1500)
    for found, weighing in ((sorted_plain, None), (sorted_weighted, importance)):
        again = palettize(weights, 6, weighing)
        ratio = errors(weights, again, weighing) / errors(weights, found, weighing)
        np.testing.assert_allclose(ratio, 1, atol=0.003)


@pytest.mark.parametrize("weighing", [False, True])
@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
def test_weights_of_16_bits_are_counted_and_found_as_if_sorted(
    monkeypatch: pytest.MonkeyPatch, kind: torch.dtype, weighing: bool
) -> None:
    weights = torch.from_numpy(drawn("laplace", 3, 3000)).to(kind).float().numpy()
    weights[0, :2] = 0.0, -0.0
    importance = np.random.default_rng(0).integers(0, 3, weights.shape).astype(np.float32)
    given = importance if weighing else None
    counted = palettize(weights, 5, given)
    monkeypatch.setattr(palettes, "_coded", lambda part: None)
    found = palettize(weights, 5, given)
    np.testing.assert_array_equal(counted.values, found.values)
    np.testing.assert_array_equal(counted.indices, found.indices)


def test_where_no_weight_counts_all_do() -> None:
    weights = drawn("normal", 2, 500)
    importance = np.stack([np.zeros(500), np.ones(500)]).astype(np.float32)
    np.testing.assert_array_equal(palettize(weights, 3, importance).values, palettize(weights, 3).values)


def test_where_compiled_code_cannot_be_kept_it_is_compiled_again(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = numba.njit

    def njit(**options: Any) -> Any:
        if options.pop("cache", False):
            raise RuntimeError("cannot cache function: no locator available")
        return whole(**options)

    monkeypatch.setattr(numba, "njit", njit)
    assert compiled(lambda x: x + 1)(1) == 2


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 70_000.0])
def test_weights_that_fp16_cannot_hold_are_refused(bad: float) -> None:
    weights = drawn("normal", 2, 50)
    weights[1, 7] = bad
    with pytest.raises(ExportError, match="fp16's range"):
        palettize(weights, 4)


@pytest.mark.parametrize("bits", [0, 9])
def test_bits_that_no_index_has_are_refused(bits: int) -> None:
    with pytest.raises(ValueError, match="1 to 8 bits"):
        palettize(drawn("normal", 1, 20), bits)
