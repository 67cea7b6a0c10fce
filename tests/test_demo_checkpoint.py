"""The demo checkpoint does what is said of it, in PyTorch and exported; its golden is of this computation."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from PIL import Image
from shared_exports import SharedExports

from mobile_o_export.bundle.manifest import EVALUATION_FOLDER
from mobile_o_export.checkpoint import Checkpoint
from mobile_o_export.evaluation.evaluate import Request, evaluate_models
from mobile_o_export.evaluation.judge import judge
from mobile_o_export.evaluation.record import Evaluation
from mobile_o_export.evaluation.score import score
from mobile_o_export.evaluation.shapes import ShapeDetector
from mobile_o_export.evaluation.tasks import PROMPTS, Tasks
from mobile_o_export.golden import Golden
from mobile_o_export.golden.compare import LEAST_DB, distances
from mobile_o_export.pipelines.pipeline import TORCH
from mobile_o_export.reference import settings
from mobile_o_export.targets import load_targets
from mobile_o_export.tokenizer import Tokenizer

ROOT = Path(__file__).parent.parent
EXAMPLE = ROOT / "examples" / "demo_checkpoint"
CHECKPOINT = EXAMPLE / "checkpoint"


def test_tasks_are_those_that_the_script_makes(tmp_path: Path) -> None:
    subprocess.run([sys.executable, EXAMPLE / "make_tasks.py", tmp_path], check=True, capture_output=True)
    committed = CHECKPOINT / EVALUATION_FOLDER
    for name in ("prompts.jsonl", "questions.jsonl"):
        assert (tmp_path / name).read_text() == (committed / name).read_text()
    for path in sorted((tmp_path / "images").iterdir()):
        # Another Pillow may pack the same pixels differently.
        with Image.open(path) as made, Image.open(committed / "images" / path.name) as kept:
            assert made.tobytes() == kept.tobytes()


# --- what it does ---


def test_pytorch_reaches_what_is_asked_of_the_demo() -> None:
    """Shape, colour and count in 80 % of drawings, 90 % exact answers; where shapes lie is beyond it."""
    folder = CHECKPOINT / EVALUATION_FOLDER / TORCH
    run = Evaluation.read(folder).models[TORCH]
    tasks = Tasks.read(CHECKPOINT / EVALUATION_FOLDER / PROMPTS, None).drawings
    assert [drawn.prompt for drawn in run.drawings] == [task.prompt for task in tasks]
    assert len(tasks) == 200
    right = 0
    for task, drawn in zip(tasks, run.drawings, strict=True):
        anywhere = tuple(wanted.model_copy(update={"position": None}) for wanted in task.include)
        with Image.open(folder / drawn.picture) as picture:
            seen = ShapeDetector().detect(picture)
        right += judge(task.model_copy(update={"include": anywhere}), seen)[0]
        assert judge(task, seen)[0] == drawn.passed
    assert right >= 0.80 * 200
    found = score(run, folder, None, folder)
    assert found.exact is not None
    assert found.exact.of == 500
    assert found.exact.rate >= 0.90


def test_the_model_s_own_guidance_is_everyone_s(demo_checkpoint: Checkpoint) -> None:
    """The checkpoint says it; the bundle's ``config/pipeline.json`` is these numbers."""
    assert settings(demo_checkpoint, Tokenizer(demo_checkpoint.path)).numbers.guidance == 2.0
    recorded = Evaluation.read(CHECKPOINT / EVALUATION_FOLDER / TORCH)
    assert (recorded.settings.guidance, recorded.settings.steps) == (2.0, 20)


def test_the_recorded_run_is_what_pytorch_does(demo_checkpoint: Checkpoint, tmp_path: Path) -> None:
    found = evaluate_models(None, [TORCH], demo_checkpoint, Request(limit=6), tmp_path, lambda *_: None)
    run = found.record.models[TORCH]
    folder = CHECKPOINT / EVALUATION_FOLDER / TORCH
    recorded = Evaluation.read(folder)
    assert recorded.settings == found.record.settings
    reference = recorded.models[TORCH]
    cut = reference.model_copy(update={"drawings": reference.drawings[:6], "answers": reference.answers[:6]})
    again = score(run, tmp_path, cut, folder)
    assert again.agreement is not None
    assert again.psnr is not None
    assert again.agreement.rate == 1.0
    assert again.psnr.least > 40


def test_the_committed_golden_is_of_this_checkpoint_and_machine(
    demo_checkpoint: Checkpoint, shared: SharedExports
) -> None:
    recorded = shared.golden(demo_checkpoint, ROOT / "golden" / "demo-prompts.toml")
    rows = distances(Golden.open(ROOT / "golden" / "demo"), recorded)
    assert min(row.snr_db for row in rows) >= LEAST_DB


def test_an_exported_target_scores_as_pytorch_did(
    demo_checkpoint: Checkpoint, demo_golden: Golden, shared: SharedExports, tmp_path: Path
) -> None:
    result = shared.export(demo_checkpoint, load_targets(["tensorrt-orin"]), (), demo_golden)
    folder = tmp_path / "evaluation"
    folder.mkdir()
    found = evaluate_models(result.bundle, [], None, Request(limit=12), folder, lambda *_: None)
    assert found.note == ""
    assert list(found.scores) == [TORCH, "tensorrt-orin"]
    scores = found.scores["tensorrt-orin"]
    assert scores.drawn_difference is not None
    assert scores.drawn_difference.within_noise
    assert scores.agreement is not None
    assert scores.agreement.rate > 0.9
    assert scores.psnr is not None
    assert scores.psnr.least > 30
