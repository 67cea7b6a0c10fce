"""What a pipeline has to know of a model beside its graphs: the files in a bundle's ``config/``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from mobile_o_export.digests import json_digest
from mobile_o_export.errors import BundleError
from mobile_o_export.members import Members
from mobile_o_export.pipelines.prompts import Templates
from mobile_o_export.pipelines.schedule import Schedule, SchedulerConfig, Step
from mobile_o_export.strict import Strict

DEFAULT_STEPS = 20
DEFAULT_GUIDANCE = 1.2
"""Both as the reference implementation runs the model; a checkpoint may say its own guidance."""

NUMBERS = "pipeline.json"
PREPROCESSING = "preprocessing.json"
TEMPLATES = "prompts.json"
SCHEDULER = "scheduler.json"

LISTED_STEPS = (4, 8, 12, 20)
"""Step counts whose numbers a bundle lists: the model's own, and fewer for slower devices."""


class PipelineNumbers(Strict):
    """``config/pipeline.json``: sizes and constants of the tasks."""

    guidance: float = DEFAULT_GUIDANCE
    steps: int = DEFAULT_STEPS
    vae_scaling_factor: float
    latent_shape: tuple[int, int, int, int]
    image_tokens: int
    conditioning_layers: int
    stop_token_ids: tuple[int, ...]
    pad_token_id: int | None
    guided_velocity: str = "unconditional + guidance * (conditional - unconditional)"
    unconditional: str = "the MCP applied to zeroed hidden states of the prompt's length"
    vae_input: str = "latent / vae_scaling_factor"
    pixels: str = "clip(image / 2 + 0.5, 0, 1)"


class Preprocessing(Strict):
    """``config/preprocessing.json``: from a picture to the vision encoder's image."""

    image_size: int
    square_first: bool
    orientation: str = "upright: the EXIF orientation is applied first"
    channels: str = "RGB; transparency is ignored, 16 bits keep their high byte"
    resize: str = "shortest edge to image_size, bicubic (a = -0.5, antialiased), the long edge rounded down"
    crop: str = "centre, image_size × image_size, offsets rounded down"
    rescale_factor: float = 1 / 255
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)


class SchedulerNumbers(Strict):
    """``config/scheduler.json``: the scheduler as numbers, and the configuration that they follow from."""

    update: tuple[str, ...] = (
        "denoised = latent - sigma * velocity",
        "latent = sample * latent + denoised_now * denoised + denoised_before * denoised of the step before",
    )
    schedules: dict[str, tuple[Step, ...]]
    config: SchedulerConfig

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
