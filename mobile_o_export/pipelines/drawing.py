"""Text-to-image and editing: prompt → hidden states → conditioning → latents → image."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from time import monotonic
from typing import TYPE_CHECKING

from mobile_o_export.errors import UsageError
from mobile_o_export.parity.metrics import Array
from mobile_o_export.pipelines import tasks
from mobile_o_export.pipelines.noise import initial_latent
from mobile_o_export.pipelines.preprocessing import as_picture
from mobile_o_export.pipelines.prompts import Task
from mobile_o_export.pipelines.schedule import require_steps
from mobile_o_export.pipelines.settings import MOST_GUIDANCE
from mobile_o_export.pipelines.workbench import (
    DIT,
    LLM,
    MCP,
    VAE,
    VISION,
    ImageInput,
    Stopwatch,
    Workbench,
    checked_array,
)

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

COMPONENTS = (LLM, MCP, DIT, VAE)

SchedulerFactory = Callable[[int], tasks.Scheduler]
"""A scheduler of a number of steps."""


@dataclass(frozen=True)
class Brush:
    """How a picture is drawn.

    Attributes:
        seed: of the initial latent, as ``noise.initial_latent`` makes it.
        steps: of the scheduler; None for the model's own, 20.
        guidance: weight of the conditional branch; None for the model's own.
        truncate: cut a prompt that is too long at its end.
        latent: the initial latent [1, C, Y, X] itself, instead of a seed.
    """

    seed: int = 0
    steps: int | None = None
    guidance: float | None = None
    truncate: bool = False
    latent: Array | None = None


@dataclass(frozen=True)
class Drawing:
    """A drawn or edited picture, and everything on the way to it.

    Attributes:
        image: float32 [1, 3, O, O] as the VAE decodes it, nominally in -1..1.
        image_features: [1, N, D] of the picture that was edited, if one was.
        prompt_tokens: how long the prompt was, image tokens included.
        guidance: weight of the conditional branch.
        hidden_states: [1, K, S, D] of the prompt.
        conditioning: of both guidance branches, each [1, S, F].
        latents: [1, C, Y, X] after each step.
        seconds: by stage: ``loading``, then the components.
        step_seconds: of each step.
    """

    image: Array
    image_features: Array | None
    prompt_tokens: int
    guidance: float
    hidden_states: Array
    conditioning: tasks.Conditioning
    latents: tuple[Array, ...]
    seconds: dict[str, float]
    step_seconds: tuple[float, ...]

    @property
    def picture(self) -> Picture:
        """The picture, 8-bit RGB."""
        return as_picture(self.image)


def draw(
    bench: Workbench, scheduler: SchedulerFactory, text: str, image: ImageInput | None, brush: Brush
) -> Drawing:
    """Draws ``text``, or changes ``image`` as ``text`` says.

    Raises:
        UsageError: the prompt is empty or too long, a number is out of range, the image cannot be read, or a
            component is not there.
    """
    numbers = bench.settings.numbers
    steps = numbers.steps if brush.steps is None else brush.steps
    guidance = numbers.guidance if brush.guidance is None else brush.guidance
    require_steps(steps)
    if not abs(guidance) <= MOST_GUIDANCE:
        raise UsageError(
            f"the guidance {guidance} is not within ±{MOST_GUIDANCE:g}. The model's is {numbers.guidance}."
        )
    if brush.latent is None:
        latent = initial_latent(brush.seed, numbers.latent_shape)
    else:
        latent = checked_array("the latent", brush.latent, numbers.latent_shape)
    bench.require(*COMPONENTS, *(() if image is None else (VISION,)))
    prompt = bench.fitted_prompt(Task.GENERATE if image is None else Task.EDIT, text, brush.truncate)
    watch = Stopwatch()
    features = None if image is None else bench.encode(image, watch)

    with bench.open(LLM, watch) as llm, watch(LLM):
        bench.say(f"reading the prompt, {prompt.length} tokens")
        hidden = bench.begin_sequence(llm).read_prompt(prompt, features)["hidden_states"]
    with bench.open(MCP, watch) as mcp, watch(MCP):
        conditioning = tasks.project(mcp, hidden)

    latents, step_seconds = [], []
    with bench.open(DIT, watch) as dit, watch(DIT):
        started = monotonic()
        for after in tasks.denoise(
            dit,
            conditioning,
            latent,
            scheduler(steps),
            guidance,
            lambda index, branch: bench.say(f"step {index + 1} of {steps}, {branch}"),
        ):
            latents.append(after)
            step_seconds.append(monotonic() - started)
            started = monotonic()
    with bench.open(VAE, watch) as vae, watch(VAE):
        bench.say("decoding the image")
        decoded = tasks.decode_latent(vae, latents[-1], numbers.vae_scaling_factor)
    return Drawing(
        image=decoded,
        image_features=features,
        prompt_tokens=prompt.length,
        guidance=guidance,
        hidden_states=hidden,
        conditioning=conditioning,
        latents=tuple(latents),
        seconds=watch.seconds,
        step_seconds=tuple(step_seconds),
    )
