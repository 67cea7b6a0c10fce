"""The random numbers of a seed: PyTorch's, made without PyTorch."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from mobile_o_export.errors import UsageError
from mobile_o_export.pipelines.noise import LARGEST_SEED, generator_words, initial_latent

SEEDS = [0, 1, 42, 5489, 20260220, 2**31, LARGEST_SEED]
SHAPES = [
    (1, 32, 16, 16),
    (1, 4, 4, 4),
    (1, 1, 1, 16),
    # No multiples of 16: the last 16 values are made anew.
    (1, 1, 1, 17),
    (1, 1, 1, 31),
    (1, 3, 5, 7),
]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("seed", SEEDS)
def test_the_latent_is_torch_s(seed: int, shape: tuple[int, ...]) -> None:
    expected = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).numpy()
    latent = initial_latent(seed, shape)
    assert latent.dtype == np.float32
    np.testing.assert_allclose(latent, expected, rtol=0, atol=1e-5)


def test_the_latent_is_standard_normal() -> None:
    """Of 65536 values the mean strays by 0.004 and the deviation by 0.003; three times that is let pass."""
    latent = initial_latent(7, (1, 64, 32, 32))
    assert abs(latent.mean()) < 0.012
    assert abs(latent.std() - 1.0) < 0.009


def test_another_seed_is_another_latent() -> None:
    assert not np.array_equal(initial_latent(0, (1, 4, 4, 4)), initial_latent(1, (1, 4, 4, 4)))


def test_the_same_seed_is_the_same_latent() -> None:
    assert np.array_equal(initial_latent(3, (1, 4, 4, 4)), initial_latent(3, (1, 4, 4, 4)))


@pytest.mark.parametrize(
    ("seed", "place", "word"),
    [
        # mt19937ar.c's default seed; the ISO C++ standard gives its 10000th word ([rand.predef]).
        (5489, 1, 3499211612),
        (5489, 10000, 4123659995),
    ],
)
def test_the_words_are_the_published_ones(seed: int, place: int, word: int) -> None:
    assert generator_words(seed, place)[-1] == word


def twister(seed: int) -> random.Random:
    """CPython's MT19937 with the state of ``init_genrand(seed)``, which it has no other way to reach."""
    state = [seed]
    for index in range(1, 624):
        previous = state[-1]
        state.append((1812433253 * (previous ^ (previous >> 30)) + index) & 0xFFFFFFFF)
    generator = random.Random()
    generator.setstate((3, (*state, 624), None))
    return generator


@pytest.mark.parametrize("seed", SEEDS)
def test_the_words_are_another_implementation_s(seed: int) -> None:
    """2000 words: the state is renewed every 624."""
    expected = twister(seed)
    words = generator_words(seed, 2000)
    assert words.dtype == np.uint32
    assert words.tolist() == [expected.getrandbits(32) for _ in range(2000)]


def test_fewer_words_are_the_first_ones() -> None:
    assert generator_words(9, 5).tolist() == generator_words(9, 700)[:5].tolist()


@pytest.mark.parametrize("seed", [-1, 2**32, -(2**32), 2**64])
def test_a_seed_that_is_no_32_bits_is_refused(seed: int) -> None:
    message = rf"^the seed {seed} is not in 0\.\.4294967295\. Choose one that is\.$"
    with pytest.raises(UsageError, match=message):
        generator_words(seed, 1)
    with pytest.raises(UsageError, match=message):
        initial_latent(seed, (1, 4, 4, 4))
