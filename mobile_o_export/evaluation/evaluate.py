"""Evaluates a bundle's targets, and PyTorch beside them, on the same tasks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from mobile_o_export.bundle.manifest import (
    CONFIG_FOLDER,
    EVALUATION_FOLDER,
    DamagedBundleError,
    Manifest,
    damage,
    manifest_digest,
    read_manifest,
)
from mobile_o_export.bundle.runners import open_target, require_known, require_source
from mobile_o_export.errors import UsageError
from mobile_o_export.evaluation.judge import load_detector
from mobile_o_export.evaluation.judge import require_known as require_judgeable
from mobile_o_export.evaluation.record import RECORD, Evaluation, ModelRun, Settings
from mobile_o_export.evaluation.run import Protocol, copy_pictures, reusable, run_model
from mobile_o_export.evaluation.score import Scores, score
from mobile_o_export.evaluation.tasks import Tasks
from mobile_o_export.pipelines.pipeline import TORCH, Pipeline
from mobile_o_export.pipelines.schedule import require_steps
from mobile_o_export.pipelines.settings import PipelineNumbers
from mobile_o_export.pipelines.settings import Settings as PipelineSettings
from mobile_o_export.progress import Done, Progress
from mobile_o_export.tokenizer import Tokenizer

if TYPE_CHECKING:
    from mobile_o_export.checkpoint import Checkpoint


@dataclass(frozen=True)
class Request:
    """What to ask, and how; None is the bundle's or checkpoint's own.

    Attributes:
        prompts: JSONL of ``DrawingTask``.
        questions: JSONL of ``Question``.
        judge: name of a detector, see ``judge.load_detector``.
        limit: only so many of each.
        seed: of the first prompt.
    """

    prompts: Path | None = None
    questions: Path | None = None
    judge: str = "shapes"
    limit: int | None = None
    seed: int = 0
    steps: int | None = None
    guidance: float | None = None


@dataclass(frozen=True)
class Evaluated:
    """A finished evaluation: the record, and each model's scores; ``note`` says what they lack."""

    record: Evaluation
    scores: Mapping[str, Scores]
    note: str


def evaluate_models(
    bundle: Path | None,
    targets: list[str],
    checkpoint: Checkpoint | None,
    request: Request,
    folder: Path,
    progress: Progress,
) -> Evaluated:
    """Asks every chosen target of ``bundle``, and PyTorch, and writes what they did into ``folder``.

    PyTorch runs on ``checkpoint``; without one, what it did when the tasks were made is read from the bundle.

    Args:
        bundle: a bundle, or None for PyTorch alone.
        targets: names of its targets; all of them where none are named.
        checkpoint: what the bundle was made from, or None.
        request: what to ask.
        folder: an existing folder; gets ``evaluation.json`` and ``pictures/``.
        progress: told what happens.

    Raises:
        UsageError: the choice or the tasks make no sense.
        DamagedBundleError: a file of the bundle is missing or changed.
        GateError: a model computes NaN.
    """
    manifest = None if bundle is None else read_manifest(bundle)
    names = _names(bundle, manifest, targets, checkpoint)
    if bundle is not None and manifest is not None and (problems := damage(bundle, manifest)):
        raise DamagedBundleError(bundle, problems)
    own = (bundle or Path()) if checkpoint is None else checkpoint.path
    tasks = _tasks(own / EVALUATION_FOLDER, request, of_checkpoint=checkpoint is not None)
    protocol = _protocol(tasks, request, _own_numbers(bundle, checkpoint))
    settings = protocol.settings(_digest(manifest, checkpoint))
    models: dict[str, ModelRun] = {}
    note = ""
    if checkpoint is None:
        recorded, note = _recorded(own / EVALUATION_FOLDER / TORCH, settings, tasks, folder)
        models |= recorded
    for name in names:
        say = partial(progress, name, "")
        models[name] = run = run_model(_opener(bundle, manifest, checkpoint, name), protocol, folder, say)
        progress(name, "", Done(f"{len(run.drawings)} drawings, {len(run.answers)} answers"))
    digest = "" if bundle is None else manifest_digest(bundle)
    record = Evaluation(bundle=digest, settings=settings, models=models)
    record.write(folder)
    reference = models.get(TORCH)
    scores = {name: score(run, folder, reference, folder) for name, run in models.items()}
    return Evaluated(record, scores, note)


