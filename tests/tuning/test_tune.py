"""Tuning a small checkpoint: goals are met as measured, recipes replay, nothing is measured twice."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mobile_o_export.backends.registry import backend
from mobile_o_export.calibration import PREPARED, Calibration
from mobile_o_export.checkpoint import Checkpoint
from mobile_o_export.components import building
from mobile_o_export.components.registry import COMPONENT_NAMES, component
from mobile_o_export.compression import check
from mobile_o_export.compression.compress import compress_module, round_inputs
from mobile_o_export.compression.form import Form
from mobile_o_export.compression.recipe import Recipe
from mobile_o_export.errors import GoldenError, UsageError
from mobile_o_export.golden import Golden
from mobile_o_export.jobs import Job, Pool
from mobile_o_export.plan import plan
from mobile_o_export.precision import Precision
from mobile_o_export.reference import TorchRunner
from mobile_o_export.targets import ComponentPlan, Target, load_target, load_targets, target_names
from mobile_o_export.tuning import sensitivity
from mobile_o_export.tuning.outcome import recipe_toml, write_outcome
from mobile_o_export.tuning.sensitivity import Bench, Sensitivities, measure_options, questions, worst
from mobile_o_export.tuning.tune import Goal, Tuned, least_bytes, level, offered, tune
from mobile_o_export.workers import Worker

CANDIDATES = tuple(Precision.parse(name) for name in ("w8", "w6_lut_g16", "w4_lut_g16"))
"""Palettes of 8 bits would be the usual first, and take most of the time."""
PARTS = ("mcp", "dit")


@pytest.fixture(scope="module")
def target() -> Target:
    return load_target("coreml-ane")


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tuning") / "sensitivities.jsonl"


def with_precision(target: Target, precision: Precision) -> Target:
    """The target with every weight at one precision, if it can be."""
    parts = dict.fromkeys(target.components, ComponentPlan(precision=precision))
    return target.model_copy(update={"components": parts})


def run(
    checkpoint: Checkpoint,
    target: Target,
    golden: Golden,
    cache: Path,
    goal: Goal,
    parts: tuple[str, ...] = PARTS,
) -> tuple[Tuned, ...]:
    return tune(checkpoint, target, parts, CANDIDATES, golden, goal, cache, lambda *_: None)


@pytest.mark.parametrize("wanted_db", [45.0, 30.0, 20.0])
def test_a_level_is_met_as_measured(
    reference_checkpoint: Checkpoint, target: Target, small_golden: Golden, cache: Path, wanted_db: float
) -> None:
    for tuned in run(reference_checkpoint, target, small_golden, cache, Goal(snr_db=wanted_db)):
        assert tuned.measured_db >= wanted_db
        # Errors of different weights nearly add up as powers.
        assert tuned.measured_db == pytest.approx(tuned.predicted_db, abs=4)


def test_a_budget_is_met_and_beats_one_precision_for_all(
    reference_checkpoint: Checkpoint, target: Target, small_golden: Golden, cache: Path
) -> None:
    uniform = run(reference_checkpoint, target, small_golden, cache, Goal(snr_db=30.0))
    budget = sum(
        size for tuned in uniform for precision, size, _ in tuned.uniform if precision == CANDIDATES[1]
    )
    found = run(reference_checkpoint, target, small_golden, cache, Goal(budget_bytes=budget))
    assert sum(tuned.size_bytes for tuned in found) <= budget

    def noise(levels: list[float]) -> float:
        return sum(10 ** (-level / 10) for level in levels)

    same = [level for tuned in uniform for precision, _, level in tuned.uniform if precision == CANDIDATES[1]]
    assert noise([tuned.measured_db for tuned in found]) <= 1.1 * noise(same)


def test_a_weight_that_makes_nan_of_an_output_is_the_worst_there_is(
    reference_checkpoint: Checkpoint, small_golden: Golden, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = Bench(component("mcp"), reference_checkpoint, PREPARED, small_golden, {})
    (weight, *_) = bench.weights.values()
    monkeypatch.setattr(weight, "data", torch.full_like(weight, torch.nan))
    assert level(worst(bench.noise())) < -200


def test_equal_weights_in_different_places_are_measured_each(
    reference_checkpoint: Checkpoint, small_golden: Golden, tmp_path: Path
) -> None:
    bench = Bench(component("dit"), reference_checkpoint, PREPARED, small_golden, {})
    same = [name for name in bench.weights if name.endswith(".attn1.to_q.weight")][:2]
    bench.weights = {name: bench.weights[name] for name in same}
    bench.weights[same[1]].data = bench.weights[same[0]].data.clone()
    asked = tuple(questions(bench, "dit", small_golden, CANDIDATES[2:]))
    options = measure_options(bench, "dit", Precision.FP16, asked, Sensitivities(tmp_path / "x"), print)
    one, other = ([option.noise for option in options[name]] for name in same)
    assert len(one) == len(other) == 2
    assert one != other


def test_a_form_that_no_export_would_let_pass_is_no_option(
    reference_checkpoint: Checkpoint,
    small_golden: Golden,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bench = Bench(component("mcp"), reference_checkpoint, PREPARED, small_golden, {})
    name = next(iter(bench.weights))
    bench.weights = {name: bench.weights[name]}
    monkeypatch.setattr(check, "INTEGER_MARGIN_DB", -10.0)
    known = Sensitivities(tmp_path / "x")
    candidates = [Precision.parse(name) for name in ("w8", "w6_lut_g16")]
    asked = tuple(questions(bench, "mcp", small_golden, candidates))
    for _ in ("measured", "known"):
        options = measure_options(bench, "mcp", Precision.FP16, asked, known, print)
        assert [str(option.precision) for option in options[name]] == ["fp16", "w6_lut_g16"]


@pytest.mark.slow
def test_other_processes_measure_the_same(
    reference_checkpoint: Checkpoint, target: Target, small_golden: Golden, tmp_path: Path
) -> None:
    alone, together = tmp_path / "alone.jsonl", tmp_path / "together.jsonl"
    goal = Goal(snr_db=40.0)
    asked = (reference_checkpoint, target, ("mcp",), CANDIDATES, small_golden, goal)
    said: list[str] = []
    started: list[Job[Any]] = []

    def start(job: Job[Any]) -> Worker[Any]:
        started.append(job)
        return Worker(job.work, job.task, job.say)

    one = tune(*asked, alone, lambda *_: None)
    other = tune(*asked, together, lambda *_: None, Pool(2, 2**40, said.append, start))
    assert one == other
    assert sorted(alone.read_text().splitlines()) == sorted(together.read_text().splitlines())
    questions = [question for job in started for question in job.task.questions]
    assert len(started) > 1
    assert len(questions) == len(alone.read_text().splitlines())
    # What is known is asked of nobody.
    started.clear()
    assert tune(*asked, together, lambda *_: None, Pool(2, 2**40, said.append, start)) == one
    assert (started, said) == ([], [])


def test_a_level_beyond_every_compression_leaves_floating_point(
    reference_checkpoint: Checkpoint, target: Target, small_golden: Golden, cache: Path
) -> None:
    (tuned,) = run(reference_checkpoint, target, small_golden, cache, Goal(snr_db=500.0), ("mcp",))
    assert tuned.precisions == {}
    assert tuned.measured_db == np.inf


def test_precisions_that_exclude_each_other_are_refused_before_anything_is_measured(
    reference_checkpoint: Checkpoint, small_golden: Golden, tmp_path: Path
) -> None:
    candidates = [Precision.parse(name) for name in ("w4_affine_b64", "w8_affine_b64")]
    app, goal, path = load_target("mobile-o-app"), Goal(snr_db=30.0), tmp_path / "x.jsonl"
    with pytest.raises(
        UsageError, match=r"llm: llm/ holds fp16 and affine integers of one kind.*--candidate"
    ):
        tune(reference_checkpoint, app, ["llm"], candidates, small_golden, goal, path, lambda *_: None)


def test_a_component_that_the_target_skips_is_not_tuned(
    reference_checkpoint: Checkpoint, target: Target, small_golden: Golden, tmp_path: Path
) -> None:
    left_out = ComponentPlan(skip="the app brings its own")
    skipping = target.model_copy(update={"components": {**target.components, "mcp": left_out}})
    with pytest.raises(UsageError, match="everything chosen is skipped: mcp: the app brings its own"):
        run(reference_checkpoint, skipping, small_golden, tmp_path / "x", Goal(snr_db=30.0), ("mcp",))


def test_a_budget_below_the_smallest_is_refused(
    reference_checkpoint: Checkpoint, target: Target, small_golden: Golden, cache: Path
) -> None:
    with pytest.raises(UsageError, match=r"the smallest that these precisions make of it is .* MB"):
        run(reference_checkpoint, target, small_golden, cache, Goal(budget_bytes=1000))


def test_a_budget_that_arithmetic_refuses_is_refused_before_anything_is_measured(
    reference_checkpoint: Checkpoint, target: Target, small_golden: Golden, tmp_path: Path
) -> None:
    (item,) = plan(reference_checkpoint, [target], ["mcp"])
    vendor = backend(target.backend)
    least = least_bytes(item, CANDIDATES, vendor, reference_checkpoint)
    (smallest,) = (
        plan(reference_checkpoint, [with_precision(target, p)], ["mcp"])[0] for p in CANDIDATES[-1:]
    )
    # The recipe's own: every weight that can be at 4 bits is.
    assert least == pytest.approx(smallest.size_bytes, rel=0.02)
    path = tmp_path / "sensitivities.jsonl"
    with pytest.raises(UsageError, match=r"the smallest .* is [\d.]+ MB, more than the budget of"):
        run(reference_checkpoint, target, small_golden, path, Goal(budget_bytes=least - 1), ("mcp",))
    assert not path.exists()
    (found,) = run(reference_checkpoint, target, small_golden, path, Goal(budget_bytes=least), ("mcp",))
    assert found.size_bytes == least


def test_nothing_is_measured_twice_and_an_interrupted_run_goes_on(
    reference_checkpoint: Checkpoint,
    target: Target,
    small_golden: Golden,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = tmp_path / "sensitivities.jsonl"
    first = run(reference_checkpoint, target, small_golden, path, Goal(snr_db=30.0), ("mcp",))
    lines = path.read_text().splitlines()
    path.write_text("\n".join(lines[:5]) + "\n" + lines[5][:20])  # killed while it wrote
    again = run(reference_checkpoint, target, small_golden, path, Goal(snr_db=30.0), ("mcp",))
    assert again == first
    count = len(path.read_text().splitlines())

    def refuse(*_: object) -> None:
        raise AssertionError("measured again")

    monkeypatch.setattr(sensitivity.Sensitivities, "add", refuse)
    assert run(reference_checkpoint, target, small_golden, path, Goal(snr_db=30.0), ("mcp",)) == first
    assert len(path.read_text().splitlines()) == count


def test_the_recipe_gives_every_weight_its_precision_again(
    reference_checkpoint: Checkpoint, target: Target, small_golden: Golden, cache: Path, tmp_path: Path
) -> None:
    found = run(reference_checkpoint, target, small_golden, cache, Goal(snr_db=30.0))
    path = tmp_path / "recipe.toml"
    path.write_text(recipe_toml(found, target.name, "--min-snr 30"))
    assert set(tomllib.loads(path.read_text())["components"]) == set(PARTS)
    items = plan(reference_checkpoint, load_targets([target.name], (), path), PARTS)
    for item, tuned in zip(items, found, strict=True):
        assert not item.refusal
        assert {name: form.precision.weight_bits for name, form in item.forms.items()} == {
            name: precision.weight_bits for name, precision in tuned.precisions.items()
        }
        assert item.size_bytes == pytest.approx(tuned.size_bytes, rel=0.02)


def test_integer_activations_are_part_of_what_is_measured(
    reference_checkpoint: Checkpoint, small_golden: Golden
) -> None:
    part = component("mcp")
    statistics = Calibration(reference_checkpoint, [small_golden]).of("mcp", lambda _: None)
    bench = Bench(part, reference_checkpoint, PREPARED, small_golden, statistics)

    def noise(precision: str) -> float:
        chosen = Precision.parse(precision)
        shapes = {name: tuple(weight.shape) for name, weight in bench.weights.items()}
        forms = {name: Form.of(chosen, shape) for name, shape in shapes.items() if Form.exists(chosen, shape)}
        with bench.swapped(forms):
            return worst(bench.noise())

    alone = noise("w8")
    assert noise("w8a8") > 1.2 * alone
    assert noise("w8_dyn") > 1.2 * alone
    assert noise("w8a16") == pytest.approx(alone, rel=0.01)
    assert worst(bench.noise()) == 0.0

    # As it is lowered: compressed where it is, calibrated inputs rounded.
    module = building.prepare(part, part.load(reference_checkpoint), PREPARED)
    wanted = Recipe(floating=Precision.FP16, default=Precision.parse("w8a8"))
    round_inputs(module, compress_module(module, wanted, "mcp", statistics=statistics))
    lowered = TorchRunner(part.reference(module, reference_checkpoint))
    powers = []
    for case in small_golden.cases("mcp"):
        outputs = lowered.run("project", small_golden.inputs(case.steps[0]))
        golden = small_golden.tensor(case.steps[0].outputs["conditioning"])
        powers.append(np.square(outputs["conditioning"] - golden).sum() / np.square(golden).sum())
    assert noise("w8a8") == pytest.approx(max(powers), rel=0.005)


def test_a_component_is_tuned_though_another_is_refused(
    reference_checkpoint: Checkpoint, small_golden: Golden, tmp_path: Path
) -> None:
    target = load_target("mobile-o-app")
    wrong = target.components["llm"].model_copy(update={"precision": Precision.parse("w4_affine_b16")})
    refused = target.model_copy(update={"components": {**target.components, "llm": wrong}})
    goal = Goal(snr_db=30.0)

    def tuned(*names: str) -> list[str]:
        found = tune(
            reference_checkpoint,
            refused,
            names,
            (),
            small_golden,
            goal,
            tmp_path / "x.jsonl",
            lambda *_: None,
        )
        return [part.component for part in found]

    assert tuned("mcp") == ["mcp"]
    with pytest.raises(UsageError, match=r"llm: MLX has groups of 32, 64, 128 weights, not of 16"):
        tuned()


def test_numbers_and_chart_lie_beside_the_recipe(
    reference_checkpoint: Checkpoint, target: Target, small_golden: Golden, cache: Path, tmp_path: Path
) -> None:
    found = run(reference_checkpoint, target, small_golden, cache, Goal(snr_db=30.0))
    write_outcome(found, target.name, "--min-snr 30", tmp_path / "recipe.toml")
    content = json.loads((tmp_path / "recipe.json").read_text())
    for tuned in found:
        entry = content["components"][tuned.component]
        sizes = [size for size, _ in entry["frontier"]]
        assert sizes == sorted(sizes, reverse=True)
        assert [point["precision"] for point in entry["uniform"]] == [str(c) for c in CANDIDATES]
        levels = [point["measured_db"] for point in entry["uniform"]]
        assert levels == sorted(levels, reverse=True)
    with Image.open(tmp_path / "recipe.png") as image:
        assert image.width > 800
        assert len(image.convert("RGB").getcolors(100_000) or ()) > 5


def test_candidates_that_the_backend_lacks_are_refused(
    reference_checkpoint: Checkpoint, small_golden: Golden, tmp_path: Path
) -> None:
    for name, wrong, why in (
        ("litert-cpu", "w4_lut_g16", "litert does not do w4_lut_g16; it does "),
        ("coreml-ane", "fp16", "floating point is always there"),
    ):
        with pytest.raises(UsageError, match=rf"{wrong} is no candidate: {why}"):
            tune(
                reference_checkpoint,
                load_target(name),
                PARTS,
                [Precision.parse(wrong)],
                small_golden,
                Goal(snr_db=30.0),
                tmp_path / "x.jsonl",
                lambda *_: None,
            )


def test_what_is_offered_is_what_the_backend_does_for_the_component(
    reference_checkpoint: Checkpoint, small_golden: Golden, tmp_path: Path
) -> None:
    app = load_target("mobile-o-app")
    (tuned,) = tune(
        reference_checkpoint,
        app,
        ["mcp"],
        (),
        small_golden,
        Goal(snr_db=30.0),
        tmp_path / "x.jsonl",
        lambda *_: None,
    )
    names = [str(precision) for precision, _, _ in tuned.uniform]
    assert names == ["w8_lut_g16", "w6_lut_g16", "w4_lut_g16"]
    assert Precision.parse("w4_affine_b64") in app.candidates


@pytest.mark.parametrize("name", target_names())
def test_each_shipped_candidate_is_one_for_some_component(
    reference_checkpoint: Checkpoint, name: str
) -> None:
    target = load_target(name)
    items = plan(reference_checkpoint, [target])
    found = offered(items, COMPONENT_NAMES, target.candidates, backend(target.backend), reference_checkpoint)
    assert [item.component for item, _ in found] == list(COMPONENT_NAMES)
    assert all(own for _, own in found)


def test_a_target_without_candidates_asks_for_one(
    reference_checkpoint: Checkpoint, target: Target, small_golden: Golden, tmp_path: Path
) -> None:
    silent = target.model_copy(update={"candidates": ()})
    with pytest.raises(UsageError, match="Give --candidate P"):
        tune(
            reference_checkpoint,
            silent,
            PARTS,
            (),
            small_golden,
            Goal(snr_db=30.0),
            tmp_path / "x.jsonl",
            lambda *_: None,
        )


def test_a_golden_of_another_checkpoint_is_refused(
    reference_checkpoint: Checkpoint, target: Target, small_golden: Golden, tmp_path: Path
) -> None:
    other = Golden(
        small_golden.path, small_golden.index.model_copy(update={"checkpoint": "sha256:" + "0" * 64})
    )
    with pytest.raises(GoldenError, match="another checkpoint"):
        run(reference_checkpoint, target, other, tmp_path / "x.jsonl", Goal(snr_db=30.0))
