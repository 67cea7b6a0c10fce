"""``chains/``: what PyTorch and each target drew and answered in the chains that were judged, for people."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final, Literal, Self

from mobile_o_export.bundle.chains import Chain, task_of
from mobile_o_export.bundle.manifest import TOKENIZER_FOLDER
from mobile_o_export.errors import BundleError
from mobile_o_export.golden import AnswerChain, Golden
from mobile_o_export.members import MemberName, Members
from mobile_o_export.parity.metrics import Array
from mobile_o_export.pipelines.answering import Answer
from mobile_o_export.pipelines.drawing import Drawing
from mobile_o_export.pipelines.pipeline import TORCH
from mobile_o_export.pipelines.preprocessing import as_picture
from mobile_o_export.strict import Strict
from mobile_o_export.tokenizer import Tokenizer

SCHEMA: Final = 1
OUTCOMES_FOLDER = "chains"
OUTCOMES = "chains.json"
MOST_NAME_CHARACTERS = 60
"""Of a picture's name: a chain's is the user's own, and may be longer than a file's."""


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
    """Writes ``chains/`` of a bundle while its chains are judged; PyTorch's own come first."""

    def __init__(self, bundle: Path, golden: Golden) -> None:
        self._bundle = bundle
        self._golden = golden
        self._outcomes: list[Outcome] = []
        (bundle / OUTCOMES_FOLDER).mkdir()
        tokenizer = Tokenizer(bundle / TOKENIZER_FOLDER)
        for drawn in golden.index.drawings:
            self._add(TORCH, drawn, golden.tensor(drawn.image), None)
        for answered in golden.index.answers:
            self._add(TORCH, answered, None, tokenizer.decode(answered.tokens))

    def add(self, target: str, chain: Chain, result: Drawing | Answer) -> None:
        """What ``target`` made of ``chain``."""
        if isinstance(result, Answer):
            self._add(target, chain, None, result.text)
        else:
            self._add(target, chain, result.image, None)

    def write(self) -> None:
        """Writes the list, when all of them are there."""
        content = Outcomes(outcomes=tuple(self._outcomes)).model_dump(mode="json")
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
            # Names may hold anything; the number keeps two apart that differ in what files may not be called.
            picture=None
            if image is None
            else self._saved(image, f"{len(self._outcomes):03}-{target}-{chain.name}"),
            answer=answer,
        )
        self._outcomes.append(outcome)

    def _given(self, key: str) -> MemberName:
        """The picture that a chain starts from, once for all chains and targets."""
        # The encoder's input is in 0..1, where the VAE's output is in -1..1.
        return self._saved(2 * self._golden.tensor(key) - 1, f"given-{key[:12]}")

    def _saved(self, image: Array, name: str) -> MemberName:
        plain = "".join(c if c.isalnum() else "-" for c in name)[:MOST_NAME_CHARACTERS]
        place = MemberName(f"{OUTCOMES_FOLDER}/{plain}.png")
        if not (self._bundle / place).exists():
            as_picture(image).save(self._bundle / place, optimize=True)
        return place
