"""Compressed weights, read back from the written file, against the weights that they stand for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from mobile_o_export.digests import array_digest
from mobile_o_export.errors import GateError
from mobile_o_export.parity.metrics import snr_of_pieces
from mobile_o_export.precision import Palette, Precision

if TYPE_CHECKING:
    from mobile_o_export.compression.compress import Compressed
    from mobile_o_export.parity.metrics import Array

LLOYD_MAX_DB = {1: 4.40, 2: 9.30, 3: 14.62, 4: 20.22, 6: 31.89, 8: 43.85}
"""What a palette reaches on normal weights, by its bits: Max (1960), table I; 6 and 8 by iteration."""

WEIGHTS = "weights.json"
"""Beside a component's files: its compressed weights, as they were read back. Where several components share
a folder, each one's name comes first."""

PALETTE_MARGIN_DB = 4.0
INTEGER_MARGIN_DB = 8.0
"""By how much a weight may miss what normal weights reach; integers suffer from a single large weight."""


@dataclass(frozen=True)
class WeightRow:
    """One compressed weight as the file restores it.

    Attributes:
        snr_db: against the weight before compression; see ``require_near``.
        least_db: what its precision has to reach.
        size_bytes: with palettes or scales.
        sha256: of the numbers, as they were read back.
        places: the constants of the files that hold them.
        input_scale: the step of its layer's integer inputs, where they are calibrated.
    """

    name: str
    precision: Precision
    shape: tuple[int, ...]
    snr_db: float
    least_db: float
    size_bytes: int
    sha256: str
    places: tuple[str, ...]
    input_scale: float | None = None


def check_weights(
    compressed: Mapping[str, Compressed], stored: Iterable[tuple[str, str, Array]], component: str
) -> tuple[WeightRow, ...]:
    """Compares every weight that a file holds with its source; a row for each weight.

    Args:
        compressed: what was to be stored, by name.
        stored: names, places and what the file restores there; a name may come several times.
        component: for messages.

    Raises:
        GateError: one is missing, has another shape, is not what compression made of it, or is further from
            its source than its precision can excuse.
    """
    rows: dict[str, WeightRow] = {}
    for name, place, restored in stored:
        weight = compressed[name]
        where = f"{component}: the weight {name} read back from the file"
        if restored.shape != weight.form.shape:
            raise GateError(
                f"{where} has the shape {restored.shape}, not {weight.form.shape}. Do not ship it."
            )
        if not np.isfinite(restored).all():
            raise GateError(f"{where} holds NaN or infinity. Do not ship it.")
        row = WeightRow(
            name=name,
            precision=weight.form.precision,
            shape=weight.form.shape,
            snr_db=require_near(weight, [(slice(None), weight.rows(restored))], where),
            least_db=least_db(weight.form.precision),
            size_bytes=weight.form.size_bytes,
            sha256=array_digest(restored),
            places=(*(rows[name].places if name in rows else ()), place),
            input_scale=weight.input_scale,
        )
        found = weight.rows(restored)
        differing = sum(int(np.count_nonzero(found[part] != wanted)) for part, wanted in weight.pieces())
        if differing:
            raise GateError(
                f"{where} differs from what was compressed in {differing} of {restored.size} numbers. "
                "Do not ship it."
            )
        rows[name] = row
        del restored, found  # before the next is made
    if missing := sorted(compressed.keys() - rows.keys()):
        raise GateError(f"{component}: the file does not hold the compressed weight {missing[0]}.")
    return tuple(rows[name] for name in sorted(rows))


def require_near(weight: Compressed, restored: Iterable[tuple[slice, Array]], where: str) -> float:
    """The SNR of a weight against its source, errors weighed as its palette was fitted to them.

    Args:
        weight: with its source.
        restored: rows of [G, N], and what they were restored to.
        where: for a message.

    Raises:
        GateError: it is less than its precision can excuse.
    """
    source = weight.rows(weight.source)
    if weight.importance is None:
        level = snr_of_pieces((source[part], found) for part, found in restored)
    else:
        root = np.sqrt(weight.rows(weight.importance)).astype(np.float32)
        weighed = ((source[part] * root[part], found * root[part]) for part, found in restored)
        level = snr_of_pieces(weighed)
    precision = weight.form.precision
    if level < least_db(precision):
        raise GateError(
            f"{where} is {level:.1f} dB from its source, and {precision} should reach "
            f"{least_db(precision):.1f} dB. Give it another precision by a rule, if it is its values' doing."
        )
    return level


def least_db(precision: Precision) -> float:
    """The least SNR of a weight at ``precision``."""
    match precision.weights:
        case Palette(bits):
            return LLOYD_MAX_DB[bits] - PALETTE_MARGIN_DB
    # Uniform steps over ±4 deviations, as far as normal weights of a channel reach.
    return 6.02 * precision.weight_bits - 7.3 - INTEGER_MARGIN_DB
