"""``chains/``: what PyTorch and each target drew and answered in the chains that were judged, for people."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final, Literal, Self

import numpy as np

from mobile_o_export.bundle.chains import Chain, task_of
from mobile_o_export.bundle.manifest import TOKENIZER_FOLDER, Damage
from mobile_o_export.errors import BundleError, ExportError
from mobile_o_export.golden import AnswerChain, Golden
from mobile_o_export.members import MemberName, Members, entries
from mobile_o_export.parity.chain import CHAIN
from mobile_o_export.parity.judge import Row, Status
from mobile_o_export.parity.metrics import Array, psnr_db
from mobile_o_export.pipelines.answering import Answer
from mobile_o_export.pipelines.drawing import Drawing
from mobile_o_export.pipelines.pipeline import TORCH
from mobile_o_export.pipelines.preprocessing import as_picture
from mobile_o_export.png import opened_png
from mobile_o_export.strict import Strict
from mobile_o_export.tokenizer import Tokenizer

SCHEMA: Final = 1
OUTCOMES_FOLDER = "chains"
OUTCOMES = "chains.json"
MOST_NAME_CHARACTERS = 60
"""Of a picture's name: a chain's is the user's own, and may be longer than a file's."""

OUTPUTS = {"picture": "image", "answer": "tokens"}
"""What a verdict calls what comes out of a chain."""

PIXEL_LEVELS = 255.0
ROUNDED_DB, ROUNDING_DB = 50.0, 2.0
"""Two pictures whose values are rounded to 8 bits: up to here their distance shows, to within so much."""

SAME_PICTURE_DB = 45.0
"""PSNR of two pictures that two CPUs make of one chain, at least."""


class Outcome(Strict):
    """What came out of one chain.

    Attributes:
        target: a target's name, or ``torch`` for the golden's own.
        task: ``generate``, ``edit`` or ``describe``.
        case: the chain's name, the same for every target.
        prompt: the user's words.
        given: PNG of the picture that the chain starts from, relative to the bundle; None without one.
        picture: PNG of what was drawn, relative to the bundle; None for an answer.
        answer: the text, None for a drawing.
    """

    target: str
    task: str
    case: str
    prompt: str
    given: MemberName | None = None
    picture: MemberName | None = None
    answer: str | None = None


class Outcomes(Strict):
    """``chains/chains.json``."""

    schema_version: Literal[1] = SCHEMA
    outcomes: tuple[Outcome, ...]

    @classmethod
    def read(cls, bundle: Path) -> Self:
        """Those of a bundle; none where it was made before they were kept.

        Raises:
            BundleError: the file is damaged.
        """
        members, name = Members(bundle, BundleError), f"{OUTCOMES_FOLDER}/{OUTCOMES}"
        return members.json(name, cls) if members.has(name) else cls(outcomes=())


class OutcomeWriter:
    """Writes ``chains/`` of a bundle while its chains are judged.

    PyTorch's own come first, then those of ``targets`` in their order, whichever are judged first.
    """

    def __init__(self, bundle: Path, golden: Golden, targets: Sequence[str]) -> None:
        self._bundle = bundle
        self._golden = golden
        self._order = (TORCH, *targets)
        self._outcomes: list[Outcome] = []
        (bundle / OUTCOMES_FOLDER).mkdir()
        tokenizer = Tokenizer(bundle / TOKENIZER_FOLDER)
        for drawn in golden.index.drawings:
            self._add(TORCH, drawn, golden.tensor(drawn.image), None)
        for answered in golden.index.answers:
            self._add(TORCH, answered, None, tokenizer.decode(answered.tokens))

    def add(self, target: str, chain: Chain, result: Array | str) -> None:
        """What ``target`` made of ``chain``: a picture, float32 [1, 3, O, O] in -1..1, or an answer."""
        if isinstance(result, str):
            self._add(target, chain, None, result)
        else:
            self._add(target, chain, result, None)

    def of(self, target: str) -> tuple[Outcome, ...]:
        """What was added of ``target``."""
        return tuple(outcome for outcome in self._outcomes if outcome.target == target)

    def add_again(self, outcome: Outcome, picture: bytes | None) -> None:
        """What another export of the same golden added, with the bytes of its picture."""
        if picture is not None:
            place = self._place(self._picture_name(outcome.target, outcome.case))
            (self._bundle / place).write_bytes(picture)
            outcome = outcome.model_copy(update={"picture": place})
        self._outcomes.append(outcome)

    def write(self) -> None:
        """Writes the list, when all of them are there."""
        ordered = tuple(outcome for target in self._order for outcome in self.of(target))
        content = Outcomes(outcomes=ordered).model_dump(mode="json")
        text = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
        (self._bundle / OUTCOMES_FOLDER / OUTCOMES).write_text(text, encoding="utf-8")

    def _add(self, target: str, chain: Chain, image: Array | None, answer: str | None) -> None:
        task = task_of(chain)
        outcome = Outcome(
            target=target,
            task=task,
            case=chain.name,
            prompt=chain.question if isinstance(chain, AnswerChain) else chain.prompt,
            given=None if chain.pixels is None else self._given(chain.pixels),
            picture=None if image is None else self._saved(image, self._picture_name(target, chain.name)),
            answer=answer,
        )
        self._outcomes.append(outcome)

    def _picture_name(self, target: str, case: str) -> str:
        """Of the target's next outcome. Names of cases may hold anything; the numbers keep them apart."""
        return f"{self._order.index(target)}-{len(self.of(target)):03}-{target}-{case}"

    def _given(self, key: str) -> MemberName:
        """The picture that a chain starts from, once for all chains and targets."""
        # The encoder's input is in 0..1, where the VAE's output is in -1..1.
        return self._saved(2 * self._golden.tensor(key) - 1, f"given-{key[:12]}")

    def _saved(self, image: Array, name: str) -> MemberName:
        place = self._place(name)
        if not (self._bundle / place).exists():
            as_picture(image).save(self._bundle / place, optimize=True)
        return place

    def _place(self, name: str) -> MemberName:
        plain = "".join(c if c.isalnum() else "-" for c in name)[:MOST_NAME_CHARACTERS]
        return MemberName(f"{OUTCOMES_FOLDER}/{plain}.png")


