"""k-means on a line, compiled: a palette's values for a group of weights, and each weight's nearest value.

A group is its distinct weights, ascending, with the prefix sums of their mass and moment, from which the
error of any run is known at once. Where a cut lies depends on what was found before, and cuts move by
different numbers of places: loops that have no array form.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from mobile_o_export.compiled import compiled

CODES = 1 << 16
"""Numbers that 16 bits can be."""

FINER = 8
"""Candidates for cuts to a cluster."""

DRIFT = 4
"""Runs that a cut may lie away from an even share of the candidates."""

PASSES = 30
WORTHWHILE = 1e-4
"""Another pass is made where one took off more than this part of the error."""

ITERATIONS = 100
SETTLED = 1e-6
"""Lloyd stops where an iteration takes off less than this part of the error."""

CELLS_A_CLUSTER = 2
"""Quantiles that the density is estimated from, to a part of the companded line."""

TINY = 1e-300
"""What masses are divided by at least: an empty run has no moment either."""


@compiled
def _below(numbers: Any, border: Any, low: int, high: int) -> int:
    """How many of ascending ``numbers`` are below ``border``, known to be ``low`` to ``high``."""
    while low < high:
        middle = (low + high) >> 1
        if numbers[middle] < border:
            low = middle + 1
        else:
            high = middle
    return low


@compiled
def _copy(cuts: Any, into: Any) -> None:
    """Copies ``cuts``; as slices it would take ten times as long to compile."""
    for index in range(len(cuts)):
        into[index] = cuts[index]


# --- distinct weights ---


@compiled
def _add(places: Any, mass: Any, moment: Any, found: int, place: float, weighs: float) -> int:
    """Appends a place that is not below the last one; how many there are then."""
    if found == 0 or places[found - 1] != place:
        places[found] = place
        found += 1
        mass[found], moment[found] = mass[found - 1], moment[found - 1]
    mass[found] += weighs
    moment[found] += weighs * place
    return found


@compiled
def _ranks(codes: Any) -> tuple[int, int]:
    """The ranks of the least and the largest of some 16-bit floating-point numbers among all of them.

    Of negative ones all bits are turned. Written without a branch, eight are compared at once.
    """
    low, high = np.uint16(CODES - 1), np.uint16(0)
    for index in range(len(codes)):
        negative = np.uint16(np.int16(codes[index]) >> 15)
        rank = np.uint16(codes[index] ^ (negative | np.uint16(CODES // 2)))
        low, high = min(low, rank), max(high, rank)
    return int(low), int(high)


@compiled
def _code(rank: int) -> int:
    """The 16 bits of a rank."""
    return rank ^ (CODES - 1) if rank < CODES // 2 else rank ^ (CODES // 2)


@compiled
def _points_between(
    low: int, high: int, weighs: Any, numbers: Any, places: Any, mass: Any, moment: Any
) -> int:
    """Fills the points of the codes from one rank to another that weigh something; how many there are."""
    found = 0
    mass[0] = moment[0] = 0.0
    for rank in range(low, high + 1):
        code = _code(rank)
        if weighs[code] > 0:
            found = _add(places, mass, moment, found, numbers[code], weighs[code])
    return found


@compiled
def points_of_codes(codes: Any, importance: Any, numbers: Any, places: Any, mass: Any, moment: Any) -> int:
    """Fills the distinct weights of a group and the prefix sums; how many there are.

    Args:
        codes: its weights' bits, uint16 [N].
        importance: what each one weighs, float32 [N]; 1 where empty.
        numbers: what each code stands for, float32 [65536].
        places: to be filled: float32, ascending; there is room for min(N, 65536).
        mass: to be filled: float64 prefix sums, one more than there are places.
        moment: likewise, of mass × place.
    """
    low, high = _ranks(codes)
    if len(importance):
        weighs = np.zeros(CODES)
        for index in range(len(codes)):
            weighs[codes[index]] += importance[index]
        return _points_between(low, high, weighs, numbers, places, mass, moment)
    count = np.zeros(CODES, np.int32)  # half as large, and faster by half
    for index in range(len(codes)):
        count[codes[index]] += 1
    return _points_between(low, high, count, numbers, places, mass, moment)


@compiled
def points_of_sorted(weights: Any, importance: Any, places: Any, mass: Any, moment: Any) -> int:
    """The same of ascending ``weights``, float32 [N]."""
    found = 0
    mass[0] = moment[0] = 0.0
    for index in range(len(weights)):
        weighs = np.float64(importance[index]) if len(importance) else 1.0
        if weighs > 0.0:
            found = _add(places, mass, moment, found, weights[index], weighs)
    return found


# --- clusters ---


@compiled
def cluster(places: Any, mass: Any, moment: Any, centres: Any) -> None:
    """Fills the ``centres`` of K runs of M ascending ``places``, float64 [K], for the least squared error.

    Args:
        places: float32 [M].
        mass: float64 [M + 1], prefix sums.
        moment: float64 [M + 1], prefix sums of mass × place.
        centres: to be filled.
    """
    clusters, count = len(centres), len(places)
    cuts = np.empty(clusters + 1, np.int64)
    if count <= clusters:
        for index in range(clusters + 1):
            cuts[index] = min(index, count)
        _average(places, mass, moment, cuts, centres)
        return
    energy = 0.0
    for index in range(count):
        energy += (moment[index + 1] - moment[index]) * places[index]
    candidates = np.empty(clusters * FINER + 1, np.int64)
    _compand(places, mass, candidates)
    _divide(mass, moment, candidates, cuts)
    error = _settle(places, mass, moment, energy, cuts)
    tried = np.empty(clusters + 1, np.int64)
    for _ in range(PASSES):
        _refine(places, cuts, candidates)
        _divide(mass, moment, candidates, tried)
        reached = _settle(places, mass, moment, energy, tried)
        if reached >= (1 - WORTHWHILE) * error:
            break
        _copy(tried, cuts)
        error = reached
    _average(places, mass, moment, cuts, centres)


@compiled
def _compand(places: Any, mass: Any, cuts: Any) -> None:
    """Fills ``cuts`` [K + 1] at equal parts of the integral of density**(1/3) (Panter and Dite, 1951).

    Of cells of equal mass the density is one over the width, so that a cell's part is its width**(2/3).
    """
    count, runs = len(places), len(cuts) - 1
    cells = CELLS_A_CLUSTER * runs
    edges, parts = np.empty(cells + 1), np.zeros(cells + 1)
    for cell in range(cells + 1):
        # Of the first place is the first mass, which is 0.
        rank = _below(mass, mass[count] * cell / cells, 1, count)
        edges[cell] = places[rank - 1]
        if cell:
            parts[cell] = parts[cell - 1] + (edges[cell] - edges[cell - 1]) ** (2 / 3)
    cuts[0], cuts[runs] = 0, count
    cell = 0
    for run in range(1, runs):
        wanted = parts[cells] * run / runs
        while cell < cells - 1 and parts[cell + 1] <= wanted:
            cell += 1
        inside = (wanted - parts[cell]) / max(parts[cell + 1] - parts[cell], TINY)
        border = edges[cell] + min(max(inside, 0.0), 1.0) * (edges[cell + 1] - edges[cell])
        cuts[run] = _below(places, np.float32(border), 0, count)


@compiled
def _refine(places: Any, cuts: Any, candidates: Any) -> None:
    """Fills ``candidates`` [K × FINER + 1] with ``cuts`` [K + 1] and others that part each run evenly."""
    for run in range(len(cuts) - 1):
        start, stop = cuts[run], cuts[run + 1]
        candidates[run * FINER] = start
        lowest, highest = np.float64(places[min(start, stop - 1)]), np.float64(places[stop - 1])
        for part in range(1, FINER):
            border = np.float32(lowest + (highest - lowest) * part / FINER)
            candidates[run * FINER + part] = _below(places, border, start, stop)
    candidates[-1] = cuts[-1]


@compiled
def _lowest(level: int, clusters: int) -> int:
    """The first candidate that the cut after so many runs may be at; the last cut is the last one."""
    return clusters * FINER if level == clusters else max(0, (level - DRIFT) * FINER)


@compiled
def _divide(mass: Any, moment: Any, candidates: Any, cuts: Any) -> None:
    """Fills ``cuts`` [K + 1] with the best ones among ``candidates`` [K × FINER + 1], by dynamic programming.

    A cut may be DRIFT runs away from where it would be if the candidates were shared out evenly. The further
    a run ends, the later it begins at best, so that a run's best begin halves the search for all others
    (Wu, 1991).
    """
    clusters = len(cuts) - 1
    last, reach = clusters * FINER, DRIFT * FINER
    width = 2 * reach + 1
    masses, moments = np.empty(last + 1), np.empty(last + 1)
    for index in range(last + 1):
        masses[index], moments[index] = mass[candidates[index]], moment[candidates[index]]
    # Minus what the runs up to a candidate take off Σx², and which candidate the last of them begins at.
    before, after = np.empty(width), np.empty(width)
    choices = np.empty((clusters + 1, width), np.int64)
    before[0] = 0.0
    low_before, high_before = 0, 0
    widest = 1
    while widest <= width:
        widest *= 2
    for level in range(1, clusters + 1):
        low, high = _lowest(level, clusters), min(last, level * FINER + reach)
        # Every other of those that are left, between the begins of its neighbours that are known.
        step = widest
        while step > 1:
            half = step // 2
            for stop in range(low + half - 1, high + 1, step):
                known = stop - low
                earliest = choices[level, known - half] if known >= half else low_before
                latest = choices[level, known + half] if stop + half <= high else high_before
                best, chosen = np.inf, earliest
                for start in range(earliest, min(latest, stop) + 1):
                    pulls = moments[stop] - moments[start]
                    cost = before[start - low_before] - pulls * pulls / max(
                        masses[stop] - masses[start], TINY
                    )
                    if cost < best:
                        best, chosen = cost, start
                after[known], choices[level, known] = best, chosen
            step = half
        before, after = after, before
        low_before, high_before = low, high
    chosen = last
    for level in range(clusters, 0, -1):
        cuts[level] = candidates[chosen]
        chosen = choices[level, chosen - _lowest(level, clusters)]
    cuts[0] = 0


@compiled
def _settle(places: Any, mass: Any, moment: Any, energy: float, cuts: Any) -> float:
    """Moves ``cuts`` by Lloyd's iterations until they settle; the squared error."""
    centres, moved = np.empty(len(cuts) - 1), np.empty(len(cuts), np.int64)
    _copy(cuts, moved)
    error = _error(mass, moment, energy, cuts)
    for _ in range(ITERATIONS):
        _average(places, mass, moment, cuts, centres)
        for index in range(1, len(centres)):
            border = np.float32((centres[index - 1] + centres[index]) / 2)
            moved[index] = _walked(places, border, cuts[index])
        reached = _error(mass, moment, energy, moved)
        if reached >= (1 - SETTLED) * error:
            break
        _copy(moved, cuts)
        error = reached
    return error


