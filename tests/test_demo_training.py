"""How the demo checkpoint is trained: what is held out, exact resumption, and that every stage runs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from mobile_o_export.checkpoint import Checkpoint
from mobile_o_export.model.fastvithd import FastViTHD

ROOT = Path(__file__).parent.parent
EXAMPLE = ROOT / "examples" / "demo_checkpoint"


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLE))


# --- the world ---


def test_training_never_sees_what_is_held_out() -> None:
    import world

    rng = np.random.default_rng(0)
    for _ in range(2000):
        scene = world.random_scene(rng)
        assert not scene.held_out
        assert not world.random_edit(rng, scene)[1].held_out
        assert world.random_scene(rng, held_out=True).held_out


def test_every_held_out_task_is_about_a_held_out_scene() -> None:
    import make_tasks
    import world

    prompts = make_tasks._prompts(np.random.default_rng([make_tasks.SEED, 0]))
    rng = np.random.default_rng(1)
    trained = {world.random_scene(rng).caption for _ in range(20_000)}
    assert len(prompts) == make_tasks.PROMPTS
    assert not trained & {str(task["prompt"]) for task in prompts}


# --- training ---


def test_branches_add_up_to_the_published_tower() -> None:
    import model
    from branches import fold

    torch.manual_seed(0)
    tower = model.build(["vision"])["vision"]
    images = torch.rand(2, 3, model.IMAGE_SIZE, model.IMAGE_SIZE)
    with torch.no_grad():
        for module in tower.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.uniform_(0.5, 1.5)
                module.bias.uniform_(-1, 1)
        tower(images)
        tower.eval()
        before = tower(images)
        after = fold(tower)(images)
    assert torch.allclose(before, after, rtol=1e-3, atol=1e-3)
    assert tower.state_dict().keys() == FastViTHD(model.VISION).state_dict().keys()


class Regression:
    """A stage small enough for a test: a line through points, with noise from both generators."""

    name = "regression"

    def __init__(self, fails_at: int | None = None) -> None:
        torch.manual_seed(0)
        self.trained = nn.ModuleDict({"line": nn.Linear(1, 1)})
        self._fails_at = fails_at
        self._calls = 0

    def losses(self, rng: np.random.Generator, batch: int, device: torch.device) -> dict[str, torch.Tensor]:
        if self._calls == self._fails_at:
            raise KeyboardInterrupt
        self._calls += 1
        x = torch.from_numpy(rng.normal(size=(batch, 1))).float().to(device)
        noise = 0.1 * torch.randn_like(x)
        return {"error": (self.trained["line"](x) - 3 * x - 1 + noise).square().mean()}


def test_an_interrupted_training_goes_on_as_if_it_had_not_been(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import loop

    monkeypatch.setattr(loop, "SAVE_SECONDS", 0.0)
    plan, cpu = loop.Plan(steps=120, batch=16, rate=0.1, seed=5, warmup=5), torch.device("cpu")
    whole, broken, resumed = Regression(), Regression(fails_at=70), Regression()
    loop.train(whole, plan, tmp_path / "whole", cpu)
    with pytest.raises(KeyboardInterrupt):
        loop.train(broken, plan, tmp_path / "broken", cpu)
    loop.train(resumed, plan, tmp_path / "broken", cpu)
    for one, other in zip(whole.trained.parameters(), resumed.trained.parameters(), strict=True):
        assert torch.equal(one, other)
    curves = [
        [
            {key: value for key, value in json.loads(line).items() if key != "seconds"}
            for line in (tmp_path / name / "regression.losses.jsonl").read_text().splitlines()
        ]
        for name in ("whole", "broken")
    ]
    assert curves[0][0] == curves[1][0]
    assert [point["step"] for point in curves[0]] == [point["step"] for point in curves[1]] == [50, 100, 120]
    assert curves[0][-1]["error"] < 0.05
    with pytest.raises(SystemExit, match="another plan"):
        loop.train(Regression(), loop.Plan(steps=10, batch=16, rate=0.1, seed=5), tmp_path / "whole", cpu)


@pytest.mark.slow
def test_all_stages_write_a_checkpoint_that_opens(tmp_path: Path) -> None:
    command = [sys.executable, EXAMPLE / "train.py", "--work", tmp_path / "run", "--out", tmp_path / "out"]
    done = subprocess.run(
        [*command, "--steps", "1", "--batch", "6"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr
    assert "drawing  1/1" in done.stdout
    made = Checkpoint.open(tmp_path / "out")
    assert "Apache License" in made.licence
    curves = tmp_path / "losses.png"
    subprocess.run([sys.executable, EXAMPLE / "plot_losses.py", tmp_path / "run", curves], check=True)
    assert curves.stat().st_size > 1000
