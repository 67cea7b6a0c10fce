"""A bundle of two targets that no export made: just what the report reads, and ways to read the page back."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mobile_o_export.backends.base import GraphFile
from mobile_o_export.bundle.manifest import (
    SCHEMA,
    CheckpointEntry,
    ComponentEntry,
    FileEntry,
    Manifest,
    TargetEntry,
    write_manifest,
)
from mobile_o_export.bundle.outcomes import OUTCOMES, OUTCOMES_FOLDER, Outcome, Outcomes
from mobile_o_export.bundle.verdicts import judged_digest
from mobile_o_export.components.base import FunctionSpec, GraphSpec
from mobile_o_export.compression.recipe import Recipe
from mobile_o_export.evaluation.record import PICTURES, Answered, Drawn, Evaluation, ModelRun, Settings
from mobile_o_export.parity.chain import CHAIN
from mobile_o_export.parity.gates import shipped_gates
from mobile_o_export.parity.judge import Row, Status
from mobile_o_export.parity.report import report_json
from mobile_o_export.precision import Precision
from mobile_o_export.report.content import gather
from mobile_o_export.report.page import page
from mobile_o_export.targets import Sequence
from mobile_o_export.tensors import DType, Role, TensorSpec

DIGEST = "sha256:" + "0123456789abcdef" * 4
SIDE = 16
STEPS = 3
GATES = shipped_gates()
LATENT = TensorSpec("latent", (1, 8, 8, 8), DType.FLOAT32, "B C Y X", Role.LATENT)
HIDDEN = TensorSpec(
    "hidden", (1, "S", 96), DType.FLOAT32, "B S D", Role.HIDDEN_STATES, (-1.0, 1.0), "a meaning"
)
FUNCTIONS = {
    "mcp": (FunctionSpec("project", (HIDDEN,), (HIDDEN,)),),
    "dit": (FunctionSpec("denoise", (LATENT, HIDDEN), (LATENT,)),),
}
PARAMETERS = {"mcp": 1_000_000, "dit": 3_000_000}
VOID = {"img", "link", "meta"}


def component(target: str, name: str, precision: Precision, size: int) -> ComponentEntry:
    [function] = FUNCTIONS[name]
    spec = GraphSpec(f"{function.name}_64", (function.name,), function.inputs, function.outputs)
    return ComponentEntry(
        recipe=Recipe(floating=precision, default=precision),
        gate=GATES.of([precision]),
        folder=f"{target}/{name}",
        size_bytes=size,
        graphs=(GraphFile(spec, f"{name}.bin", "main"),),
    )


def target(name: str, precision: Precision, **changes: Any) -> TargetEntry:
    entry = TargetEntry(
        backend="coreml",
        description=f"where {name} goes",
        sequence=Sequence(lengths=(64,), context=128),
        options={"opset": 20},
        components={part: component(name, part, precision, 2_000_000) for part in FUNCTIONS},
        chain_gate=GATES.of_chain({part: ([precision], GATES.of([precision])) for part in FUNCTIONS}),
    )
    return entry.model_copy(update=changes)


def manifest(**changes: Any) -> Manifest:
    found = Manifest(
        schema_version=SCHEMA,
        bundle_version="4.5.6",
        made_with={"torch": "2.13.0"},
        checkpoint=CheckpointEntry(digest=DIGEST, parameters=4_000_000, component_parameters=PARAMETERS),
        functions=FUNCTIONS,
        targets={"phone": target("phone", Precision.FP16), "board": target("board", Precision.W16)},
        files={"phone/mcp/mcp.bin": FileEntry(size_bytes=2_000_000, sha256="0" * 64)},
    )
    return found.model_copy(update=changes)


def row(name: str, part: str, **values: Any) -> Row:
    """A passed row, but for ``values``."""
    gate = f"≥ {manifest().targets[name].components['mcp'].gate.snr_db:g} dB"  # type: ignore[union-attr]
    known = {"function": "run", "case": "case", "output": "out", "runtime": "by hand", "status": "passed"}
    return Row.model_validate({"target": name, "component": part, "gate": gate, **known, **values})


def rows(name: str) -> list[Row]:
    """What a target that passed has: its functions, a chain that draws, one that answers."""
    chain = {"function": "generate", "case": "cube"}
    return [
        row(name, "mcp", function="project", snr_db=71.25, max_abs=0.001, cosine=0.9999),
        row(name, "dit", function="denoise", snr_db=80.0, max_abs=0.002, cosine=0.9999),
        *(
            row(name, CHAIN, **chain, output=f"latent_{step:02d}", step=step, snr_db=100.0 - 10 * step)
            for step in range(1, STEPS + 1)
        ),
        row(name, CHAIN, **chain, output="image", psnr_db=52.5, ssim=0.99876, gate="PSNR ≥ 35 dB"),
        row(name, CHAIN, function="describe", case="houses", output="tokens", identical_tokens=7),
    ]


def every_row() -> list[Row]:
    return [*rows("phone"), *rows("board")]


def changed(found: Iterable[Row], **values: Any) -> list[Row]:
    """``found`` with the first row changed."""
    first, *others = found
    return [first.model_copy(update=values), *others]


def failed(reason: str, **values: Any) -> dict[str, Any]:
    return {"status": Status.FAILED, "reason": reason, **values}


def save(path: Path, pixels: np.ndarray[Any, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.astype(np.uint8)).save(path)


def drawing() -> np.ndarray[Any, Any]:
    """uint8 [16, 16, 3], no symmetry, room above and below each value."""
    return np.random.default_rng(5).integers(20, 200, (SIDE, SIDE, 3)).astype(np.uint8)


def write_bundle(folder: Path, found: Manifest, rows: Iterable[Row]) -> Path:
    folder.mkdir(exist_ok=True)
    write_manifest(folder, found)
    judged = {**report_json(list(rows)), "judged": judged_digest(found)}
    (folder / "parity.json").write_text(json.dumps(judged))
    (folder / "LICENCE-WEIGHTS.txt").write_text("see https://example.org/licence\n")
    return folder


def write_chains(folder: Path, answers: Mapping[str, str], prompt: str = "a red cube") -> None:
    """One chain that draws, ``phone`` 3 levels off at one pixel and ``board`` exact; one that answers."""
    pixels = drawing()
    off = pixels.copy()
    off[2, 5] += np.array([1, 3, 2], np.uint8)
    outcomes = []
    for name, drawn in (("torch", pixels), ("phone", off), ("board", pixels)):
        picture = f"{OUTCOMES_FOLDER}/{name}.png"
        save(folder / picture, drawn)
        outcomes.append(Outcome(target=name, task="generate", case="cube", prompt=prompt, picture=picture))
    save(folder / OUTCOMES_FOLDER / "given.png", pixels[::-1])
    outcomes += [
        Outcome(
            target=name,
            task="describe",
            case="houses",
            prompt="How many?",
            given=f"{OUTCOMES_FOLDER}/given.png",
            answer=answer,
        )
        for name, answer in answers.items()
    ]
    write_outcomes(folder, outcomes)


def write_outcomes(folder: Path, outcomes: Iterable[Outcome]) -> None:
    (folder / OUTCOMES_FOLDER).mkdir(exist_ok=True)
    content = Outcomes(outcomes=tuple(outcomes)).model_dump(mode="json")
    (folder / OUTCOMES_FOLDER / OUTCOMES).write_text(json.dumps(content))


def run_of(folder: Path, name: str, right: Iterable[bool]) -> ModelRun:
    """A model's run of as many prompts and questions as there are verdicts."""
    (folder / PICTURES).mkdir(parents=True, exist_ok=True)
    drawings, answers = [], []
    for index, good in enumerate(right):
        picture = f"{PICTURES}/{name}-{index}.png"
        save(folder / picture, drawing() + np.uint8(name != "torch"))
        reason = "" if good else "no cube"
        drawings.append(
            Drawn(
                tag=f"tag{index % 2}",
                prompt=f"prompt {index}",
                seed=index,
                passed=good,
                reason=reason,
                picture=picture,
            )
        )
        answer = "red" if good else "blue"
        answers.append(
            Answered(
                image=f"{index}.png", question=f"question {index}?", expected="red", answer=answer, exact=good
            )
        )
    return ModelRun(runtimes={"llm": "by hand"}, drawings=tuple(drawings), answers=tuple(answers), seconds={})


