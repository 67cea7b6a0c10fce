"""Scores of a model's run with 95 % confidence intervals, alone and next to PyTorch's of the same tasks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mobile_o_export.errors import UsageError
from mobile_o_export.evaluation.record import ModelRun
from mobile_o_export.parity.metrics import Array, psnr_db
from mobile_o_export.strict import Strict

Z_95 = 1.959964
"""The normal distribution's 97.5 % quantile."""


class Proportion(Strict):
    """``passed`` of ``of``, with the Wilson score interval (Wilson 1927), which holds near 0 and 1 too."""

    passed: int
    of: int
    low: float
    high: float

    @classmethod
    def count(cls, verdicts: Sequence[bool]) -> Proportion | None:
        """Of the true ones among ``verdicts``; None where there are none to count."""
        if not verdicts:
            return None
        n, passed = len(verdicts), sum(verdicts)
        rate, square = passed / n, Z_95**2
        centre = (rate + square / (2 * n)) / (1 + square / n)
        reach = Z_95 * math.sqrt(rate * (1 - rate) / n + square / (4 * n * n)) / (1 + square / n)
        return cls(passed=passed, of=n, low=max(0.0, centre - reach), high=min(1.0, centre + reach))

    @property
    def rate(self) -> float:
        """The proportion itself, 0..1."""
        return self.passed / self.of


class Difference(Strict):
    """A model's rate minus PyTorch's on the same tasks, and its interval.

    The runs are paired, so that only tasks on which they differ count; the interval is Agresti and Min's
    (2005), which adds half a task to each of the four cells.

    Attributes:
        gained: tasks that only this model passed.
        lost: tasks that only PyTorch passed.
    """

    gained: int
    lost: int
    of: int
    low: float
    high: float

    @classmethod
    def paired(cls, ours: Sequence[bool], reference: Sequence[bool]) -> Difference | None:
        """Between two runs' verdicts on the same tasks; None without tasks."""
        if not ours:
            return None
        gained = sum(a and not b for a, b in zip(ours, reference, strict=True))
        lost = sum(b and not a for a, b in zip(ours, reference, strict=True))
        n, b, c = len(ours) + 2, gained + 0.5, lost + 0.5
        centre = (b - c) / n
        reach = Z_95 * math.sqrt(max(0.0, b + c - (b - c) ** 2 / n)) / n
        return cls(gained=gained, lost=lost, of=len(ours), low=centre - reach, high=centre + reach)

    @property
    def value(self) -> float:
        """The difference itself, -1..1."""
        return (self.gained - self.lost) / self.of

    @property
    def within_noise(self) -> bool:
        """Whether the interval holds zero."""
        return self.low <= 0.0 <= self.high


class Level(Strict):
    """Mean of a measure over tasks in dB, the interval of the mean (normal), and the least value."""

    mean: float
    low: float
    high: float
    least: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Level | None:
        """Of ``values``; None without any."""
        if not values:
            return None
        mean = float(np.mean(values))
        reach = Z_95 * float(np.std(values, ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else 0.0
        return cls(mean=mean, low=mean - reach, high=mean + reach, least=min(values))


class Scores(Strict):
    """A run's scores; those next to PyTorch's are None where there is no PyTorch run of the same tasks.

    Attributes:
        drawn: drawings that the judge passed; ``by_tag`` the same for each tag.
        exact: answers that are the expected ones.
        drawn_difference: of ``drawn`` from PyTorch's.
        exact_difference: of ``exact`` from PyTorch's.
        agreement: answers that are PyTorch's, right or wrong.
        psnr: of the 8-bit pictures against PyTorch's, dB.
    """

    drawn: Proportion | None
    by_tag: dict[str, Proportion]
    exact: Proportion | None
    drawn_difference: Difference | None = None
    exact_difference: Difference | None = None
    agreement: Proportion | None = None
    psnr: Level | None = None


def score(run: ModelRun, folder: Path, reference: ModelRun | None, reference_folder: Path) -> Scores:
    """The scores of ``run``, next to ``reference`` if there is one; the folders hold their pictures.

    Raises:
        UsageError: a picture is missing, or not of its counterpart's size.
    """
    verdicts = [drawn.passed for drawn in run.drawings if drawn.passed is not None]
    tags = dict.fromkeys(drawn.tag for drawn in run.drawings)
    by_tag = {
        tag: Proportion.count([bool(d.passed) for d in run.drawings if d.tag == tag and d.passed is not None])
        for tag in tags
    }
    scores = Scores(
        drawn=Proportion.count(verdicts),
        by_tag={tag: found for tag, found in by_tag.items() if found is not None},
        exact=Proportion.count([answer.exact for answer in run.answers]),
    )
    if reference is None or reference is run:
        return scores
    pairs = list(zip(run.drawings, reference.drawings, strict=True))
    judged = [(a.passed, b.passed) for a, b in pairs if a.passed is not None and b.passed is not None]
    same = [a.answer == b.answer for a, b in zip(run.answers, reference.answers, strict=True)]
    levels = [_psnr_db(reference_folder / b.picture, folder / a.picture) for a, b in pairs]
    return scores.model_copy(
        update={
            "drawn_difference": Difference.paired([a for a, _ in judged], [b for _, b in judged]),
            "exact_difference": Difference.paired(
                [answer.exact for answer in run.answers], [answer.exact for answer in reference.answers]
            ),
            "agreement": Proportion.count(same),
            "psnr": Level.of(levels),
        }
    )


def _psnr_db(golden: Path, actual: Path) -> float:
    wanted, got = _unit(golden), _unit(actual)
    if wanted.shape != got.shape:
        raise UsageError(
            f"{actual}: is {got.shape[1]} × {got.shape[0]} pixels, and {golden} is {wanted.shape[1]} × "
            f"{wanted.shape[0]}. Evaluate again."
        )
    return psnr_db(wanted, got)


def _unit(path: Path) -> Array:
    """A picture's pixels in 0..1, float32 [Y, X, 3]."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path, formats=("PNG",)) as picture:
            return np.asarray(picture.convert("RGB"), np.float32) / np.float32(255)
    except (OSError, SyntaxError, ValueError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise UsageError(f"{path}: cannot be read ({error}). Evaluate again.") from error
