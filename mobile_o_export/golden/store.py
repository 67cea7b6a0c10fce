"""The golden folder: ``golden.json`` and ``tensors.safetensors``. Reading it needs no torch."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Any, Self

import numpy as np
from pydantic import Field, model_validator

from mobile_o_export.components.base import FunctionSpec
from mobile_o_export.errors import GoldenError
from mobile_o_export.golden.consistent import require_answer, require_cases, require_drawing, require_once
from mobile_o_export.golden.encoding import Encoding, Stored, decode, encode, key_of
from mobile_o_export.members import Members
from mobile_o_export.parity.metrics import Array
from mobile_o_export.pipelines.schedule import MOST_STEPS
from mobile_o_export.pipelines.settings import MOST_GUIDANCE
from mobile_o_export.strict import Strict, Versioned

INDEX = "golden.json"
TENSORS = "tensors.safetensors"
GOLDEN_FILES = (INDEX, TENSORS)
SCHEMA = 3


_DTYPES = {"F32": "float32", "F16": "float16", "I32": "int32", "I64": "int64", "U8": "uint8"}
"""safetensors' names of the element types that a golden has, and NumPy's."""


class Step(Strict):
    """One call of a case: which stored tensor each input and each compared output is.

    ``outputs`` is empty for a step that only moves the sequence on.
    """

    function: str
    inputs: dict[str, str]
    outputs: dict[str, str]


class Case(Strict):
    """Calls in order, from a fresh sequence."""

    name: str
    steps: tuple[Step, ...]


class ComponentGolden(Strict):
    """One component's contracts and cases."""

    functions: tuple[FunctionSpec, ...]
    cases: tuple[Case, ...]


class DrawingChain(Strict):
    """A picture drawn from a prompt and a fixed latent, with everything on the way; values are tensors' keys.

    Attributes:
        prompt: the user's words.
        pixels: of the picture to edit, float32 [1, 3, R, R] in 0..1; None where there is none.
        initial_latent: [1, C, Y, X].
        hidden_states: [1, K, S, D].
        conditional: [1, S, F].
        unconditional: [1, S, F].
        latents: [1, C, Y, X] after each step.
        image: [1, 3, O, O], nominally in -1..1.
    """

    name: str
    prompt: str
    pixels: str | None
    initial_latent: str
    guidance: float = Field(ge=-MOST_GUIDANCE, le=MOST_GUIDANCE)
    hidden_states: str
    conditional: str
    unconditional: str
    latents: tuple[str, ...] = Field(min_length=1, max_length=MOST_STEPS)
    image: str


class AnswerChain(Strict):
    """A greedy answer to a question about a picture, with everything on the way; values are tensors' keys.

    Attributes:
        question: the user's words.
        pixels: of the picture, float32 [1, 3, R, R] in 0..1.
        image_features: [1, N, D].
        logits: [1, 1, V] of the prompt.
        tokens: the answer.
        candidates: int32 [tokens, 8], the most likely tokens at each position, the chosen one first.
        candidate_logits: float32 [tokens, 8], theirs.
        spread: float32 [tokens], by how much the largest logit exceeds the mean of all.
    """

    name: str
    question: str
    pixels: str
    image_features: str
    logits: str
    tokens: tuple[Annotated[int, Field(ge=0)], ...] = Field(min_length=1)
    candidates: str
    candidate_logits: str
    spread: str


class GoldenIndex(Strict):
    """``golden.json``.

    Attributes:
        schema_version: of this file's layout.
        checkpoint: digest of the checkpoint that it was recorded from.
        recorded_with: versions of what computed it.
        settings: digests of the settings that the tasks ran under, by their files' names in a bundle.
        tokenizer: digests of the tokenizer's files in the checkpoint, by name.
        components: by name.
        drawings: whole chains from a prompt to a picture.
        answers: whole chains from a picture and a question to an answer.
        tensors: every array by key. One component's output and the next one's input are the same array.
        sha256: of the file that holds them.
    """

    schema_version: int
    checkpoint: str
    recorded_with: dict[str, str]
    settings: dict[str, str]
    tokenizer: dict[str, str]
    components: dict[str, ComponentGolden]
    drawings: tuple[DrawingChain, ...]
    answers: tuple[AnswerChain, ...]
    tensors: dict[str, Stored]
    sha256: str

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        for name, component in self.components.items():
            require_cases(name, component, self.tensors)
        for drawing in self.drawings:
            require_drawing(drawing, self.tensors)
        for answer in self.answers:
            require_answer(answer, self.tensors)
        names = [drawing.name for drawing in self.drawings] + [answer.name for answer in self.answers]
        require_once("the chain", names)
        return self