def write_evaluation(
    folder: Path, verdicts: Mapping[str, Iterable[bool]], checkpoint: str = DIGEST, bundle: str = ""
) -> Path:
    folder.mkdir(exist_ok=True)
    settings = Settings(
        checkpoint=checkpoint, tasks="ab" * 32, judge="shapes", steps=20, guidance=1.2, seed=0
    )
    models = {name: run_of(folder, name, right) for name, right in verdicts.items()}
    Evaluation(bundle=bundle, settings=settings, models=models).write(folder)
    return folder


@dataclass
class Element:
    """An element of the page and everything in it."""

    name: str
    attributes: dict[str, str | None]
    parents: tuple[Element, ...]
    texts: list[str] = field(default_factory=list)

    @property
    def text(self) -> str:
        return " ".join("".join(self.texts).split())

    @property
    def classes(self) -> list[str]:
        return (self.attributes.get("class") or "").split()

    def within(self, name: str) -> bool:
        return any(parent.name == name for parent in self.parents)


class Page(HTMLParser):
    """The page as elements; refuses what is not balanced."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.html = html
        self.elements: list[Element] = []
        self._open: list[Element] = []
        self.feed(html)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        element = Element(tag, dict(attrs), tuple(self._open))
        assert len(attrs) == len(element.attributes), f"an attribute of {tag} is given twice"
        self.elements.append(element)
        if tag not in VOID:
            self._open.append(element)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop().name == tag

    def handle_data(self, data: str) -> None:
        for element in self._open:
            element.texts.append(data)

    def all(self, name: str, class_: str = "") -> list[Element]:
        return [e for e in self.elements if e.name == name and (not class_ or class_ in e.classes)]

    def section(self, identifier: str) -> Element:
        [found] = [element for element in self.elements if element.attributes.get("id") == identifier]
        return found

    def inside(self, outer: Element, name: str) -> list[Element]:
        return [element for element in self.all(name) if outer in element.parents]


def page_of(folder: Path, evaluation: Path | None = None) -> Page:
    return Page(page(gather(folder, evaluation)))