class OutcomeCheck:
    """Compares what a bundle keeps of its targets' chains with what comes out of them now.

    Attributes:
        problems: what differs, by file.
    """

    def __init__(self, bundle: Path) -> None:
        self._bundle = bundle
        self._kept = {
            (outcome.target, outcome.task, outcome.case): outcome
            for outcome in Outcomes.read(bundle).outcomes
        }
        self.problems: list[Damage] = []

    def add(self, target: str, chain: Chain, result: Drawing | Answer) -> None:
        """What ``target`` made of ``chain`` now."""
        index = f"{OUTCOMES_FOLDER}/{OUTCOMES}"
        kept = self._kept.get((target, task_of(chain), chain.name))
        if kept is None:
            self.problems.append(Damage(index, f"lacks what {target} made of {chain.name!r}"))
        elif isinstance(result, Answer):
            if kept.answer != result.text:
                self.problems.append(Damage(index, f"has another answer of {target} to {chain.name!r}"))
        elif kept.picture is not None:
            drawn = np.asarray(as_picture(result.image))
            pixels = _pixels(self._bundle, kept.picture, len(drawn))
            if _psnr_db(drawn, pixels) < SAME_PICTURE_DB:
                self.problems.append(Damage(kept.picture, "is not what the files draw"))


def other_outcomes(
    folder: Path, golden: Golden, tokenizer: Tokenizer, rows: Iterable[Row]
) -> Iterator[Damage]:
    """Pictures and answers of PyTorch's that are not the golden's, and of targets that are none of theirs."""
    index = f"{OUTCOMES_FOLDER}/{OUTCOMES}"
    try:
        outcomes = Outcomes.read(folder).outcomes
    except ExportError as error:
        yield Damage(index, str(error))
        return
    expected: dict[tuple[str, str], tuple[str, Any]] = {
        (chain.name, "picture"): (chain.prompt, golden.tensor(chain.image)) for chain in golden.index.drawings
    }
    expected |= {
        (chain.name, "answer"): (chain.question, tokenizer.decode(chain.tokens))
        for chain in golden.index.answers
    }
    starts = [(chain.name, chain.pixels) for chain in golden.index.drawings]
    starts += [(chain.name, chain.pixels) for chain in golden.index.answers]
    # The encoder's input is in 0..1, where pictures are made of what is in -1..1.
    given = {name: 2 * golden.tensor(key) - 1 for name, key in starts if key is not None}
    recorded = {
        (row.target, row.function, row.case, row.output): row for row in rows if row.component == CHAIN
    }
    named = {index}
    for outcome in outcomes:
        kind = "answer" if outcome.picture is None else "picture"
        prompt, truth = expected.get((outcome.case, kind), (None, None))
        if prompt != outcome.prompt:
            yield Damage(index, f"has a chain {outcome.case!r} that the golden does not have")
        elif outcome.target == TORCH and kind == "answer":
            if outcome.answer != truth:
                yield Damage(index, f"has another answer of PyTorch's to {outcome.case!r} than the golden")
        elif outcome.target == TORCH:
            yield from _unlike(folder, str(outcome.picture), truth)
        elif row := recorded.get((outcome.target, outcome.task, outcome.case, OUTPUTS[kind])):
            yield from _unrecorded(folder, outcome, truth, row)
        else:
            yield Damage(index, f"has {kind} {outcome.case!r} of {outcome.target}, which nobody judged")
        if outcome.given is not None and outcome.case in given and outcome.given not in named:
            yield from _unlike(folder, outcome.given, given[outcome.case])
        if (outcome.given is None) != (outcome.case not in given):
            yield Damage(index, f"is wrong about the picture that {outcome.case!r} starts from")
        named |= {name for name in (outcome.picture, outcome.given) if name is not None}
    owed = [(TORCH, case) for case, _ in expected]
    owed += [(target, case) for target, _, case, output in recorded if output in OUTPUTS.values()]
    told = {(outcome.target, outcome.case) for outcome in outcomes}
    for target, case in owed:
        if (target, case) not in told:
            yield Damage(index, f"lacks what {target} made of {case!r}")
    for inner, _ in entries(folder / OUTCOMES_FOLDER):
        if (name := f"{OUTCOMES_FOLDER}/{inner}") not in named:
            yield Damage(name, f"is not in {OUTCOMES}")