class Golden:
    """An opened golden folder; tensors are read when asked for."""

    def __init__(self, path: Path, index: GoldenIndex) -> None:
        self.path = path
        self.index = index

    @classmethod
    def open(cls, path: Path) -> Golden:
        """The golden in folder ``path``.

        Raises:
            GoldenError: it is missing, damaged, or of another schema version.
        """
        members = _members(path)
        if (path / "golden" / INDEX).is_file():
            raise GoldenError(f"{path}: is a bundle. Give the golden in it, {path / 'golden'}.")
        if not members.has(INDEX):
            raise GoldenError(
                f"{path}: no golden here ({INDEX} is missing). Make one with 'mobile-o-export golden record'."
            )
        version = members.json(INDEX, Versioned).schema_version
        if version != SCHEMA:
            raise GoldenError(
                f"{path}: golden schema {version}, and this version reads {SCHEMA}. Record it again."
            )
        index = members.json(INDEX, GoldenIndex)
        if not members.has(TENSORS) or sha256(members.read(TENSORS)).hexdigest() != index.sha256:
            raise GoldenError(f"{path / TENSORS}: missing or changed. Record the golden again.")
        golden = cls(path, index)
        golden._require_tensors()
        return golden

    def copy_into(self, folder: Path) -> None:
        """Copies this golden, and nothing else that lies beside it, into the existing, empty ``folder``."""
        for name in (INDEX, TENSORS):
            (folder / name).write_bytes(_members(self.path).read(name))

    def functions(self, component: str) -> tuple[FunctionSpec, ...]:
        """The contracts of ``component``."""
        return self._component(component).functions

    def cases(self, component: str) -> tuple[Case, ...]:
        """The cases of ``component``."""
        return self._component(component).cases

    def tensor(self, key: str) -> Array:
        """The array stored under ``key``, as it was recorded.

        Raises:
            GoldenError: it is not there, or not the one that the key is a digest of.
        """
        stored = self.index.tensors.get(key)
        if stored is None:
            raise GoldenError(
                f"{self.path}: a case names the tensor {key!r}, which is not there. Record it again."
            )
        if stored.encoding is Encoding.ZEROS:
            found = decode(stored, None)
        else:
            with self._opened() as file:
                found = decode(stored, file.get_tensor(key))
        if key_of(found) != key:
            raise GoldenError(f"{self.path}: the tensor {key} is not what was recorded. Record it again.")
        return found

    @contextmanager
    def _opened(self) -> Iterator[Any]:
        """The file of tensors.

        Raises:
            GoldenError: it cannot be read, or lacks what is looked up in it.
        """
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(_members(self.path).file(TENSORS), framework="numpy") as file:
                yield file
        except (SafetensorError, OSError) as error:
            raise GoldenError(
                f"{self.path / TENSORS}: cannot be read as safetensors: {error}. Record the golden again."
            ) from error

    def _require_tensors(self) -> None:
        """Raises GoldenError unless the file holds the arrays that the index lists, and no others."""
        listed = {
            key: stored for key, stored in self.index.tensors.items() if stored.encoding is not Encoding.ZEROS
        }
        with self._opened() as file:
            found = set(file.keys())
            if wrong := sorted(found ^ listed.keys()):
                problem = "is in the file only" if wrong[0] in found else "is not there"
                raise GoldenError(f"{self.path}: the tensor {wrong[0]!r} {problem}. Record it again.")
            for key, stored in listed.items():
                piece = file.get_slice(key)
                dtype, shape = _DTYPES.get(piece.get_dtype()), tuple(piece.get_shape())
                if (dtype, shape) != (stored.kept_as, stored.shape):
                    raise GoldenError(
                        f"{self.path}: the tensor {key} is {dtype or piece.get_dtype()} {list(shape)} in the "
                        f"file, and {stored.kept_as} {list(stored.shape)} in {INDEX}. Record it again."
                    )
        for answer in self.index.answers:
            # What was chosen is the likeliest; a tie is judged by the others.
            if self.tensor(answer.candidates)[:, 0].tolist() != list(answer.tokens):
                raise GoldenError(
                    f"{self.path}: the tokens of the answer {answer.name} are not its likeliest ones. Record "
                    "it again."
                )

    def inputs(self, step: Step) -> dict[str, Array]:
        """What a recorded call was given, by name."""
        return {name: self.tensor(key) for name, key in step.inputs.items()}

    def require_settings(self, settings: Mapping[str, str], tokenizer: Mapping[str, str]) -> None:
        """Raises GoldenError unless this golden was recorded under these settings, with this tokenizer.

        Both are digests by file, as in :class:`GoldenIndex`: neither is part of the checkpoint's own digest.
        """
        for kind, wanted, found in (
            ("settings", settings, self.index.settings),
            ("tokenizer", tokenizer, self.index.tokenizer),
        ):
            names = sorted(wanted.keys() | found.keys())
            if other := [name for name in names if wanted.get(name) != found.get(name)]:
                raise GoldenError(
                    f"{self.path}: recorded with another {kind} ({', '.join(other)}). Record it again, or "
                    "leave --golden out."
                )

    def require_checkpoint(self, digest: str) -> None:
        """Raises GoldenError unless this golden was recorded from the checkpoint of that digest."""
        if self.index.checkpoint != digest:
            raise GoldenError(
                f"{self.path}: recorded from another checkpoint ({self.index.checkpoint[:19]}…, not "
                f"{digest[:19]}…). Record it again, or leave --golden out."
            )

    def _component(self, name: str) -> ComponentGolden:
        if name not in self.index.components:
            raise GoldenError(f"{self.path}: holds nothing of {name}. Record the golden again.")
        return self.index.components[name]


