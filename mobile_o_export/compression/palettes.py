"""Palettes: each group of weights as indices into a few values of its own, for the least squared error.

This is k-means in one dimension, where a cluster is a run of the sorted weights. With prefix sums the error
of any run is known at once, and a Lloyd iteration costs k binary searches instead of a look at every weight.

Lloyd's fixed point depends on where it begins. So the cuts between runs are first chosen by dynamic
programming among a few candidates for each cluster, spread by Panter and Dite's high-rate formula (the
density to the power 1/3), then again among finer ones around what Lloyd made of them, until that no longer
pays. Tests hold the result against the global optimum.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.nn import functional

from mobile_o_export.compression.half import within_half

if TYPE_CHECKING:
    from mobile_o_export.parity.metrics import Array

MOST_BITS = 8
CHUNK = 1 << 22
ROWS = 256
"""Weights and groups that are clustered at once, which bounds the memory."""

LONGEST_SORTED = 1 << 20
"""Longer groups are counted by their fp16 value instead of sorted; exact for weights that are fp16."""

ITERATIONS = 100
SETTLED = 1e-6
"""Lloyd stops where an iteration takes off less than this part of the error."""

FINER = 8
"""Candidates for cuts to a cluster."""

DRIFT = 4
"""Runs that a cut may lie away from an even share of the candidates."""

PASSES = 30
WORTHWHILE = 1e-4
"""Another pass is made where one took off more than this part of the error."""

CELLS_A_CLUSTER = 2
"""Quantiles that the density is estimated from, to a part of the companded line."""

TINY = 1e-300
"""What masses are divided by at least: an empty run has no moment either."""


@dataclass(frozen=True)
class Palettes:
    """Weights of G groups as indices into K = 2**bits values a group.

    Attributes:
        values: float16 [G, K], ascending.
        indices: uint8 [G, N].
    """

    values: Array
    indices: Array

    def restored(self, dtype: type[np.floating] = np.float16) -> Array:
        """The weights that the indices stand for, [G, N], in ``dtype``."""
        values, found = self.values.astype(dtype), np.empty(self.indices.shape, dtype)
        count, length = self.indices.shape
        # NumPy looks up by indices of eight bytes: a few of them at a time.
        for rows in _chunks(count, length):
            for start in range(0, length, CHUNK):
                part = (rows, slice(start, start + CHUNK))
                found[part] = np.take_along_axis(values[rows], self.indices[part].astype(np.intp), axis=1)
        return found


def palettize(groups: Array, bits: int, importance: Array | None = None) -> Palettes:
    """The palettes with the least squared error that this finds, and each weight's nearest entry.

    Args:
        groups: floating point [G, N], a row a group.
        bits: 1 to 8 of an index.
        importance: [G, N], not negative: what a weight's squared error counts; all the same without.

    Raises:
        ExportError: a weight is not finite, or beyond fp16's range.
    """
    if not 1 <= bits <= MOST_BITS:
        raise ValueError(f"a palette's index has 1 to {MOST_BITS} bits, not {bits}")
    count, length = groups.shape
    values = np.empty((count, 2**bits), np.float16)
    indices = np.empty((count, length), np.uint8)
    for rows in _chunks(count, length):
        part = within_half(groups[rows], "palettized")
        points = _points(part, None if importance is None else importance[rows])
        values[rows] = _clustered(points, 2**bits).numpy().astype(np.float16)
        indices[rows] = _nearest(part, values[rows])
    return Palettes(values, indices)


# --- points on a line ---


@dataclass(frozen=True)
class _Points:
    """G rows of N points, ascending, with prefix sums of their mass and moment, and Σ mass × place².

    float32 [G, N], float64 [G, N + 1] twice, float64 [G].
    """

    places: torch.Tensor
    mass: torch.Tensor
    moment: torch.Tensor
    energy: torch.Tensor

    @classmethod
    def of(cls, places: Array, mass: Array | None) -> _Points:
        """Ascending ``places`` [G, N] with their ``mass`` [G, N]; each 1 without."""
        at = torch.from_numpy(places)
        wide = at.double()
        if mass is None:
            each = torch.arange(at.shape[1] + 1, dtype=torch.float64).expand(len(at), -1)
            return cls(at, each, _prefix(wide), wide.square().sum(1))
        weights = torch.from_numpy(mass).double()
        moment = weights * wide
        return cls(at, _prefix(weights), _prefix(moment), (moment * wide).sum(1))

    def __getitem__(self, rows: torch.Tensor) -> _Points:
        return _Points(self.places[rows], self.mass[rows], self.moment[rows], self.energy[rows])

    @property
    def length(self) -> int:
        """Points of a row."""
        return self.places.shape[1]


def _prefix(values: torch.Tensor) -> torch.Tensor:
    return functional.pad(values.cumsum(1), (1, 0))


def _points(part: Array, importance: Array | None) -> _Points:
    if part.shape[1] > LONGEST_SORTED:
        return _counted(part, importance)
    if importance is None:
        return _Points.of(_sorted(part), None)
    order = np.argsort(part, axis=1)
    return _Points.of(np.take_along_axis(part, order, axis=1), np.take_along_axis(importance, order, axis=1))


def _sorted(part: Array) -> Array:
    """``part`` with each row ascending; NumPy sorts with one thread, but lets others go on."""
    workers = min(os.cpu_count() or 1, len(part))
    with ThreadPoolExecutor(workers) as pool:
        return np.concatenate(list(pool.map(np.sort, np.array_split(part, workers))))


def _counted(part: Array, importance: Array | None) -> _Points:
    """A point for each fp16 value that there is: its place is the mean of the weights that round to it."""
    rows = []
    for row, weights in enumerate(part):
        mass, moment = np.zeros(1 << 16), np.zeros(1 << 16)
        for start in range(0, len(weights), CHUNK):
            some = weights[start : start + CHUNK]
            patterns = some.astype(np.float16).view(np.uint16)
            each = np.ones_like(some) if importance is None else importance[row, start : start + CHUNK]
            mass += np.bincount(patterns, each, minlength=1 << 16)
            moment += np.bincount(patterns, each * some, minlength=1 << 16)
        used = mass > 0
        places = moment[used] / mass[used]
        order = np.argsort(places)
        rows.append((places[order].astype(np.float32), mass[used][order]))
    longest = max(len(places) for places, _ in rows)
    # Shorter rows end in points of no mass.
    places = np.stack([np.pad(places, (0, longest - len(places)), "edge") for places, _ in rows])
    return _Points.of(places, np.stack([np.pad(mass, (0, longest - len(mass))) for _, mass in rows]))


def _chunks(count: int, length: int) -> Iterator[slice]:
    step = max(1, min(ROWS, CHUNK // max(1, length)))
    return (slice(start, start + step) for start in range(0, count, step))


# --- clusters ---


def _clustered(points: _Points, clusters: int) -> torch.Tensor:
    """The centres of ``clusters`` runs a row, ascending, float64 [G, K]."""
    begin = _divided(points, _companded(points, clusters * FINER), clusters)
    steps = points.places.diff(dim=1) > 0
    few = steps.sum(1) < clusters
    begin[few] = _one_for_each(steps[few], clusters)
    cuts, error = _settled(points, begin)
    active = torch.arange(len(cuts))
    for _ in range(PASSES):
        some = points if len(active) == len(cuts) else points[active]
        tried, reached = _settled(some, _divided(some, _finer(some, cuts[active]), clusters))
        better = reached < (1 - WORTHWHILE) * error[active]
        if not better.any():
            break
        active = active[better]
        cuts[active], error[active] = tried[better], reached[better]
    return _centres(points, cuts)


def _one_for_each(steps: torch.Tensor, clusters: int) -> torch.Tensor:
    """Cuts [G, K + 1] wherever a row of at most K distinct places ``steps`` up, [G, N - 1]."""
    length = steps.shape[1] + 1
    cuts = torch.full((len(steps), clusters + 1), length)
    cuts[:, 0] = 0
    row, at = steps.nonzero(as_tuple=True)
    cuts[row, steps.cumsum(1)[row, at]] = at + 1
    return cuts


def _finer(points: _Points, cuts: torch.Tensor) -> torch.Tensor:
    """Candidates for cuts: those of ``cuts``, and others that part each run evenly."""
    lowest = points.places.gather(1, cuts[:, :-1].clamp(max=points.length - 1)).double()
    highest = points.places.gather(1, (cuts[:, 1:] - 1).clamp(min=0)).double()
    within = torch.arange(1, FINER, dtype=torch.float64) / FINER
    borders = lowest[..., None] + (highest - lowest).clamp_min(0)[..., None] * within
    inner = torch.searchsorted(points.places, borders.flatten(1).float()).reshape(borders.shape)
    inner = inner.clamp(min=cuts[:, :-1, None], max=cuts[:, 1:, None])
    return torch.cat([torch.cat([cuts[:, :-1, None], inner], dim=2).flatten(1), cuts[:, -1:]], dim=1)


def _divided(points: _Points, candidates: torch.Tensor, clusters: int) -> torch.Tensor:
    """The best cuts [G, K + 1] among ``candidates`` [G, K × FINER + 1], by dynamic programming.

    A cut may be DRIFT runs away from where it would be if the candidates were shared out evenly.
    """
    mass = points.mass.gather(1, candidates)
    moment = points.moment.gather(1, candidates)
    last, reach = clusters * FINER, DRIFT * FINER
    before = torch.zeros(len(candidates), 1, dtype=torch.float64)
    # Of each level: the candidates that its cut may be at.
    spans = [slice(0, 1)]
    choices = []
    for level in range(1, clusters + 1):
        middle = level * FINER
        span = slice(max(0, middle - reach), min(last, middle + reach) + 1)
        if level == clusters:
            span = slice(last, last + 1)
        below = spans[-1]
        weight = mass[:, span, None] - mass[:, None, below]
        sums = moment[:, span, None] - moment[:, None, below]
        # Minus what a run takes off Σx²; runs do not go backwards.
        cost = before[:, None] - sums.square_().div_(weight.clamp_min(TINY))
        here = torch.arange(span.start, span.stop)[:, None]
        cost.masked_fill_(here < torch.arange(below.start, below.stop), torch.inf)
        before, choice = cost.min(2)
        spans.append(span)
        choices.append(choice)
    chosen = torch.full((len(candidates), 1), last)
    path = [chosen]
    for level in range(clusters, 0, -1):
        chosen = choices[level - 1].gather(1, chosen - spans[level].start) + spans[level - 1].start
        path.append(chosen)
    return candidates.gather(1, torch.cat(path[::-1], dim=1))


def _companded(points: _Points, clusters: int) -> torch.Tensor:
    """Cuts [G, K + 1] at equal parts of the integral of density**(1/3) (Panter and Dite, 1951).

    Of cells of equal mass the density is one over the width, so that a cell's part is its width**(2/3).
    """
    length = points.length
    cells = CELLS_A_CLUSTER * clusters
    quantiles = torch.linspace(0, 1, cells + 1, dtype=torch.float64) * points.mass[:, -1:]
    ranks = torch.searchsorted(points.mass.contiguous(), quantiles, right=True).sub_(1).clamp_(0, length - 1)
    places = points.places.double().gather(1, ranks)
    widths = places.diff(dim=1)
    parts = functional.pad(widths.pow(2 / 3).cumsum(1), (1, 0))
    wanted = parts[:, -1:] * torch.linspace(0, 1, clusters + 1, dtype=torch.float64)[1:-1]
    cell = torch.searchsorted(parts, wanted, right=True).sub_(1).clamp_(0, cells - 1)
    inside = (wanted - parts.gather(1, cell)) / parts.diff(dim=1).gather(1, cell).clamp_min(TINY)
    borders = places.gather(1, cell) + inside.clamp(0, 1) * widths.gather(1, cell)
    return _cut_at(points, borders)


def _settled(points: _Points, cuts: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Lloyd's iterations from ``cuts`` [G, K + 1] until they settle; the cuts, and the error [G]."""
    error = _error(points, cuts)
    active = torch.arange(len(cuts))
    some = points
    for _ in range(ITERATIONS):
        centres = _centres(some, cuts[active])
        moved = _cut_at(some, (centres[:, 1:] + centres[:, :-1]) / 2)
        reached = _error(some, moved)
        going = reached < (1 - SETTLED) * error[active]
        cuts[active[going]], error[active[going]] = moved[going], reached[going]
        if not going.any():
            break
        # Copies of the points cost more than another look at rows that have settled.
        if 2 * int(going.sum()) <= len(active):
            active, some = active[going], some[going]
    return cuts, error


