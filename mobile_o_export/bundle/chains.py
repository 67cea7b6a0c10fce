"""Runs whole chains on a bundle's files, from fixed inputs, and judges every stage."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from pathlib import Path

from mobile_o_export.bundle.manifest import Manifest
from mobile_o_export.bundle.runners import open_target
from mobile_o_export.errors import ExportError, MissingToolError, PromptTooLongError
from mobile_o_export.golden import AnswerChain, DrawingChain, Golden
from mobile_o_export.parity.chain import CHAIN, ChainJudge
from mobile_o_export.parity.gates import ChainGate
from mobile_o_export.parity.judge import NO_RUNTIME, Row, Status
from mobile_o_export.pipelines import conversation
from mobile_o_export.pipelines.answering import Answer
from mobile_o_export.pipelines.drawing import COMPONENTS as DRAWING_COMPONENTS
from mobile_o_export.pipelines.drawing import Drawing
from mobile_o_export.pipelines.pipeline import Pipeline
from mobile_o_export.pipelines.preprocessing import unit_image
from mobile_o_export.pipelines.prompts import Task
from mobile_o_export.pipelines.workbench import VISION
from mobile_o_export.progress import Progress, Say

NO_CHAIN = "no golden chain of this task fits this target; record a golden on a shorter prompt (--prompts)"

Chain = DrawingChain | AnswerChain

Keep = Callable[[str, Chain, Drawing | Answer], None]
"""Takes what a target made of a chain."""


def _forget(_target: str, _chain: Chain, _result: Drawing | Answer) -> None:
    """Keeps nothing."""


def chains_over(golden: Golden, components: Collection[str]) -> list[Chain]:
    """The golden's chains that need none but ``components``."""
    chains: list[Chain] = [*golden.index.answers, *golden.index.drawings]
    return [chain for chain in chains if set(_needed(chain)) <= set(components)]


def verify_chains(
    folder: Path,
    manifest: Manifest,
    golden: Golden,
    target: str,
    progress: Progress,
    keep: Keep = _forget,
) -> list[Row]:
    """The verdict on every stage of every chain that ``target`` has the components of; none if it has none.

    A prompt beyond the target's own limit is no chain of this target; but some chain of each task has to run.
    ``keep`` is given what every chain came to.
    """
    entry = manifest.targets[target]
    chains = chains_over(golden, entry.exported)
    if not chains:
        return []
    assert entry.chain_gate is not None

    def opened(say: Say) -> Pipeline:
        # What a chain loads is given back before the next: a real model is several times its largest part.
        return open_target(folder, manifest, target, keep=False, say=say)

    return judge_chains(opened, golden, chains, target, entry.chain_gate, progress, keep)


def judge_chains(
    opened: Callable[[Say], Pipeline],
    golden: Golden,
    chains: Sequence[Chain],
    target: str,
    gate: ChainGate,
    progress: Progress,
    keep: Keep = _forget,
) -> list[Row]:
    """The verdict on every stage of ``chains`` over the pipeline that ``opened`` gives."""
    case = ""

    def say(phrase: str) -> None:
        progress(target, CHAIN, f"{case}: {phrase}")

    rows: list[Row] = []
    idle = dict.fromkeys(task_of(chain) for chain in chains)
    pipeline = opened(say)
    for chain in chains:
        case = chain.name
        with pipeline:
            try:
                if isinstance(chain, AnswerChain):
                    answer, found = _answer_rows(pipeline, golden, chain, target, gate)
                    keep(target, chain, answer)
                else:
                    drawing, found = _drawing_rows(pipeline, golden, chain, target, gate)
                    keep(target, chain, drawing)
                rows += found
            except PromptTooLongError:
                continue
            except ExportError as error:
                status = Status.NOT_RUN if isinstance(error, MissingToolError) else Status.FAILED
                judge = ChainJudge(target, _runtime(pipeline), gate)
                rows.append(judge.row(task_of(chain), case, "", status, str(error)))
            idle.pop(task_of(chain), None)
    judge = ChainJudge(target, NO_RUNTIME, gate)
    return rows + [judge.row(task, "", "", Status.FAILED, NO_CHAIN) for task in idle]


def task_of(chain: Chain) -> Task:
    """What ``chain`` does."""
    if isinstance(chain, AnswerChain):
        return Task.DESCRIBE
    return Task.GENERATE if chain.pixels is None else Task.EDIT


def _needed(chain: Chain) -> tuple[str, ...]:
    match task_of(chain):
        case Task.DESCRIBE:
            return (VISION, *conversation.COMPONENTS)
        case Task.EDIT:
            return (VISION, *DRAWING_COMPONENTS)
        case _:
            return DRAWING_COMPONENTS


def _runtime(pipeline: Pipeline) -> str:
    return ", ".join(dict.fromkeys(pipeline.runtimes.values())) or NO_RUNTIME


def _answer_rows(
    pipeline: Pipeline, golden: Golden, chain: AnswerChain, target: str, gate: ChainGate
) -> tuple[Answer, list[Row]]:
    """Picture → features → the prompt's logits → the token chosen after each of the golden's."""
    answer = pipeline.describe(
        golden.tensor(chain.pixels),
        chain.question,
        max_tokens=len(chain.tokens),
        stop=False,
        led_by=chain.tokens,
    )
    first, *_ = [token.logits for token in answer]
    judge = ChainJudge(target, _runtime(pipeline), gate)
    place = Task.DESCRIBE, chain.name
    stages = (
        ("image_features", chain.image_features, answer.image_features, gate.image_features_db),
        ("logits", chain.logits, first[None, None], gate.logits_db),
    )
    return answer, [
        *(judge.stage(*place, name, golden.tensor(key), found, least) for name, key, found, least in stages),
        judge.tokens(
            *place,
            chain.tokens,
            golden.tensor(chain.candidates),
            golden.tensor(chain.candidate_logits),
            golden.tensor(chain.spread),
            answer.tokens,
        ),
    ]


def _drawing_rows(
    pipeline: Pipeline, golden: Golden, chain: DrawingChain, target: str, gate: ChainGate
) -> tuple[Drawing, list[Row]]:
    """Prompt → hidden states → conditioning → the latent after every step → image."""
    latent, steps = golden.tensor(chain.initial_latent), len(chain.latents)
    if chain.pixels is None:
        drawing = pipeline.generate(chain.prompt, steps=steps, guidance=chain.guidance, latent=latent)
    else:
        pixels = golden.tensor(chain.pixels)
        drawing = pipeline.edit(pixels, chain.prompt, steps=steps, guidance=chain.guidance, latent=latent)
    judge = ChainJudge(target, _runtime(pipeline), gate)
    place = task_of(chain), chain.name
    stages = (
        ("hidden_states", chain.hidden_states, drawing.hidden_states, gate.hidden_states_db),
        ("conditional", chain.conditional, drawing.conditioning.conditional, gate.conditioning_db),
        ("unconditional", chain.unconditional, drawing.conditioning.unconditional, gate.conditioning_db),
    )
    return drawing, [
        *(judge.stage(*place, name, golden.tensor(key), found, least) for name, key, found, least in stages),
        *(
            judge.latent(*place, index + 1, golden.tensor(key), found)
            for index, (key, found) in enumerate(zip(chain.latents, drawing.latents, strict=True))
        ),
        judge.image(*place, unit_image(golden.tensor(chain.image)), unit_image(drawing.image)),
    ]
