"""Palettes: each group of weights as indices into a few values of its own, for the least squared error.

This is k-means in one dimension, where a cluster is a run of the sorted weights. Lloyd's fixed point depends
on where it begins. So the cuts between runs are first chosen by dynamic programming among a few candidates
for each cluster, spread by Panter and Dite's high-rate formula (the density to the power 1/3), then again
among finer ones around what Lloyd made of them, until that no longer pays. Tests hold the result against the
global optimum.

Weights of 16 bits, as checkpoints have them, are counted instead of sorted: a group has at most 65536
distinct ones.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from mobile_o_export.compression.half import CHUNK, chunks, narrowed, within_half

if TYPE_CHECKING:
    from mobile_o_export.parity.metrics import Array

MOST_BITS = 8
ROWS = 256
"""Groups that are clustered at once."""

LONGEST_SORTED = 1 << 20
"""Longer groups of fp32 are counted by their fp16 value instead of sorted."""


_Points = tuple["Array", "Array", "Array"]
"""Places float32 [M], ascending, and the prefix sums of their mass and moment, float64 [M + 1]."""


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
        from mobile_o_export.compression.clusters import look_up

        found = np.empty(self.indices.shape, dtype)
        # As patterns of bits, since what compiles it has no fp16.
        bits = np.dtype(f"u{found.itemsize}")
        _each_row(look_up, self.values.astype(dtype).view(bits), self.indices, found.view(bits))
        return found

    def rows(self, part: slice) -> Palettes:
        """Some of the groups."""
        return Palettes(self.values[part], self.indices[part])


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
    for rows in chunks(count, length, ROWS):
        part = within_half(groups[rows], "palettized")
        weighing = None if importance is None else _counting(importance[rows])
        coded = _coded(groups[rows])
        values[rows] = _centres(part, coded, weighing, 2**bits).astype(np.float16)
        indices[rows] = _nearest(part, coded, values[rows])
    return Palettes(values, indices)


def _counting(importance: Array) -> Array:
    """float32, with ones for rows in which no weight counts: all do there."""
    weighing = np.array(importance, np.float32)
    weighing[~(weighing > 0).any(axis=1)] = 1
    return weighing


def _each_row(work: Callable[..., None], *arrays: Array) -> None:
    """Calls ``work`` with the same row of all ``arrays``, for each row, in as many threads as torch takes."""

    def share(first: int) -> None:
        for row in range(first, len(arrays[0]), threads):
            work(*(array[row] for array in arrays))

    threads = min(torch.get_num_threads(), len(arrays[0]))
    if threads < 2:
        share(0)
        return
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(share, range(threads)))


# --- weights of 16 bits ---


@dataclass(frozen=True)
class _Coded:
    """Weights as the 16 bits that they are.

    Attributes:
        codes: uint16 [G, N].
        numbers: what each code stands for, float32 [65536].
    """

    codes: Array
    numbers: Array

    def points(self, codes: Array, importance: Array) -> _Points:
        """Those of one row."""
        from mobile_o_export.compression.clusters import points_of_codes

        most = min(len(codes), len(self.numbers))
        return _filled(partial(points_of_codes, codes, importance, self.numbers), most)


def _coded(part: Array) -> _Coded | None:
    """[G, N] as bf16 or fp16, where each weight is one."""
    narrow = narrowed(part)
    return _Coded(narrow.view(np.uint16), _numbers(narrow.dtype)) if narrow.dtype.itemsize == 2 else None


@cache
def _numbers(dtype: np.dtype[Any]) -> Array:
    """What all codes of a 16-bit type stand for, float32 [65536]."""
    return np.arange(1 << 16, dtype=np.uint16).view(dtype).astype(np.float32)


# --- clusters ---


def _centres(part: Array, coded: _Coded | None, importance: Array | None, clusters: int) -> Array:
    """The values of each row's clusters, ascending, float64 [G, K]."""
    from mobile_o_export.compression.clusters import cluster

    def fill(row: Array, weighing: Array, centres: Array) -> None:
        cluster(*points(row, weighing), centres)

    points: Callable[[Array, Array], _Points] = _sorted
    if coded is not None:
        points = coded.points
    elif part.shape[1] > LONGEST_SORTED:
        points = _counted
    found = np.empty((len(part), clusters))
    rows = part if coded is None else coded.codes
    _each_row(fill, rows, np.empty((len(part), 0), np.float32) if importance is None else importance, found)
    return found


def _sorted(weights: Array, importance: Array) -> _Points:
    from mobile_o_export.compression.clusters import points_of_sorted

    if not len(importance):
        return _filled(partial(points_of_sorted, np.sort(weights), importance), len(weights))
    order = np.argsort(weights)
    return _filled(partial(points_of_sorted, weights[order], importance[order]), len(weights))


def _filled(fill: Callable[[Array, Array, Array], int], most: int) -> _Points:
    """What ``fill`` makes of room for ``most`` places."""
    places, mass, moment = np.empty(most, np.float32), np.empty(most + 1), np.empty(most + 1)
    found = fill(places, mass, moment)
    return places[:found], mass[: found + 1], moment[: found + 1]


def _counted(weights: Array, importance: Array) -> _Points:
    """A place for each fp16 value that there is: the mean of the weights that round to it."""
    mass, moment = np.zeros(1 << 16), np.zeros(1 << 16)
    for start in range(0, len(weights), CHUNK):
        some = weights[start : start + CHUNK]
        patterns = some.astype(np.float16).view(np.uint16)
        each = importance[start : start + CHUNK] if len(importance) else np.ones_like(some)
        mass += np.bincount(patterns, each, minlength=1 << 16)
        moment += np.bincount(patterns, each * some, minlength=1 << 16)
    used = np.flatnonzero(mass)
    used = used[np.argsort(moment[used] / mass[used])]
    places = (moment[used] / mass[used]).astype(np.float32)
    mass, moment = (np.concatenate([[0.0], np.cumsum(each[used])]) for each in (mass, moment))
    return places, mass, moment


def _nearest(part: Array, coded: _Coded | None, values: Array) -> Array:
    """The index of the nearest of ascending ``values`` [G, K] for each weight, uint8 [G, N]."""
    wide = values.astype(np.float32)
    borders = (wide[:, 1:] + wide[:, :-1]) / 2
    if coded is None:
        found = torch.searchsorted(torch.from_numpy(borders), torch.from_numpy(part), out_int32=True)
        return found.to(torch.uint8).numpy()
    from mobile_o_export.compression.clusters import nearest_of_codes

    codes, numbers = coded.codes, coded.numbers
    indices = np.empty(part.shape, np.uint8)
    _each_row(lambda row, border, into: nearest_of_codes(row, numbers, border, into), codes, borders, indices)
    return indices
