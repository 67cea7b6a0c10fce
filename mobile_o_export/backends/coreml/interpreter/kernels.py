"""What restoring weights does to every single one of them, compiled."""

from __future__ import annotations

from typing import Any

import numpy as np

from mobile_o_export.compiled import compiled


@compiled
def _word(packed: Any, first: int, count: int) -> Any:
    """``count`` bytes from ``first`` on, the first one lowest."""
    word = np.uint64(0)
    for byte in range(count):
        word |= np.uint64(packed[first + byte]) << np.uint64(8 * byte)
    return word


@compiled
def unpack(packed: Any, width: int, values: Any) -> None:
    """Fills ``values`` uint8 [N] with integers of ``width`` bits, below 8, from ``packed`` uint8.

    Eight integers are ``width`` whole bytes; the last ones may be fewer.
    """
    mask = np.uint64((1 << width) - 1)
    whole = len(values) // 8
    for group in range(whole):
        word = _word(packed, group * width, width)
        for place in range(8):
            values[8 * group + place] = np.uint8((word >> np.uint64(place * width)) & mask)
    word = _word(packed, whole * width, min(width, len(packed) - whole * width))
    for place in range(len(values) - 8 * whole):
        values[8 * whole + place] = np.uint8((word >> np.uint64(place * width)) & mask)


@compiled
def look_up(palettes: Any, indices: Any, found: Any) -> None:
    """Fills ``found`` [G, N] with the values of ``palettes`` [G, K] at ``indices`` [G, N], all below K."""
    for group in range(indices.shape[0]):
        for place in range(indices.shape[1]):
            found[group, place] = palettes[group, indices[group, place]]
