"""From a target and a budget, or a level to reach, to a recipe: measured, chosen, measured again."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from mobile_o_export.backends.registry import backend
from mobile_o_export.calibration import Calibration
from mobile_o_export.components.registry import chosen_components
from mobile_o_export.compression.compress import weights_of
from mobile_o_export.compression.form import Form
from mobile_o_export.compression.recipe import Recipe, Rule
from mobile_o_export.errors import UsageError
from mobile_o_export.plan import PlanItem, outlined_module, plan, refusal_of
from mobile_o_export.precision import Precision
from mobile_o_export.progress import Done, Progress
from mobile_o_export.tuning.allocate import Allocation, frontier, within_budget, within_noise
from mobile_o_export.tuning.asking import ask, bench_of
from mobile_o_export.tuning.sensitivity import Option, Sensitivities, measure_options, questions, worst

if TYPE_CHECKING:
    from mobile_o_export.backends.base import Backend
    from mobile_o_export.checkpoint import Checkpoint
    from mobile_o_export.golden import Golden
    from mobile_o_export.jobs import Pool
    from mobile_o_export.targets import Target

TIGHTER = 0.9
"""By at least this an allocation for a level is tightened where it measures less than what was predicted."""


@dataclass(frozen=True)
class Goal:
    """What to reach; one of the two.

    Attributes:
        budget_bytes: of all tuned components' weights together.
        snr_db: at every output of every component, in every call of the golden.
    """

    budget_bytes: int | None = None
    snr_db: float | None = None


@dataclass(frozen=True)
class Tuned:
    """One component's result.

    Attributes:
        weights: the names of those that a recipe speaks of.
        precisions: of each weight that is compressed.
        floating: of the others.
        size_bytes: of all weights.
        predicted_db, measured_db: at the output that suffers most.
        frontier: predicted (bytes, dB) of every allocation on the way.
        uniform: measured (precision, bytes, dB) with every weight at one precision.
    """

    component: str
    weights: tuple[str, ...]
    floating: Precision
    precisions: Mapping[str, Precision]
    size_bytes: int
    predicted_db: float
    measured_db: float
    frontier: tuple[tuple[int, float], ...]
    uniform: tuple[tuple[Precision, int, float], ...]


def tune(
    checkpoint: Checkpoint,
    target: Target,
    components: Sequence[str],
    candidates: Sequence[Precision],
    golden: Golden,
    goal: Goal,
    cache: Path,
    progress: Progress,
    pool: Pool | None = None,
) -> tuple[Tuned, ...]:
    """Tunes the chosen components (all that ``target`` does not skip where none are named).

    Args:
        checkpoint: what will be exported.
        target: for whom.
        components: names.
        candidates: compressed precisions to choose from, each where the backend does it for a component;
            floating point is always there. Without any, the target's own.
        golden: recorded from ``checkpoint``; its inputs are what errors are measured on.
        goal: what to reach.
        cache: the file of measured sensitivities.
        progress: told what happens.
        pool: measures sensitivities in processes of their own; None to do it in this one. The numbers are
            the same.

    Raises:
        UsageError: the backend does a candidate for none of the components, or not all of them together;
            there is nothing to choose from; or the budget cannot be met.
        GoldenError: ``golden`` is not of ``checkpoint``.
    """
    golden.require_checkpoint(checkpoint.digest)
    vendor = backend(target.backend)
    names = chosen_components(components)
    # Planned as the whole target: components may need each other.
    items = plan(checkpoint, [target])
    choices = offered(items, names, candidates or target.candidates, vendor, checkpoint)
    if goal.budget_bytes is not None:
        # Before anything is measured, which takes minutes.
        _require_enough(
            goal.budget_bytes, sum(least_bytes(item, own, vendor, checkpoint) for item, own in choices)
        )
    known, calibration = Sensitivities(cache), Calibration(checkpoint, [golden])
    parts = {
        item.component: _Part(
            item, target, vendor, checkpoint, golden, own, calibration, known, progress, pool
        )
        for item, own in choices
    }
    if goal.budget_bytes is not None:
        chosen = _for_budget(parts, goal.budget_bytes)
    else:
        assert goal.snr_db is not None
        chosen = {name: _for_level(part, goal.snr_db) for name, part in parts.items()}
    found = []
    for name, allocation in chosen.items():
        found.append(parts[name].result(allocation))
        progress(target.name, name, Done(f"tuned, {found[-1].measured_db:.1f} dB"))
    return tuple(found)


def offered(
    items: Sequence[PlanItem],
    names: Collection[str],
    candidates: Sequence[Precision],
    vendor: Backend,
    checkpoint: Checkpoint,
) -> list[tuple[PlanItem, list[Precision]]]:
    """The components of ``items`` called one of ``names`` that are exported, and which of ``candidates``
    ``vendor`` does for each.

    Raises:
        UsageError: there is no candidate, one is for no component, some exclude each other, or a chosen
            component cannot be exported.
    """
    if not candidates:
        raise UsageError("the target's file says no candidates. Give --candidate P, or candidates there.")
    found: list[tuple[PlanItem, list[Precision]]] = []
    refused: dict[Precision, str] = {}
    for item in items:
        if item.refusal and item.component in names:
            raise UsageError(f"{item.target}, {item.component}: {item.refusal}. Choose other components.")
        if item.request is None:
            continue
        floating = item.request.recipe.floating
        own = []
        for candidate in candidates:
            request = replace(item.request, recipe=Recipe(floating=floating, default=candidate))
            if reason := refusal_of(request, vendor, checkpoint):
                refused[candidate] = reason
            else:
                own.append(candidate)
        found.append((item, own))
        together = replace(item.request, recipe=_mixed(floating, own))
        if item.component in names and (reason := refusal_of(together, vendor, checkpoint)):
            raise UsageError(f"{item.target}, {item.component}: {reason}. Give --candidate, of one kind.")
    # What a component that is not chosen and is refused would do cannot be asked.
    all_asked = not any(item.refusal for item in items)
    for candidate in candidates:
        if candidate.floating:
            raise UsageError(f"{candidate} is no candidate: floating point is always there.")
        if all_asked and not any(candidate in own for _, own in found):
            reason = refused.get(candidate, "every component is skipped")
            raise UsageError(f"{candidate} is no candidate: {reason}.")
    chosen = [(item, own) for item, own in found if item.component in names]
    if not chosen:
        reasons = "; ".join(f"{item.component}: {item.skip}" for item in items if item.component in names)
        raise UsageError(f"nothing to tune, everything chosen is skipped: {reasons}. Choose others.")
    return chosen


def _mixed(floating: Precision, precisions: Sequence[Precision]) -> Recipe:
    """One that has all of them."""
    rules = tuple(Rule(match=("*",), precision=precision) for precision in precisions)
    return Recipe(floating=floating, default=floating, rules=rules)


class _Part:
    """One component, loaded, with its measured options."""

    def __init__(
        self,
        item: PlanItem,
        target: Target,
        vendor: Backend,
        checkpoint: Checkpoint,
        golden: Golden,
        candidates: Sequence[Precision],
        calibration: Calibration,
        known: Sensitivities,
        progress: Progress,
        pool: Pool | None,
    ) -> None:
        assert item.request is not None
        self.name = item.component
        self._floating = item.request.recipe.floating
        self._candidates = candidates

        def say(phrase: str) -> None:
            progress(item.target, item.component, phrase)

        self._bench = bench_of(item.request, vendor, checkpoint, golden, candidates, calibration, say)
        asked = tuple(questions(self._bench, self.name, golden, candidates))
        if pool is not None:
            open_questions = [question for question in asked if known.get(question.key) is None]
            ask(open_questions, target, item, checkpoint, golden, candidates, known, say, pool)
        self.options = measure_options(self._bench, self.name, self._floating, asked, known, say)
        self.rest_bytes = self._bench.others * self._floating.weight_bits // 8
        self.frontier = frontier(self.options)

    def measured(self, chosen: Mapping[str, Option]) -> float:
        """The noise with all of ``chosen`` together."""
        with self._bench.swapped(self._forms({name: option.precision for name, option in chosen.items()})):
            return worst(self._bench.noise())

    def uncompressed(self) -> Allocation:
        """Every weight in floating point, which adds no noise."""
        return Allocation.of({name: own[0] for name, own in self.options.items()})

    def result(self, allocation: Allocation) -> Tuned:
        """What came of it."""
        precisions = {
            name: option.precision
            for name, option in allocation.options.items()
            if not option.precision.floating
        }
        return Tuned(
            component=self.name,
            weights=tuple(self.options),
            floating=self._floating,
            precisions=precisions,
            size_bytes=allocation.size_bytes + self.rest_bytes,
            predicted_db=level(allocation.noise),
            measured_db=level(self.measured(allocation.options)),
            frontier=tuple(
                (found.size_bytes + self.rest_bytes, level(found.noise)) for found in self.frontier
            ),
            uniform=tuple(self._uniform(candidate) for candidate in self._candidates),
        )

    def _uniform(self, candidate: Precision) -> tuple[Precision, int, float]:
        chosen = {
            name: next((option for option in options if option.precision == candidate), options[0])
            for name, options in self.options.items()
        }
        size = sum(option.size_bytes for option in chosen.values()) + self.rest_bytes
        return candidate, size, level(self.measured(chosen))

    def _forms(self, precisions: Mapping[str, Precision]) -> dict[str, Form]:
        shapes = {name: tuple(weight.shape) for name, weight in self._bench.weights.items()}
        return {
            name: Form.of(precision, shapes[name])
            for name, precision in precisions.items()
            if not precision.floating
        }


def _for_budget(parts: Mapping[str, _Part], budget_bytes: int) -> dict[str, Allocation]:
    """One allocation over the weights of all components; noise counts the same in each.

    Raises:
        UsageError: the smallest that there is exceeds the budget.
    """
    rest = sum(part.rest_bytes for part in parts.values())
    merged = {
        f"{name}/{weight}": options
        for name, part in parts.items()
        for weight, options in part.options.items()
    }
    allocations = frontier(merged)
    _require_enough(budget_bytes, allocations[-1].size_bytes + rest)
    chosen = within_budget(allocations, budget_bytes - rest)
    assert chosen is not None
    found = {}
    for name, part in parts.items():
        found[name] = Allocation.of({weight: chosen.options[f"{name}/{weight}"] for weight in part.options})
    return found


def _require_enough(budget_bytes: int, least: int) -> None:
    """Raises UsageError where the smallest that there can be exceeds the budget."""
    if least > budget_bytes:
        raise UsageError(
            f"the smallest that these precisions make of it is {least / 1e6:.4g} MB, more than the budget of "
            f"{budget_bytes / 1e6:.4g} MB. Give a larger budget, or candidates of fewer bits."
        )


def least_bytes(
    item: PlanItem, candidates: Sequence[Precision], vendor: Backend, checkpoint: Checkpoint
) -> int:
    """What a component takes with each weight at the candidate that makes it smallest."""
    assert item.request is not None
    bits = item.request.recipe.floating.weight_bits
    module = outlined_module(checkpoint, item.request, vendor.graph_options(item.request))
    total = sum(parameter.numel() for parameter in module.parameters()) * bits // 8
    for _, weight in weights_of(module):
        floating = weight.numel() * bits // 8
        forms = (Form.saving(candidate, tuple(weight.shape)) for candidate in candidates)
        total -= floating - min((form.size_bytes for form in forms if form is not None), default=floating)
    return total


def _for_level(part: _Part, snr_db: float) -> Allocation:
    """The smallest allocation that measures at least ``snr_db``; tightened where errors add up otherwise."""
    wanted = limit = 10 ** (-snr_db / 10)
    while allocation := within_noise(part.frontier, limit):
        measured = part.measured(allocation.options)
        if measured <= wanted:
            return allocation
        if allocation.noise == 0:
            break
        limit = TIGHTER * min(limit * wanted / measured, allocation.noise)
    return part.uncompressed()


def level(noise: float) -> float:
    """Noise over signal as dB."""
    return math.inf if noise <= 0 else -10 * math.log10(noise)