def _unrecorded(folder: Path, outcome: Outcome, truth: Any, row: Row) -> Iterator[Damage]:
    """A target's picture or answer that is further from PyTorch's than what was judged."""
    if outcome.picture is None:
        if not row.tied_tokens and row.status is Status.PASSED and outcome.answer != truth:
            index = f"{OUTCOMES_FOLDER}/{OUTCOMES}"
            yield Damage(index, f"has another answer of {outcome.target} to {outcome.case!r} than was judged")
        return
    wanted = np.asarray(as_picture(truth))
    try:
        pixels = _pixels(folder, outcome.picture, len(wanted))
    except ExportError as error:
        yield Damage(outcome.picture, str(error))
        return
    if row.psnr_db is not None:
        level = _psnr_db(wanted, pixels)
        # Rounding to 8 bits hides small differences and adds little to large ones.
        if level < min(row.psnr_db, ROUNDED_DB) - ROUNDING_DB:
            yield Damage(
                outcome.picture, f"is {level:.1f} dB from PyTorch's, and {row.psnr_db:.1f} dB was judged"
            )


def _unlike(folder: Path, name: str, image: Any) -> Iterator[Damage]:
    """A picture whose pixels are not those of the golden's ``image``."""
    wanted = np.asarray(as_picture(image))
    try:
        pixels = _pixels(folder, name, len(wanted))
    except ExportError as error:
        yield Damage(name, str(error))
        return
    if not np.array_equal(pixels, wanted):
        yield Damage(name, "is not the golden's picture")


def _pixels(folder: Path, name: str, side: int) -> Array:
    """uint8 [side, side, 3] of a PNG of the bundle in ``folder``.

    Raises:
        BundleError: it is none, or of another size.
    """
    with opened_png(Members(folder, BundleError), name, side) as (picture, _):
        return np.asarray(picture.convert("RGB"))


def _psnr_db(wanted: Array, pixels: Array) -> float:
    """Of two pictures of one shape, uint8."""
    return psnr_db(wanted / PIXEL_LEVELS, pixels / PIXEL_LEVELS)