def _names(
    bundle: Path | None, manifest: Manifest | None, targets: list[str], checkpoint: Checkpoint | None
) -> list[str]:
    """The models to run, PyTorch first."""
    wanted = dict.fromkeys(name for name in targets if name != TORCH)
    if TORCH in targets and checkpoint is None:
        raise UsageError("--target torch runs a checkpoint in PyTorch; say which with --checkpoint CKPT.")
    torch = [] if checkpoint is None else [TORCH]
    if bundle is None or manifest is None:
        if wanted or checkpoint is None:
            raise UsageError("say which model: the folder of a bundle, or --target torch --checkpoint CKPT.")
        return torch
    for name in wanted:
        require_known(name, manifest.targets, "target", bundle)
    if checkpoint is not None:
        require_source(bundle, manifest, checkpoint.digest)
    return [*torch, *(wanted or ([] if targets else manifest.targets))]


def _digest(manifest: Manifest | None, checkpoint: Checkpoint | None) -> str:
    if manifest is not None:
        return manifest.checkpoint.digest
    assert checkpoint is not None
    return checkpoint.digest


def _tasks(own: Path, request: Request, *, of_checkpoint: bool) -> Tasks:
    """What ``request`` names, or the tasks in the folder ``own``, a bundle's or a checkpoint's."""
    prompts, questions = request.prompts, request.questions
    if prompts is None and questions is None:
        found = Tasks.own(own, links=of_checkpoint)
        if found is None:
            raise UsageError(
                "no tasks came with this model. Give --prompts FILE (JSONL: tag, prompt, include, exclude), "
                "--questions FILE (JSONL: image, question, answer), or both."
            )
        tasks = found
    else:
        tasks = Tasks.read(prompts, questions)
    cut = slice(request.limit)
    return replace(tasks, drawings=tasks.drawings[cut], questions=tasks.questions[cut])


def _protocol(tasks: Tasks, request: Request, own: PipelineNumbers) -> Protocol:
    detector = load_detector(request.judge)
    if detector is not None:
        require_judgeable(tasks.drawings, detector)
    steps = own.steps if request.steps is None else request.steps
    require_steps(steps)
    guidance = own.guidance if request.guidance is None else request.guidance
    return Protocol(tasks, detector, steps, guidance, request.seed)


def _own_numbers(bundle: Path | None, checkpoint: Checkpoint | None) -> PipelineNumbers:
    """The model's own steps and guidance."""
    if bundle is not None:
        return PipelineSettings.read(bundle / CONFIG_FOLDER).numbers
    from mobile_o_export.reference import settings

    assert checkpoint is not None
    return settings(checkpoint, Tokenizer(checkpoint.path)).numbers


def _recorded(place: Path, settings: Settings, tasks: Tasks, folder: Path) -> tuple[dict[str, ModelRun], str]:
    """What PyTorch did when the tasks were made, its pictures copied to ``folder``; or why it is not used."""
    if not (place / RECORD).exists():
        return {}, "Nothing of PyTorch's to compare with: give --checkpoint CKPT to run it too."
    run = reusable(Evaluation.read(place), TORCH, settings, tasks)
    if run is None:
        return {}, (
            "PyTorch's recorded run was of other tasks, seeds or steps: give --checkpoint CKPT to run it."
        )
    return {TORCH: copy_pictures(run, TORCH, place, folder)}, ""


def _opener(
    bundle: Path | None, manifest: Manifest | None, checkpoint: Checkpoint | None, name: str
) -> Callable[[], Pipeline]:
    """What opens the model ``name``; the bundle's files were hashed."""
    if name != TORCH:
        assert bundle is not None
        assert manifest is not None
        return partial(open_target, bundle, manifest, name)
    from mobile_o_export.reference import torch_pipeline

    assert checkpoint is not None
    return partial(torch_pipeline, checkpoint)
