"""How far two goldens of one checkpoint are apart: recorded on another machine, or with other versions."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from mobile_o_export.errors import GateError, GoldenError
from mobile_o_export.golden.store import Golden
from mobile_o_export.parity.metrics import SNR_CEILING_DB, measure

LEAST_DB = 60.0
"""Between two fp32 computations of one checkpoint. Two machines of one PyTorch version are above 100 dB for a
function; a chain of 20 steps, which amplifies what the first ones differ by, keeps more than this."""


@dataclass(frozen=True)
class Distance:
    """How near one place of two goldens is: the least SNR of its tensors, and in how many they differ."""

    place: str
    snr_db: float
    differing: int
    tensors: int


def same_bytes(one: Golden, other: Golden) -> bool:
    """Whether the two hold the very same, tensor for tensor and case for case."""
    return one.index == other.index


def distances(one: Golden, other: Golden) -> list[Distance]:
    """A line a component, then a line a chain.

    Raises:
        GoldenError: they were recorded from different checkpoints, or on different requests.
        GateError: an answer has other tokens.
    """
    other.require_checkpoint(one.index.checkpoint)
    found: dict[str, list[float]] = {}
    ours, theirs = list(_tensors(one)), list(_tensors(other))
    if [name for name, _ in ours] != [name for name, _ in theirs]:
        raise GoldenError(
            f"{other.path}: holds other cases than {one.path}. Record both on the same --prompts, with the "
            "same version of mobile-o-export."
        )
    for ((place, what), key), (_, other_key) in zip(ours, theirs, strict=True):
        found.setdefault(place, []).append(_snr_db(one, key, other, other_key, f"{place} {what}"))
    rows = [
        Distance(place, min(levels), sum(level < SNR_CEILING_DB for level in levels), len(levels))
        for place, levels in found.items()
    ]
    for mine, their in zip(one.index.answers, other.index.answers, strict=True):
        if mine.tokens != their.tokens:
            raise GateError(
                f"{other.path}: answers {mine.question!r} with other tokens than {one.path}: a near tie on "
                "this machine, or another computation."
            )
    return rows


def _snr_db(one: Golden, key: str, other: Golden, other_key: str, what: str) -> float:
    if key == other_key:
        return SNR_CEILING_DB
    mine, their = one.tensor(key), other.tensor(other_key)
    if mine.shape != their.shape:
        raise GoldenError(f"{other.path}: {what} is {list(their.shape)} and not {list(mine.shape)}.")
    return measure(mine, their).snr_db


def _tensors(golden: Golden) -> Iterator[tuple[tuple[str, str], str]]:
    """Every compared tensor: where it stands and what it is, and its key."""
    for component, recorded in golden.index.components.items():
        for case in recorded.cases:
            for number, step in enumerate(case.steps):
                for name, key in step.outputs.items():
                    yield (component, f"{case.name}#{number} {name}"), key
    for drawing in golden.index.drawings:
        place = f"chain {drawing.name}"
        for name in ("initial_latent", "hidden_states", "conditional", "unconditional", "image"):
            yield (place, name), getattr(drawing, name)
        for number, key in enumerate(drawing.latents, 1):
            yield (place, f"latent {number}"), key
    for answer in golden.index.answers:
        for name in ("image_features", "logits"):
            yield (f"chain {answer.name}", name), getattr(answer, name)
