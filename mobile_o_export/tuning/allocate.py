"""The best precisions under a budget of bytes, or the fewest bytes for a level: greedy on convex hulls.

Errors of different weights are taken as independent, so that their powers add up. Then the best allocation
for every trade-off is found by going down each weight's lower convex hull of (bytes, noise), the step that
costs least noise a byte first (Shoham and Gersho, 1988). What the assumption is worth is measured afterwards.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Self

from mobile_o_export.tuning.sensitivity import Option, worst


@dataclass(frozen=True)
class Allocation:
    """A precision for each weight.

    Attributes:
        options: by weight.
        size_bytes: of all of them.
        noise: predicted, the sum of theirs.
    """

    options: Mapping[str, Option]
    size_bytes: int
    noise: float

    @classmethod
    def of(cls, options: Mapping[str, Option]) -> Self:
        """These options, with the sums of what they take and add."""
        chosen = options.values()
        sizes, noises = (option.size_bytes for option in chosen), (worst(option.noise) for option in chosen)
        return cls(options, sum(sizes), sum(noises))


def hull(options: Sequence[Option]) -> list[Option]:
    """The options on the lower convex hull of size and noise, the largest first."""
    kept: list[Option] = []
    for option in sorted(options, key=lambda found: (-found.size_bytes, worst(found.noise))):
        if kept and option.size_bytes == kept[-1].size_bytes:
            continue
        # Fewer bytes at no more noise: what is larger is never worth it.
        while kept and worst(option.noise) <= worst(kept[-1].noise):
            kept.pop()
        while len(kept) > 1 and _slope(kept[-2], kept[-1]) >= _slope(kept[-2], option):
            kept.pop()
        kept.append(option)
    return kept


def frontier(weights: Mapping[str, Sequence[Option]]) -> list[Allocation]:
    """Every allocation on the way from the best to the smallest, each a step from the one before."""
    hulls = {name: hull(options) for name, options in weights.items()}
    chosen = {name: options[0] for name, options in hulls.items()}
    steps = sorted(
        (
            (_slope(one, other), name, other)
            for name, options in hulls.items()
            for one, other in pairwise(options)
        ),
        key=lambda step: step[:2],
    )
    found = [Allocation.of(dict(chosen))]
    size, noise = found[0].size_bytes, found[0].noise
    for _, name, option in steps:
        size += option.size_bytes - chosen[name].size_bytes
        noise += worst(option.noise) - worst(chosen[name].noise)
        chosen[name] = option
        found.append(Allocation(dict(chosen), size, noise))
    return found


def within_budget(allocations: Sequence[Allocation], size_bytes: int) -> Allocation | None:
    """The best of no more than ``size_bytes``, or None."""
    return next((found for found in allocations if found.size_bytes <= size_bytes), None)


def within_noise(allocations: Sequence[Allocation], noise: float) -> Allocation | None:
    """The smallest of no more than ``noise``, or None."""
    return next((found for found in reversed(allocations) if found.noise <= noise), None)


def _slope(one: Option, other: Option) -> float:
    """Noise for each byte saved."""
    return (worst(other.noise) - worst(one.noise)) / (one.size_bytes - other.size_bytes)