@compiled
def _walked(places: Any, border: Any, cut: int) -> int:
    """The number of ``places`` below ``border``, sought from ``cut`` on."""
    count, step = len(places), 1
    if cut < count and places[cut] < border:
        low = cut + 1
        while low + step <= count and places[low + step - 1] < border:
            low += step
            step *= 2
        high = min(low + step, count)
    else:
        high = cut
        while high - step >= 0 and places[high - step] >= border:
            high -= step
            step *= 2
        low = max(high - step, 0)
    return _below(places, border, low, high)


@compiled
def _average(places: Any, mass: Any, moment: Any, cuts: Any, centres: Any) -> None:
    """Fills the mean of each run; of an empty one, the place where it would be."""
    for run in range(len(centres)):
        weighs = mass[cuts[run + 1]] - mass[cuts[run]]
        if weighs > 0.0:
            centres[run] = (moment[cuts[run + 1]] - moment[cuts[run]]) / weighs
        else:
            centres[run] = places[min(cuts[run], len(places) - 1)]


@compiled
def _error(mass: Any, moment: Any, energy: float, cuts: Any) -> float:
    """The squared error of a row whose Σx² is ``energy``."""
    for run in range(len(cuts) - 1):
        pulls = moment[cuts[run + 1]] - moment[cuts[run]]
        energy -= pulls * pulls / max(mass[cuts[run + 1]] - mass[cuts[run]], TINY)
    return max(energy, 0.0)


# --- indices ---


@compiled
def nearest_of_codes(codes: Any, numbers: Any, borders: Any, indices: Any) -> None:
    """Fills for each of ``codes`` how many of the ascending ``borders`` its number is above, uint8 [N]."""
    low, high = _ranks(codes)
    table = np.empty(CODES, np.uint8)
    above = 0
    for rank in range(low, high + 1):
        while above < len(borders) and borders[above] < numbers[_code(rank)]:
            above += 1
        table[_code(rank)] = above
    for index in range(len(codes)):
        indices[index] = table[codes[index]]


@compiled
def look_up(values: Any, indices: Any, found: Any) -> None:
    """Fills ``found`` [N] with the ``values`` that ``indices`` [N] stand for."""
    for index in range(len(indices)):
        found[index] = values[indices[index]]
