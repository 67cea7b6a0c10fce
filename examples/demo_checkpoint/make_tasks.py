"""Writes the demo checkpoint's tasks: prompts with GenEval's tags and questions about pictures, all held out.

``python make_tasks.py OUT``: ``prompts.jsonl``, ``questions.jsonl`` and ``images/``, the same at every run.
``python make_tasks.py --golden DIR``: the pictures of ``golden/demo-prompts.toml``.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path

import numpy as np
from PIL import Image
from world import SHAPES, Scene, Thing, random_question, random_scene, render

PROMPTS, IMAGES, QUESTIONS_EACH = 200, 100, 5
SEED = 20_26
POSITIONS = {
    "to the left of": "left of",
    "to the right of": "right of",
    "above": "above",
    "below": "below",
}
"""GenEval's words for what captions say."""


GOLDEN_PICTURES = {
    "demo-squares.png": Scene(
        (Thing("square", "blue", "medium", 20, 22, 8.5), Thing("square", "blue", "medium", 46, 40, 8.0))
    ),
    "demo-cross.png": Scene(
        (Thing("cross", "purple", "medium", 30, 16, 8.5), Thing("circle", "orange", "medium", 34, 46, 8.0)),
        "grey",
    ),
}


def main() -> None:
    if sys.argv[1] == "--golden":
        for name, scene in GOLDEN_PICTURES.items():
            Image.fromarray(render(scene)).save(Path(sys.argv[2]) / name, optimize=True)
        return
    out = Path(sys.argv[1])
    (out / "images").mkdir(parents=True)
    _write(out / "prompts.jsonl", _prompts(np.random.default_rng([SEED, 0])))
    _write(out / "questions.jsonl", _questions(np.random.default_rng([SEED, 1]), out / "images"))
    print(f"{PROMPTS} prompts and {IMAGES * QUESTIONS_EACH} questions are in {out}")


def _prompts(rng: np.random.Generator) -> list[dict[str, object]]:
    """Different captions of held-out scenes, each with what has to be seen and what must not."""
    tasks: dict[str, dict[str, object]] = {}
    while len(tasks) < PROMPTS:
        scene = random_scene(rng, held_out=True)
        tasks.setdefault(scene.caption, _task(scene))
    return list(tasks.values())


def _task(scene: Scene) -> dict[str, object]:
    wanted: list[dict[str, object]] = []
    for (shape, colour), count in Counter((thing.shape, thing.colour) for thing in scene.things).items():
        wanted.append({"class": shape, "count": count, "color": colour})
    if scene.relation:
        # Said of the first, which GenEval places against an entry before it: so the second comes first.
        wanted.reverse()
        wanted[1]["position"] = [POSITIONS[scene.relation], 0]
    counts = Counter(thing.shape for thing in scene.things)
    unwanted = [{"class": shape, "count": counts[shape] + 1} for shape in SHAPES]
    if scene.relation:
        tag = "position"
    elif len(wanted) == 2:
        tag = "color_attr"
    else:
        tag = "counting" if len(scene.things) > 1 else "colors"
    return {"tag": tag, "prompt": scene.caption, "include": wanted, "exclude": unwanted}


def _questions(rng: np.random.Generator, images: Path) -> list[dict[str, object]]:
    """Different questions about each of the pictures, which are saved."""
    tasks: list[dict[str, object]] = []
    for index in range(IMAGES):
        scene = random_scene(rng, held_out=True)
        name = f"{index:03}.png"
        Image.fromarray(render(scene)).save(images / name, optimize=True)
        asked: dict[str, str] = {}
        while len(asked) < QUESTIONS_EACH:
            question, answer = random_question(rng, scene)
            asked.setdefault(question, answer)
        tasks += [
            {"image": f"images/{name}", "question": question, "answer": answer}
            for question, answer in asked.items()
        ]
    return tasks


def _write(path: Path, tasks: list[dict[str, object]]) -> None:
    path.write_text("".join(json.dumps(task) + "\n" for task in tasks), encoding="utf-8")


if __name__ == "__main__":
    main()
