"""``compare``: the same prompts on every target, side by side."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
import typer

from mobile_o_export.cli import screen
from mobile_o_export.cli.console import ProgressPrinter
from mobile_o_export.cli.draw import Guidance, Out, Overwrite, Seed, Steps, require_place, save_picture
from mobile_o_export.cli.model import CheckpointBeside, TargetNames, open_model
from mobile_o_export.cli.paths import expanded

if TYPE_CHECKING:
    from mobile_o_export.pipelines.drawing import Drawing


def compare(
    bundle: Annotated[Path, typer.Argument(help="The bundle's folder.", metavar="BUNDLE", callback=expanded)],
    prompt: Annotated[list[str], typer.Option("--prompt", help="What to draw; may be repeated.")],
    out: Out,
    target: TargetNames = None,
    checkpoint: CheckpointBeside = None,
    seed: Seed = 0,
    steps: Steps = None,
    guidance: Guidance = None,
    overwrite: Overwrite = False,
) -> None:
    """Draw the same prompts on every target, side by side.

    Under each picture stands how near it is to the one in the first column.
    """
    require_place(out, bundle, overwrite)
    drawings: dict[str, list[Drawing]] = {}
    with ProgressPrinter() as progress:
        progress("compare", "", "opening the bundle")
        from mobile_o_export.bundle.manifest import read_manifest
        from mobile_o_export.parity.metrics import psnr_db
        from mobile_o_export.pipelines.pipeline import TORCH
        from mobile_o_export.pipelines.preprocessing import unit_image
        from mobile_o_export.pipelines.sheet import Cell, sheet

        names = ([] if checkpoint is None else [TORCH]) + (target or list(read_manifest(bundle).targets))
        for name in dict.fromkeys(names):
            say = partial(progress, name, "")
            with open_model(bundle, name, checkpoint if name == TORCH else None, say, keep=True) as model:
                drawings[name] = [
                    model.generate(text, seed=seed, steps=steps, guidance=guidance) for text in prompt
                ]
            progress.done(name, "", f"{len(prompt)} pictures" if len(prompt) > 1 else "a picture")
        first, *_ = drawings.values()

        def cell(drawing: Drawing, reference: Drawing) -> Cell:
            ours, theirs = unit_image(drawing.image), unit_image(reference.image)
            if drawing is reference:
                caption = ""
            elif np.array_equal(ours, theirs):
                caption = "the same picture"
            else:
                caption = f"PSNR {psnr_db(theirs, ours):.1f} dB"
            return Cell(drawing.picture, caption)

        rows = [
            (text, [cell(column[index], first[index]) for column in drawings.values()])
            for index, text in enumerate(prompt)
        ]
        save_picture(sheet(list(drawings), rows), out, partial(progress.done, "disk", ""))
    screen.result(out)
