"""``generate`` and ``edit``: a picture from the files of a bundle."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mobile_o_export.atomic import staged_file
from mobile_o_export.cli import screen
from mobile_o_export.cli.console import ProgressPrinter, seconds_by_stage
from mobile_o_export.cli.model import Bundle, CheckpointOption, JsonOutput, TargetName, Truncate, open_model
from mobile_o_export.cli.paths import expanded, require_output_file, require_replaceable
from mobile_o_export.errors import UsageError

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

    from mobile_o_export.pipelines.drawing import Drawing
    from mobile_o_export.pipelines.pipeline import Pipeline
    from mobile_o_export.progress import Say

FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
JPEG_QUALITY = 95

Out = Annotated[
    Path,
    typer.Option("--out", help="The picture's file: .png, .jpg or .webp.", metavar="FILE", callback=expanded),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the file if it is there.")]
Seed = Annotated[int, typer.Option("--seed", help="Of the initial latent; the same seed, the same picture.")]
Steps = Annotated[
    int | None, typer.Option("--steps", help="Denoising steps; the model's own by default.", metavar="N")
]
Guidance = Annotated[
    float | None,
    typer.Option("--guidance", help="Weight of the prompt; the model's own by default.", metavar="G"),
]


def generate(
    prompt: Annotated[str, typer.Option("--prompt", help="What to draw.")],
    out: Out,
    bundle: Bundle = None,
    target: TargetName = None,
    checkpoint: CheckpointOption = None,
    seed: Seed = 0,
    steps: Steps = None,
    guidance: Guidance = None,
    truncate: Truncate = False,
    overwrite: Overwrite = False,
    json_output: JsonOutput = False,
) -> None:
    """Draw a picture with a bundle's files.

    Every target draws the picture that PyTorch draws with the same seed, up to its precision.
    """
    _draw(
        "generate",
        bundle,
        target,
        checkpoint,
        lambda model: model.generate(prompt, seed=seed, steps=steps, guidance=guidance, truncate=truncate),
        {"prompt": prompt, "seed": seed},
        out,
        overwrite=overwrite,
        json_output=json_output,
    )


def edit(
    image: Annotated[
        Path, typer.Option("--image", help="The picture to change.", metavar="FILE", callback=expanded)
    ],
    prompt: Annotated[str, typer.Option("--prompt", help="How to change it.")],
    out: Out,
    bundle: Bundle = None,
    target: TargetName = None,
    checkpoint: CheckpointOption = None,
    seed: Seed = 0,
    steps: Steps = None,
    guidance: Guidance = None,
    truncate: Truncate = False,
    overwrite: Overwrite = False,
    json_output: JsonOutput = False,
) -> None:
    """Draw a picture anew, changed as the prompt says.

    Otherwise like generate.
    """
    _draw(
        "edit",
        bundle,
        target,
        checkpoint,
        lambda model: model.edit(image, prompt, seed=seed, steps=steps, guidance=guidance, truncate=truncate),
        {"picture": str(image), "prompt": prompt, "seed": seed},
        out,
        overwrite=overwrite,
        json_output=json_output,
    )


def _draw(
    task: str,
    bundle: Path | None,
    target: str | None,
    checkpoint: Path | None,
    drawn: Callable[[Pipeline], Drawing],
    asked: Mapping[str, str | int],
    out: Path,
    *,
    overwrite: bool,
    json_output: bool,
) -> None:
    """Opens the model, saves what ``drawn`` makes with it, and says so; ``asked`` is repeated in JSON."""
    require_place(out, bundle, overwrite)
    with ProgressPrinter() as progress:
        progress(task, "", "opening the model")
        with open_model(bundle, target, checkpoint, lambda phrase: progress(task, "", phrase)) as model:
            drawing = drawn(model)
        save_picture(drawing.picture, out, partial(progress.done, "disk", ""))
        progress.done(task, "", seconds_by_stage(drawing.seconds))
    if not json_output:
        screen.result(out)
        return
    content = {
        "schema": 1,
        "task": task,
        "target": model.target,
        "runtimes": dict(model.runtimes),
        "image": str(out),
        **asked,
        "prompt_tokens": drawing.prompt_tokens,
        "steps": len(drawing.latents),
        "guidance": drawing.guidance,
        "seconds": {**drawing.seconds, "total": sum(drawing.seconds.values())},
        "step_seconds": list(drawing.step_seconds),
    }
    screen.result_json(content)


def require_place(out: Path, bundle: Path | None, overwrite: bool) -> None:
    """Raises UsageError where the picture cannot be written, before any work."""
    if out.suffix.lower() not in FORMATS:
        raise UsageError(f"--out {out}: its name must end in {', '.join(FORMATS)}.")
    require_output_file("--out", out, bundle)
    require_replaceable("--out", out, overwrite)


def save_picture(picture: Picture, out: Path, say: Say) -> None:
    """Writes the picture in the format that the file's name says."""
    with staged_file(out, say) as place:
        picture.save(place, FORMATS[out.suffix.lower()], quality=JPEG_QUALITY)
