"""The scheduler as numbers against diffusers' own, and what cannot be written as numbers is refused."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mobile_o_export.checkpoint import Checkpoint
from mobile_o_export.errors import ConfigError, UsageError
from mobile_o_export.pipelines.schedule import MOST_STEPS, Schedule, SchedulerConfig
from mobile_o_export.pipelines.settings import LISTED_STEPS, Settings
from mobile_o_export.reference import DiffusersScheduler

SHAPE = (1, 4, 8, 8)
STEPS = (1, 2, 4, 8, 12, 14, 15, 20, 50, 250)
"""The model's own, those that bundles list, and both sides of 15, where diffusers lowers the last orders."""

FLOW = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0}


@pytest.fixture(scope="module")
def published(reference_checkpoint: Checkpoint) -> dict[str, Any]:
    return dict(reference_checkpoint.config.diffusion.scheduler)


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("steps", STEPS)
def test_it_integrates_as_diffusers_does(published: dict[str, Any], steps: int, order: int) -> None:
    config = {**published, "solver_order": order}
    diffusers = DiffusersScheduler(config, steps)
    ours = Schedule.of(SchedulerConfig.of(config), steps).start()
    assert ours.timesteps.dtype == np.float32
    assert ours.timesteps.tolist() == diffusers.timesteps.tolist()
    generator = np.random.default_rng(steps)
    expected = actual = generator.standard_normal(SHAPE, np.float32)
    for index in range(steps):
        velocity = generator.standard_normal(SHAPE, np.float32)
        expected, actual = diffusers.step(velocity, index, expected), ours.step(velocity, index, actual)
        assert (actual.dtype, actual.shape) == (np.float32, SHAPE)
        assert np.linalg.norm(actual - expected) <= 1e-5 * np.linalg.norm(expected), index


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("shift", [1.0, 3.0, 0.5])
def test_it_calls_the_model_where_diffusers_does(steps: int, shift: float) -> None:
    config = {**FLOW, "flow_shift": shift}
    diffusers = DiffusersScheduler(config, steps)
    numbers = Schedule.of(SchedulerConfig.of(config), steps).steps
    assert [step.timestep for step in numbers] == diffusers.timesteps.tolist()
    assert [step.sigma for step in numbers] == diffusers.sigmas[:-1].tolist()


def test_two_runs_of_one_schedule_are_apart(model_settings: Settings) -> None:
    """An integrator remembers its own run only."""
    schedule = model_settings.schedule(4)
    velocities = np.random.default_rng(0).standard_normal((4, *SHAPE), np.float32)

    def run(latent: np.ndarray) -> np.ndarray:
        integrator = schedule.start()
        for index, velocity in enumerate(velocities):
            latent = integrator.step(velocity, index, latent)
        return latent

    first = run(np.ones(SHAPE, np.float32))
    run(np.zeros(SHAPE, np.float32))
    assert np.array_equal(run(np.ones(SHAPE, np.float32)), first)


def test_listed_numbers_are_the_computed_ones(model_settings: Settings) -> None:
    assert list(model_settings.scheduler.schedules) == [str(steps) for steps in LISTED_STEPS]
    for steps in LISTED_STEPS:
        listed = model_settings.scheduler.schedules[str(steps)]
        assert listed == Schedule.of(model_settings.scheduler.config, steps).steps
        assert listed == model_settings.schedule(steps).steps


def test_the_model_s_own_step_count_is_listed(model_settings: Settings) -> None:
    assert model_settings.numbers.steps in LISTED_STEPS


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("steps", STEPS)
def test_the_first_and_the_last_step_are_of_first_order(steps: int, order: int) -> None:
    numbers = Schedule.of(SchedulerConfig.of({**FLOW, "solver_order": order}), steps).steps
    assert len(numbers) == steps
    higher = [index for index, step in enumerate(numbers) if step.denoised_before != 0.0]
    assert higher == ([] if order == 1 else list(range(1, steps - 1)))


@pytest.mark.parametrize("steps", STEPS)
def test_the_last_step_gives_the_denoised_latent(steps: int) -> None:
    last = Schedule.of(SchedulerConfig.of(FLOW), steps).steps[-1]
    assert (last.sample, last.denoised_now, last.denoised_before) == (0.0, 1.0, 0.0)


