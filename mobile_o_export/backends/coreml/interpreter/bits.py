"""Sub-byte integers as Core ML packs them: a continuous little-endian run of bits, low bit first."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mobile_o_export.backends.coreml.interpreter.kernels import unpack as unpack_each


def unpack(packed: NDArray[np.uint8], bits: int, count: int, *, signed: bool) -> NDArray[np.generic]:
    """``count`` integers of ``bits`` bits each, one a byte (``int8`` if ``signed``, else ``uint8``).

    ``packed`` is 1-D and holds at least ``ceil(count * bits / 8)`` bytes. Elements of three and six
    bits straddle bytes. Same layout as ``MILBlob::UnPackSubByteVec`` and coremltools'
    ``optimize._utils.restore_elements_from_packed_bits``.
    """
    if bits == 8:
        values = packed[:count].copy()
    else:
        values = np.empty(count, np.uint8)
        unpack_each(packed.view(np.ndarray), bits, values)
    if not signed or bits == 8:
        return values.view(np.int8) if signed else values
    # Move the sign bit to the top of the byte and shift back: an arithmetic shift copies it down.
    shifted: NDArray[np.int8] = np.left_shift(values, 8 - bits).view(np.int8) >> (8 - bits)
    return shifted
