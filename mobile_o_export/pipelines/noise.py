"""The initial latent of a seed: the numbers that PyTorch's CPU generator gives, made without PyTorch.

``torch.randn(shape, generator=torch.Generator().manual_seed(seed))`` for 16 values and more, so that a seed
means the same picture in the PyTorch pipeline, here and in an app:

1. A Mersenne Twister (MT19937) is seeded with ``seed`` (Knuth's initialisation, 32 bits).
2. Each of its 32-bit words gives a uniform number u = (word mod 2^24) / 2^24, in float32.
3. Box-Muller on blocks of 16: with a = 1 - u[j] and b = u[j + 8] for j in 0..7, the block's value j is
   sqrt(-2 ln a) · cos(2π b), and value j + 8 is sqrt(-2 ln a) · sin(2π b).
4. If the count is no multiple of 16, the last 16 values are made again of 16 further words.
5. The values fill the latent [1, C, Y, X] in row-major order.

Source: ATen's ``normal_fill`` and ``uniform_real_distribution`` (PyTorch, aten/src/ATen/native/cpu).
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import numpy as np

from mobile_o_export.errors import UsageError
from mobile_o_export.parity.metrics import Array

BLOCK = 16
LARGEST_SEED = 2**32 - 1
"""The generator is seeded with 32 bits; PyTorch drops the others in silence."""


def generator_words(seed: int, count: int) -> Array:
    """The first ``count`` 32-bit words of MT19937 seeded with ``seed``, uint32.

    Raises:
        UsageError: the seed is negative or has more than 32 bits.
    """
    if not 0 <= seed <= LARGEST_SEED:
        raise UsageError(f"the seed {seed} is not in 0..{LARGEST_SEED}. Choose one that is.")
    # NumPy guarantees this stream for good; its bytes are the generator's words, little-endian.
    return np.frombuffer(np.random.RandomState(seed).bytes(4 * count), "<u4")


def initial_latent(seed: int, shape: Sequence[int]) -> Array:
    """The latent [1, C, Y, X] that denoising starts from: standard normal, float32.

    Raises:
        UsageError: the seed is negative or has more than 32 bits.
    """
    count = prod(shape)
    assert count >= BLOCK, "for fewer values PyTorch uses another algorithm"
    remainder = bool(count % BLOCK)
    words = generator_words(seed, count + BLOCK * remainder)
    uniform = (words & 0xFFFFFF).astype(np.float32) * np.float32(2.0**-24)
    values = np.empty(count, np.float32)
    whole = count - count % BLOCK
    values[:whole] = _box_muller(uniform[:whole])
    if remainder:
        values[-BLOCK:] = _box_muller(uniform[count:])
    return values.reshape(tuple(shape))


def _box_muller(uniform: Array) -> Array:
    """Standard normal numbers from uniform ones in [0, 1), both [blocks · 16]."""
    blocks = uniform.reshape(-1, 2, BLOCK // 2)
    radius = np.sqrt(np.float32(-2.0) * np.log(np.float32(1.0) - blocks[:, 0]))
    angle = np.float32(2.0 * np.pi) * blocks[:, 1]
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1).reshape(-1)
