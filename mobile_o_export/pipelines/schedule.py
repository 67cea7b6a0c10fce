"""The scheduler as numbers: DPM-Solver++ on flow sigmas, each step three multiply-adds.

With the latent x and the DiT's velocity v at a step of noise level σ:

    denoised = x - σ · v
    x        = sample · x + denoised_now · denoised + denoised_before · (the step before's denoised)

The coefficients are those of DPM-Solver++(2M), midpoint form (Lu et al. 2022, arXiv 2211.01095, algorithm 2),
with α = 1 - σ and λ = ln α - ln σ, as diffusers' ``DPMSolverMultistepScheduler`` computes them; the first
step and the last, to σ = 0, are of first order. Computed from the float32 sigmas in decimal arithmetic and
rounded once: the numbers are the same to the last bit on every machine, whatever its mathematical library.
"""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Context, Decimal, localcontext
from itertools import pairwise
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mobile_o_export.errors import ConfigError, UsageError
from mobile_o_export.parity.metrics import Array
from mobile_o_export.strict import Finite, Strict

_EXACT = Context(prec=40)
"""More than twice the digits of a double; ``ln`` and ``exp`` are rounded correctly."""

MOST_STEPS = 250
"""Far beyond use; from 499 on two timesteps coincide, and diffusers then starts at the wrong one."""


class SchedulerConfig(BaseModel):
    """What of ``scheduler_config.json`` decides the numbers; diffusers' defaults where it is silent.

    The literals are the one form that three multiply-adds a step can express. Beyond the bounds the first
    noise level is 1 in float32, where λ is infinite.
    """

    model_config = ConfigDict(frozen=True, extra="ignore", populate_by_name=True)

    class_name: Literal["DPMSolverMultistepScheduler"] = Field(
        default="DPMSolverMultistepScheduler", alias="_class_name"
    )
    prediction_type: Literal["flow_prediction"]
    use_flow_sigmas: Literal[True]
    flow_shift: float = Field(default=1.0, ge=0.01, le=100)
    num_train_timesteps: int = Field(default=1000, ge=1000, le=100_000)
    algorithm_type: Literal["dpmsolver++"] = "dpmsolver++"
    solver_type: Literal["midpoint"] = "midpoint"
    solver_order: Literal[1, 2] = 2
    final_sigmas_type: Literal["zero"] = "zero"
    thresholding: Literal[False] = False
    use_dynamic_shifting: Literal[False] = False
    use_karras_sigmas: Literal[False] = False
    use_lu_lambdas: Literal[False] = False
    use_exponential_sigmas: Literal[False] = False
    use_beta_sigmas: Literal[False] = False

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> SchedulerConfig:
        """The relevant part of a diffusers scheduler configuration.

        Raises:
            ConfigError: it asks for something that cannot be written as multiply-adds.
        """
        try:
            return cls.model_validate(dict(config))
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            key = ".".join(str(part) for part in first["loc"])
            raise ConfigError(
                f"scheduler_config.json: {key} is {config.get(key)!r}: {first['msg']}. Only DPM-Solver++ of "
                "order 1 or 2 on flow sigmas can be exported; use the one that Mobile-O was trained with."
            ) from error


class Step(Strict):
    """One step: when the DiT is called, and the coefficients of the update.

    Attributes:
        timestep: what the DiT is given.
        sigma: the noise level σ of the latent that goes in.
        sample: coefficient of that latent.
        denoised_now: coefficient of this step's denoised latent.
        denoised_before: coefficient of the step before's; 0 where the step is of first order.
    """

    timestep: float = Field(ge=0, le=100_000)
    sigma: float = Field(gt=0, lt=1)
    sample: Finite
    denoised_now: Finite
    denoised_before: Finite


class Schedule:
    """A number of steps to integrate the flow in; ``Integrator`` runs one."""

    def __init__(self, steps: tuple[Step, ...]) -> None:
        self.steps = steps

    @classmethod
    def of(cls, config: SchedulerConfig, steps: int) -> Schedule:
        """The schedule of ``steps`` steps.

        Raises:
            UsageError: there are none, or too many.
        """
        require_steps(steps)
        spaced = np.flip(1.0 - np.linspace(1.0, 1.0 / config.num_train_timesteps, steps + 1))[:-1]
        shift = config.flow_shift
        noise = shift * spaced / (1.0 + (shift - 1.0) * spaced)
        timesteps = (noise * config.num_train_timesteps).astype(np.int64)
        sigmas = [float(sigma) for sigma in noise.astype(np.float32)] + [0.0]
        with localcontext(_EXACT):
            rises = [_log_ratio(low) - _log_ratio(high) for high, low in pairwise(sigmas)]
        return cls(
            tuple(
                Step(
                    timestep=float(timesteps[index]),
                    sigma=sigmas[index],
                    **_coefficients(
                        sigmas[index],
                        sigmas[index + 1],
                        rises[index],
                        rises[index - 1] if 0 < index < steps - 1 and config.solver_order == 2 else None,
                    ),
                )
                for index in range(steps)
            )
        )

    def start(self) -> Integrator:
        """A run from noise to image."""
        return Integrator(self)


class Integrator:
    """One run through a schedule; remembers the step before's denoised latent."""

    def __init__(self, schedule: Schedule) -> None:
        self._schedule = schedule
        self._before: Array | None = None
        self.timesteps: Array = np.array([step.timestep for step in schedule.steps], np.float32)

    def step(self, velocity: Array, index: int, latent: Array) -> Array:
        """The latent [1, C, Y, X] after step ``index``, float32."""
        numbers = self._schedule.steps[index]
        denoised = latent - np.float32(numbers.sigma) * velocity
        after = np.float32(numbers.sample) * latent + np.float32(numbers.denoised_now) * denoised
        if numbers.denoised_before:
            assert self._before is not None, "steps come in order"
            after = after + np.float32(numbers.denoised_before) * self._before
        self._before = denoised
        result: Array = after
        return result


def require_steps(steps: int) -> None:
    """Raises UsageError unless a schedule of ``steps`` steps makes sense."""
    if not 1 <= steps <= MOST_STEPS:
        raise UsageError(f"{steps} steps cannot be run. Choose 1 to {MOST_STEPS}.")


def _log_ratio(sigma: float) -> Decimal:
    """λ = ln α - ln σ."""
    if sigma == 0.0:
        return Decimal("Infinity")
    with localcontext(_EXACT):
        return (1 - Decimal(sigma)).ln() - Decimal(sigma).ln()


def _coefficients(
    sigma: float, following: float, rise: Decimal, rise_before: Decimal | None
) -> dict[str, float]:
    """The update from ``sigma`` to ``following``, where λ rises by ``rise`` and rose by ``rise_before``."""
    with localcontext(_EXACT):
        gain = (1 - Decimal(following)) * (1 - (-rise).exp())
        extrapolated = Decimal(0) if rise_before is None else gain * rise / rise_before / 2
        return {
            "sample": float(Decimal(following) / Decimal(sigma)),
            "denoised_now": float(gain + extrapolated),
            "denoised_before": 0.0 - float(extrapolated),
        }
