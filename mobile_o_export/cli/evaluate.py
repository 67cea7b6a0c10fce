"""``evaluate``: does a bundle still do the tasks, as well as PyTorch does?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mobile_o_export.atomic import staged_folder
from mobile_o_export.cli import screen
from mobile_o_export.cli.console import ProgressPrinter, table
from mobile_o_export.cli.draw import Guidance, Steps
from mobile_o_export.cli.model import Bundle, CheckpointBeside, TargetNames
from mobile_o_export.cli.paths import expanded, require_outside_bundle
from mobile_o_export.errors import GateError

if TYPE_CHECKING:
    from mobile_o_export.evaluation.evaluate import Evaluated
    from mobile_o_export.evaluation.score import Difference, Proportion, Scores
    from mobile_o_export.progress import Say

ROOM_BYTES = 100_000_000
"""Asked of the disk for the pictures; 200 of 512 × 512 pixels are about 60 MB."""


def evaluate(
    bundle: Bundle = None,
    target: TargetNames = None,
    checkpoint: CheckpointBeside = None,
    prompts: Annotated[
        Path | None,
        typer.Option(
            "--prompts",
            help="JSONL: tag, prompt, include, exclude, as GenEval's.",
            metavar="FILE",
            callback=expanded,
        ),
    ] = None,
    questions: Annotated[
        Path | None,
        typer.Option(
            "--questions", help="JSONL: image, question, answer.", metavar="FILE", callback=expanded
        ),
    ] = None,
    judge: Annotated[
        str,
        typer.Option(
            "--judge",
            help="What finds objects in drawings: 'shapes', 'none', or module:attribute of a detector.",
            metavar="NAME",
        ),
    ] = "shapes",
    limit: Annotated[
        int | None,
        typer.Option("--limit", help="Only the first N prompts and questions.", min=1, metavar="N"),
    ] = None,
    seed: Annotated[
        int, typer.Option("--seed", help="Of the first prompt; the next one's is one higher.", min=0)
    ] = 0,
    steps: Steps = None,
    guidance: Guidance = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            help="Keep pictures and answers in this new folder, for 'report --evaluation'.",
            metavar="FOLDER",
            callback=expanded,
        ),
    ] = None,
    json_output: Annotated[bool, typer.Option("--json", help="Print scores as JSON, schema 1.")] = False,
) -> None:
    """Score drawings and answers next to PyTorch's.

    Tasks are the bundle's own, or --prompts and --questions; seeds are the same for every model. A rule-based
    judge says whether a drawing shows what was asked; answers have to be the expected words. Every rate has
    its 95 % confidence interval, and so has its difference from PyTorch's.

    Exit code 1 when a target does worse than PyTorch by more than chance would have it.
    """
    with ProgressPrinter() as progress:
        progress("evaluate", "", "reading the tasks")
        from mobile_o_export.checkpoint import Checkpoint
        from mobile_o_export.evaluation.evaluate import Request, evaluate_models

        if out is not None and bundle is not None:
            require_outside_bundle("--out", out, bundle)
        request = Request(prompts, questions, judge, limit, seed, steps, guidance)
        opened = None if checkpoint is None else Checkpoint.open(checkpoint)
        with _folder(out, partial(progress.done, "disk", "")) as folder:
            found = evaluate_models(bundle, target or [], opened, request, folder, progress)
    if json_output:
        screen.result_json(_json(found))
    else:
        screen.result(_tables(found.scores))
        if found.note:
            screen.result(f"\n{found.note}")
    if worse := [name for name, scores in found.scores.items() if _is_worse(scores)]:
        raise GateError(
            f"{', '.join(worse)}: does worse than PyTorch by more than chance. Do not ship it; "
            "'mobile-o-export verify --pipeline' says where it drifts."
        )


@contextmanager
def _folder(out: Path | None, say: Say) -> Iterator[Path]:
    """The new folder ``out``, or one that is thrown away."""
    if out is None:
        with TemporaryDirectory(prefix="mobile-o-evaluation-") as place:
            yield Path(place)
    else:
        with staged_folder(out, ROOM_BYTES, say) as folder:
            yield folder


def _is_worse(scores: Scores) -> bool:
    """Whether an interval lies below zero."""
    differences = (scores.drawn_difference, scores.exact_difference)
    return any(difference is not None and difference.high < 0 for difference in differences)


def _json(found: Evaluated) -> dict[str, Any]:
    """The scores with their settings; rates are 0..1, levels dB."""
    return {
        "schema": 1,
        "settings": found.record.settings.model_dump(mode="json"),
        "models": {
            name: {
                "runtimes": found.record.models[name].runtimes,
                "seconds": found.record.models[name].seconds,
                **scores.model_dump(mode="json"),
            }
            for name, scores in found.scores.items()
        },
        "note": found.note,
    }


def _tables(scores: Mapping[str, Scores]) -> str:
    """Drawings, then answers, a line a model."""
    tables = []
    if any(found.drawn or found.psnr for found in scores.values()):
        lines = [
            [
                name,
                *_rate(found.drawn),
                _against(found.drawn_difference),
                "-" if found.psnr is None else f"{found.psnr.mean:.1f} dB, least {found.psnr.least:.1f}",
            ]
            for name, found in scores.items()
        ]
        tables.append(
            table(["drawings", "right", "", "95 %", "against torch", "PSNR to torch's"], lines, right=(1, 2))
        )
        tags = list(dict.fromkeys(tag for found in scores.values() for tag in found.by_tag))
        if tags:
            lines = [
                [name, *(_short(found.by_tag.get(tag)) for tag in tags)] for name, found in scores.items()
            ]
            tables.append(table(["right", *tags], lines, right=range(1, len(tags) + 1)))
    if any(found.exact for found in scores.values()):
        lines = [
            [name, *_rate(found.exact), _against(found.exact_difference), _short(found.agreement)]
            for name, found in scores.items()
        ]
        tables.append(
            table(
                ["answers", "exact", "", "95 %", "against torch", "the same as torch's"],
                lines,
                right=(1, 2, 5),
            )
        )
    return "\n\n".join(tables)


def _rate(found: Proportion | None) -> tuple[str, str, str]:
    if found is None:
        return "-", "-", "-"
    interval = f"{100 * found.low:.1f} to {100 * found.high:.1f}"
    return f"{found.passed}/{found.of}", f"{100 * found.rate:.1f} %", interval


def _short(found: Proportion | None) -> str:
    return "-" if found is None else f"{found.passed}/{found.of}"


def _against(found: Difference | None) -> str:
    if found is None:
        return "-"
    word = "within noise" if found.within_noise else ("better" if found.low > 0 else "worse")
    points = f"{100 * found.value:+.1f} points" if found.gained or found.lost else "the same tasks"
    return f"{points}, {word} ({100 * found.low:+.1f} to {100 * found.high:+.1f})"
