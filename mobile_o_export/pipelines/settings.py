"""What a pipeline has to know of a model beside its graphs: the files in a bundle's ``config/``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from mobile_o_export.digests import json_digest
from mobile_o_export.errors import BundleError
from mobile_o_export.members import Members
from mobile_o_export.pipelines.noise import BLOCK
from mobile_o_export.pipelines.prompts import Templates
from mobile_o_export.pipelines.schedule import MOST_STEPS, Schedule, SchedulerConfig, Step
from mobile_o_export.strict import MOST_LAYERS, MOST_WIDTH, Finite, Strict
from mobile_o_export.tokenizer import LARGEST_ID

DEFAULT_STEPS = 20
DEFAULT_GUIDANCE = 1.2
"""Both as the reference implementation runs the model; a checkpoint may say its own guidance."""

NUMBERS = "pipeline.json"
PREPROCESSING = "preprocessing.json"
TEMPLATES = "prompts.json"
SCHEDULER = "scheduler.json"
SETTINGS = (NUMBERS, PREPROCESSING, TEMPLATES, SCHEDULER)
"""The files of ``config/``."""

MOST_GUIDANCE = 100.0
"""Far beyond use, and far from overflow."""

LISTED_STEPS = (4, 8, 12, 20)
"""Step counts whose numbers a bundle lists: the model's own, and fewer for slower devices."""


MOST_VALUES = 2**24
"""Of a latent: a picture of 16,384 pixels a side."""

_COUNTS = frozenset(map(str, range(1, MOST_STEPS + 1)))
_Side = Annotated[int, Field(ge=1, le=MOST_VALUES)]
_TokenId = Annotated[int, Field(ge=0, le=LARGEST_ID)]
_Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class PipelineNumbers(Strict):
    """``config/pipeline.json``: sizes and constants of the tasks."""

    guidance: float = Field(default=DEFAULT_GUIDANCE, ge=-MOST_GUIDANCE, le=MOST_GUIDANCE)
    steps: int = Field(default=DEFAULT_STEPS, ge=1, le=MOST_STEPS)
    vae_scaling_factor: float = Field(ge=1e-6, le=1e6)
    latent_shape: tuple[Literal[1], _Side, _Side, _Side]
    image_tokens: int = Field(ge=1, le=MOST_WIDTH)
    conditioning_layers: int = Field(ge=1, le=MOST_LAYERS + 1)
    stop_token_ids: tuple[_TokenId, ...]
    pad_token_id: _TokenId | None
    guided_velocity: str = "unconditional + guidance * (conditional - unconditional)"
    unconditional: str = "the MCP applied to zeroed hidden states of the prompt's length"
    vae_input: str = "latent / vae_scaling_factor"
    pixels: str = "clip(image / 2 + 0.5, 0, 1)"

    @model_validator(mode="after")
    def _can_begin(self) -> Self:
        values = prod(self.latent_shape)
        if not BLOCK <= values <= MOST_VALUES:
            raise ValueError(f"latent_shape holds {values} values, not {BLOCK} to {MOST_VALUES}")
        return self


class Preprocessing(Strict):
    """``config/preprocessing.json``: from a picture to the vision encoder's image."""

    image_size: int = Field(ge=1, le=8192)
    square_first: bool
    orientation: str = "upright: the EXIF orientation is applied first"
    channels: str = "RGB; transparency is ignored, 16 bits keep their high byte"
    resize: str = "shortest edge to image_size, bicubic (a = -0.5, antialiased), the long edge rounded down"
    crop: str = "centre, image_size × image_size, offsets rounded down"
    rescale_factor: Finite = 1 / 255
    mean: tuple[Finite, Finite, Finite] = (0.0, 0.0, 0.0)
    std: tuple[_Positive, _Positive, _Positive] = (1.0, 1.0, 1.0)


class SchedulerNumbers(Strict):
    """``config/scheduler.json``: the scheduler as numbers, and the configuration that they follow from."""

    update: tuple[str, ...] = (
        "denoised = latent - sigma * velocity",
        "latent = sample * latent + denoised_now * denoised + denoised_before * denoised of the step before",
    )
    schedules: dict[str, tuple[Step, ...]]
    config: SchedulerConfig

    @model_validator(mode="after")
    def _can_be_run(self) -> Self:
        for name, steps in self.schedules.items():
            if name not in _COUNTS:
                raise ValueError(f"schedules: {name[:20]!r} is not a number of steps from 1 to {MOST_STEPS}")
            if len(steps) != int(name):
                raise ValueError(f"schedules.{name}: has {len(steps)} steps")
            if steps[0].denoised_before:
                raise ValueError(f"schedules.{name}: its first step needs one before it")
        return self

    @classmethod
    def of(cls, diffusers: Mapping[str, Any]) -> Self:
        """The numbers of a diffusers scheduler configuration.

        Raises:
            ConfigError: it cannot be written as multiply-adds.
        """
        return cls.from_config(SchedulerConfig.of(diffusers))

    @classmethod
    def from_config(cls, config: SchedulerConfig) -> Self:
        """The numbers that follow from a configuration."""
        return cls(
            schedules={str(steps): Schedule.of(config, steps).steps for steps in LISTED_STEPS}, config=config
        )


@dataclass(frozen=True)
class Settings:
    """All of it."""

    numbers: PipelineNumbers
    preprocessing: Preprocessing
    templates: Templates
    scheduler: SchedulerNumbers

    @classmethod
    def read(cls, folder: Path) -> Self:
        """The settings in a bundle's ``config/``.

        Raises:
            BundleError: a file is missing or not of this version.
        """
        members = Members(folder, BundleError)
        return cls(
            numbers=members.json(NUMBERS, PipelineNumbers),
            preprocessing=members.json(PREPROCESSING, Preprocessing),
            templates=members.json(TEMPLATES, Templates),
            scheduler=members.json(SCHEDULER, SchedulerNumbers),
        )

    def write(self, folder: Path) -> None:
        """Writes them into the existing ``folder``."""
        for file, values in self._files().items():
            content = json.dumps(values.model_dump(mode="json"), indent=1, ensure_ascii=False)
            (folder / file).write_text(content + "\n", encoding="utf-8")

    def digests(self) -> dict[str, str]:
        """Of every file a digest of what it says; schedules follow from the scheduler's configuration."""
        return {
            file: json_digest(values.model_dump(mode="json", exclude={"schedules"}))
            for file, values in self._files().items()
        }

    def _files(self) -> dict[str, Strict]:
        """What is in each file of ``config/``."""
        return {
            NUMBERS: self.numbers,
            PREPROCESSING: self.preprocessing,
            TEMPLATES: self.templates,
            SCHEDULER: self.scheduler,
        }

    def schedule(self, steps: int) -> Schedule:
        """The schedule of ``steps`` steps: the listed one, or computed from the scheduler's configuration."""
        if listed := self.scheduler.schedules.get(str(steps)):
            return Schedule(listed)
        return Schedule.of(self.scheduler.config, steps)
