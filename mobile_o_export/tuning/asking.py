"""Sensitivities measured in processes of their own, on this machine or on others."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING

from mobile_o_export.backends.base import Backend, LowerRequest
from mobile_o_export.backends.registry import backend
from mobile_o_export.calibration import Calibration
from mobile_o_export.golden import Golden
from mobile_o_export.jobs import Job, Pool
from mobile_o_export.plan import LOADED_BYTES, PlanItem, plan
from mobile_o_export.precision import Precision
from mobile_o_export.progress import Say
from mobile_o_export.targets import Target
from mobile_o_export.tuning.sensitivity import Bench, Noise, Question, Sensitivities, answer

if TYPE_CHECKING:
    from mobile_o_export.checkpoint import Checkpoint

LEAST_QUESTIONS = 16
"""Of a job: loading a component and running it once, before any answer, take as long as some answers."""

MOST_JOBS = 64
"""Of a component."""


@dataclass(frozen=True)
class AskTask:
    """Questions about one component, for a process on any machine that has the files.

    Attributes:
        checkpoint: its folder.
        lora: the adapter's, if any.
        target: for whom.
        component: its name.
        candidates: all that are offered for it; by them it is calibrated or not.
        golden: the folder of the inputs.
        questions: what to answer.
        threads: PyTorch's; on other numbers of threads it adds up in another order.
    """

    checkpoint: Path
    lora: Path | None
    target: Target
    component: str
    candidates: tuple[Precision, ...]
    golden: Path
    questions: tuple[Question, ...]
    threads: int


def bench_of(
    request: LowerRequest,
    vendor: Backend,
    checkpoint: Checkpoint,
    golden: Golden,
    candidates: Sequence[Precision],
    calibration: Calibration,
    say: Say,
) -> Bench:
    """The component of ``request`` as its target computes it, calibrated where one of ``candidates`` asks."""
    calibrated = any(candidate.calibrated_bits for candidate in candidates)
    statistics = calibration.of(request.component.name, say) if calibrated else {}
    return Bench(request.component, checkpoint, vendor.graph_options(request), golden, statistics)


def answer_in_worker(task: AskTask, say: Say) -> list[Noise]:
    """The answers, in the order of the questions."""
    import torch

    from mobile_o_export.checkpoint import Checkpoint

    torch.set_num_threads(task.threads)
    checkpoint = Checkpoint.open(task.checkpoint, task.lora)
    golden = Golden.open(task.golden)
    # Planned as the whole target: components may need each other.
    (item,) = (item for item in plan(checkpoint, [task.target]) if item.component == task.component)
    assert item.request is not None
    calibration = Calibration(checkpoint, [golden])
    vendor = backend(task.target.backend)
    bench = bench_of(item.request, vendor, checkpoint, golden, task.candidates, calibration, say)
    found = []
    for index, question in enumerate(task.questions):
        say(f"{question.candidate} of a weight, {index + 1} of {len(task.questions)}")
        found.append(answer(bench, question))
    return found


def ask(
    questions: Sequence[Question],
    target: Target,
    item: PlanItem,
    checkpoint: Checkpoint,
    golden: Golden,
    candidates: Sequence[Precision],
    known: Sensitivities,
    say: Say,
    pool: Pool,
) -> None:
    """Has ``pool`` answer ``questions`` about the component of ``item``; the answers go to ``known``."""
    import torch

    own = checkpoint.component_tensors(item.component)
    elements = sum(tensor.parameters for tensor in own)
    left = len(questions)

    def done(asked: Sequence[Question], answers: Sequence[Noise]) -> None:
        nonlocal left
        for question, noise in zip(asked, answers, strict=True):
            known.add(question.key, item.component, question.weight, question.form.precision, noise)
        left -= len(asked)
        say(f"{left} of {len(questions)} sensitivities to be measured")

    def jobs() -> Iterator[Job[list[Noise]]]:
        size = max(LEAST_QUESTIONS, ceil(len(questions) / min(MOST_JOBS, 2 * pool.workers)))
        for start in range(0, len(questions), size):
            asked = tuple(questions[start : start + size])
            task = AskTask(
                checkpoint=checkpoint.path.resolve(),
                lora=None if checkpoint.lora is None else checkpoint.lora.path.resolve(),
                target=target,
                component=item.component,
                candidates=tuple(candidates),
                golden=golden.path.resolve(),
                questions=asked,
                threads=torch.get_num_threads(),
            )
            yield Job(
                name=f"{item.target}, {item.component}",
                # The module in fp32, and while one is compressed its largest weight some times over.
                memory_bytes=LOADED_BYTES + 4 * elements + 16 * max(one.parameters for one in own),
                here=partial(answer_in_worker, task, say),
                work=answer_in_worker,
                task=task,
                say=say,
                done=partial(done, asked),
            )

    pool.run(jobs())
