"""Random numbers (defs/iOS15/random.py): of the distribution asked for, and not Core ML's own numbers.

Which generator Core ML has is not said anywhere; a ``seed`` gives the same numbers again here, others there.
"""

from __future__ import annotations

import torch

from mobile_o_export.backends.coreml.interpreter.registry import Call, Result, implements


def _generator(call: Call) -> torch.Generator:
    """Seeded by ``seed``, by chance where it is negative."""
    generator, seed = torch.Generator(), call.integer("seed", -1)
    if seed < 0:
        generator.seed()
    else:
        generator.manual_seed(seed)
    return generator


@implements("random_uniform", "shape", "low high seed")
def _random_uniform(call: Call) -> Result:
    low, high = call.number("low", 0.0), call.number("high", 1.0)
    return low + (high - low) * torch.rand(call.integers("shape"), generator=_generator(call))


@implements("random_normal", "shape", "mean stddev seed")
def _random_normal(call: Call) -> Result:
    mean, spread = call.number("mean", 0.0), call.number("stddev", 1.0)
    return mean + spread * torch.randn(call.integers("shape"), generator=_generator(call))


@implements("random_bernoulli", "shape", "prob seed")
def _random_bernoulli(call: Call) -> Result:
    drawn = torch.rand(call.integers("shape"), generator=_generator(call))
    return (drawn < call.number("prob", 0.5)).float()


@implements("random_categorical", "x", "mode size seed")
def _random_categorical(call: Call) -> Result:
    """``size`` classes of each distribution of the last axis of ``x``, drawn with replacement."""
    x, mode, size = call.tensor("x"), call.text("mode", "logits"), call.integer("size", 1)
    if mode not in ("logits", "probs"):
        raise call.unsupported(f"mode {mode!r}")
    weights = x if mode == "probs" else torch.softmax(x, -1)
    rows = weights.reshape(-1, x.shape[-1])
    drawn = torch.multinomial(rows, size, replacement=True, generator=_generator(call))
    return drawn.reshape(*x.shape[:-1], size)
