"""The allocation against every other one there is, on a few weights."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from mobile_o_export.precision import Precision
from mobile_o_export.tuning.allocate import frontier, hull, within_budget, within_noise
from mobile_o_export.tuning.sensitivity import Option

FP16, W8, W6, W4 = (Precision.parse(name) for name in ("fp16", "w8", "w6_lut", "w4_lut"))


def weights(count: int, seed: int) -> dict[str, tuple[Option, ...]]:
    """Weights of different sizes and sensitivities, fewer bits never better."""
    rng = np.random.default_rng(seed)
    found = {}
    for index in range(count):
        elements = int(rng.integers(100, 2000))
        noise = np.cumsum(rng.exponential(scale=10.0 ** rng.uniform(-6, -2), size=3) * [1, 10, 100])
        options = [Option(FP16, 2 * elements, {})]
        for precision, value in zip((W8, W6, W4), noise, strict=True):
            options.append(Option(precision, elements * precision.weight_bits // 8, {"f.out": float(value)}))
        found[f"w{index}"] = tuple(options)
    return found


def every(options: dict[str, tuple[Option, ...]]) -> list[tuple[int, float]]:
    """(bytes, noise) of every allocation."""
    return [
        (sum(o.size_bytes for o in chosen), sum(max(o.noise.values(), default=0) for o in chosen))
        for chosen in itertools.product(*options.values())
    ]


@pytest.mark.parametrize("seed", range(5))
def test_no_allocation_is_better_on_the_frontier(seed: int) -> None:
    options = weights(5, seed)
    allocations = frontier(options)
    for found in allocations:
        assert found.size_bytes == sum(option.size_bytes for option in found.options.values())
        better = [noise for size, noise in every(options) if size <= found.size_bytes]
        assert found.noise == pytest.approx(min(better), rel=1e-9, abs=1e-15)


@pytest.mark.parametrize("seed", range(5))
def test_a_budget_is_kept_and_nearly_used(seed: int) -> None:
    options = weights(6, seed)
    allocations = frontier(options)
    largest = max(option.size_bytes for some in options.values() for option in some)
    for budget in np.linspace(allocations[-1].size_bytes, allocations[0].size_bytes, 9).astype(int):
        found = within_budget(allocations, int(budget))
        assert found is not None
        assert found.size_bytes <= budget
        # One weight's step at most is left.
        assert budget - found.size_bytes <= largest
    assert within_budget(allocations, allocations[-1].size_bytes - 1) is None


def test_a_level_is_kept_by_the_smallest() -> None:
    allocations = frontier(weights(6, 0))
    for found in allocations:
        chosen = within_noise(allocations, found.noise)
        assert chosen is not None
        assert chosen.noise <= found.noise
        assert chosen.size_bytes <= found.size_bytes
    assert within_noise(allocations, 0.0) == allocations[0]


def test_options_that_are_larger_and_no_better_are_left_out() -> None:
    options = (
        Option(FP16, 100, {}),
        Option(W8, 60, {"o": 0.5}),
        Option(W6, 50, {"o": 0.1}),
        Option(W4, 20, {"o": 0.9}),
    )
    assert [option.precision for option in hull(options)] == [FP16, W6, W4]
    # Above the line between its neighbours.
    convex = (Option(FP16, 100, {}), Option(W8, 60, {"o": 0.8}), Option(W4, 20, {"o": 0.9}))
    assert [option.precision for option in hull(convex)] == [FP16, W4]


def test_a_step_that_costs_nothing_is_always_taken() -> None:
    options = {"w": (Option(FP16, 100, {}), Option(W8, 50, {"o": 0.0}), Option(W4, 25, {"o": 0.3}))}
    assert frontier(options)[0].options["w"].precision == W8