@pytest.mark.parametrize("steps", STEPS)
def test_zero_has_no_sign(steps: int) -> None:
    """-0.0 prints as such; a reader that compares texts would take it for another number."""
    for step in Schedule.of(SchedulerConfig.of(FLOW), steps).steps:
        zeros = [value for value in step.model_dump().values() if value == 0.0]
        assert [math.copysign(1.0, zero) for zero in zeros] == [1.0] * len(zeros)


@pytest.mark.parametrize(
    "change",
    [
        {"prediction_type": "epsilon"},
        {"prediction_type": "v_prediction"},
        {"prediction_type": "sample"},
        {"prediction_type": None},
        {"use_flow_sigmas": False},
        {"algorithm_type": "dpmsolver"},
        {"algorithm_type": "sde-dpmsolver"},
        {"algorithm_type": "sde-dpmsolver++"},
        {"solver_type": "heun"},
        {"solver_order": 3},
        {"solver_order": 0},
        {"final_sigmas_type": "sigma_min"},
        {"thresholding": True},
        {"use_dynamic_shifting": True},
        {"use_karras_sigmas": True},
        {"use_lu_lambdas": True},
        {"use_exponential_sigmas": True},
        {"use_beta_sigmas": True},
        {"flow_shift": 0.0},
        {"flow_shift": -3.0},
        {"flow_shift": math.inf},
        {"flow_shift": math.nan},
        {"flow_shift": "three"},
        {"flow_shift": 1e9},
        {"flow_shift": 1e-9},
        {"num_train_timesteps": 2**31},
        {"num_train_timesteps": 1},
        {"num_train_timesteps": None},
    ],
    ids=lambda change: "-".join(f"{key}={value}" for key, value in change.items()),
)
def test_what_is_no_multiply_add_is_refused(published: dict[str, Any], change: dict[str, Any]) -> None:
    ((key, value),) = change.items()
    with pytest.raises(ConfigError, match=rf"^scheduler_config\.json: {key} is ") as refusal:
        SchedulerConfig.of({**published, **change})
    assert repr(value) in str(refusal.value)
    assert "Only DPM-Solver++ of order 1 or 2 on flow sigmas can be exported" in str(refusal.value)


@pytest.mark.parametrize("key", ["prediction_type", "use_flow_sigmas"])
def test_what_diffusers_would_take_for_another_model_has_to_be_said(
    published: dict[str, Any], key: str
) -> None:
    """diffusers' default for both is another process altogether."""
    silent = {name: value for name, value in published.items() if name != key}
    assert len(silent) == len(published) - 1
    with pytest.raises(ConfigError, match=rf"^scheduler_config\.json: {key} is None"):
        SchedulerConfig.of(silent)


def test_another_class_of_scheduler_is_refused(published: dict[str, Any]) -> None:
    """The single-step solver has the same settings as the multistep one."""
    with pytest.raises(ConfigError, match="_class_name"):
        SchedulerConfig.of({**published, "_class_name": "DPMSolverSinglestepScheduler"})


@pytest.mark.parametrize("steps", [0, -1, MOST_STEPS + 1, 10**9])
def test_step_counts_that_make_no_sense_are_refused(model_settings: Settings, steps: int) -> None:
    message = rf"^{steps} steps cannot be run\. Choose 1 to 250\.$"
    with pytest.raises(UsageError, match=message):
        Schedule.of(model_settings.scheduler.config, steps)
    with pytest.raises(UsageError, match=message):
        model_settings.schedule(steps)


def no_number(name: str) -> None:
    raise AssertionError(f"{name} is no JSON")


def numbers_in(value: Any) -> Iterator[float]:
    if isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from numbers_in(item)
    elif isinstance(value, float):
        yield value


def test_what_is_written_is_strict_json_and_reads_back(model_settings: Settings, tmp_path: Path) -> None:
    """The checkpoint's own file holds -Infinity, which most readers of JSON refuse."""
    model_settings.write(tmp_path)
    files = sorted(tmp_path.iterdir())
    names = ["pipeline.json", "preprocessing.json", "prompts.json", "scheduler.json"]
    assert [path.name for path in files] == names
    for path in files:
        content = json.loads(path.read_text(encoding="utf-8"), parse_constant=no_number)
        zeros = [number for number in numbers_in(content) if number == 0.0]
        assert [math.copysign(1.0, zero) for zero in zeros] == [1.0] * len(zeros)
    assert Settings.read(tmp_path) == model_settings