def _runs(points: _Points, cuts: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mass and moment of each run, [G, K]."""
    return points.mass.gather(1, cuts).diff(dim=1), points.moment.gather(1, cuts).diff(dim=1)


def _centres(points: _Points, cuts: torch.Tensor) -> torch.Tensor:
    """The mean of each run [G, K]; of an empty one, the point where it would be."""
    mass, moment = _runs(points, cuts)
    at = cuts[:, :-1].clamp(max=points.length - 1)
    return torch.where(mass > 0, moment / mass.clamp_min(TINY), points.places.gather(1, at).double())


def _error(points: _Points, cuts: torch.Tensor) -> torch.Tensor:
    """Squared error of each row, [G]."""
    mass, moment = _runs(points, cuts)
    return (points.energy - (moment.square() / mass.clamp_min(TINY)).sum(1)).clamp_min(0)


def _cut_at(points: _Points, borders: torch.Tensor) -> torch.Tensor:
    """Cuts [G, K + 1] from the K - 1 values between runs."""
    inner = torch.searchsorted(points.places, borders.float())
    return functional.pad(functional.pad(inner, (1, 0)), (0, 1), value=points.length)


def _nearest(part: Array, values: Array) -> Array:
    """The index of the nearest of ascending ``values`` [G, K] for each weight, uint8 [G, N]."""
    wide = torch.from_numpy(values.astype(np.float32))
    borders = (wide[:, 1:] + wide[:, :-1]) / 2
    found = torch.searchsorted(borders, torch.from_numpy(part), out_int32=True)
    return found.to(torch.uint8).numpy()