def _members(path: Path) -> Members:
    """Its files; in a folder of the user's own they may be links, and a bundle's were looked at before."""
    return Members(path, GoldenError, "Record the golden again.", links=True)


class Recorder:
    """Collects cases and writes a golden folder."""

    def __init__(self) -> None:
        self._cases: dict[str, list[Case]] = {}
        self._drawings: list[DrawingChain] = []
        self._answers: list[AnswerChain] = []
        self._stored: dict[str, Stored] = {}
        self._arrays: dict[str, Array] = {}

    def add(
        self, component: str, case: str, calls: list[tuple[str, Mapping[str, Array], Mapping[str, Array]]]
    ) -> None:
        """A case of (function, inputs, outputs to compare) calls."""
        steps = tuple(
            Step(
                function=function,
                inputs={name: self.store(component, value) for name, value in inputs.items()},
                outputs={name: self.store(component, value) for name, value in outputs.items()},
            )
            for function, inputs, outputs in calls
        )
        self._cases.setdefault(component, []).append(Case(name=case, steps=steps))

    def add_drawing(self, chain: DrawingChain) -> None:
        """A chain whose arrays were stored before."""
        self._drawings.append(chain)

    def add_answer(self, chain: AnswerChain) -> None:
        """A chain whose arrays were stored before."""
        self._answers.append(chain)

    def store(self, source: str, value: Array) -> str:
        """The key under which ``value`` is stored from now on.

        Raises:
            GoldenError: it is not finite; ``source`` says what computed it.
        """
        value = np.array(value, order="C")
        if not np.isfinite(value).all():
            raise GoldenError(
                f"{source}: the PyTorch model itself computes NaN or infinity. The checkpoint is unusable."
            )
        key = key_of(value)
        self._stored[key], array = encode(value)
        if array is not None:
            self._arrays[key] = array
        return key

    def write(
        self,
        folder: Path,
        checkpoint: str,
        recorded_with: Mapping[str, str],
        settings: Mapping[str, str],
        tokenizer: Mapping[str, str],
        functions: Mapping[str, tuple[FunctionSpec, ...]],
    ) -> None:
        """Writes everything into the existing, empty ``folder``; equal recordings give equal bytes."""
        from safetensors.numpy import save

        content = save(dict(sorted(self._arrays.items())))
        (folder / TENSORS).write_bytes(content)
        index = GoldenIndex(
            schema_version=SCHEMA,
            checkpoint=checkpoint,
            recorded_with=dict(recorded_with),
            settings=dict(settings),
            tokenizer=dict(tokenizer),
            components={
                name: ComponentGolden(functions=functions[name], cases=tuple(cases))
                for name, cases in self._cases.items()
            },
            drawings=tuple(self._drawings),
            answers=tuple(self._answers),
            tensors=dict(sorted(self._stored.items())),
            sha256=sha256(content).hexdigest(),
        )
        (folder / INDEX).write_text(json.dumps(index.model_dump(mode="json"), indent=1) + "\n")
