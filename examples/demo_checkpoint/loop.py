"""The training loop that all stages share: seeded, resumable, with its losses written as it goes."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import nn

SAVE_SECONDS = 60.0
TOLD_STEPS = 50
AVERAGE = 0.999
"""Decay of the averaged weights, those that are kept; less at the beginning."""


class Stage(Protocol):
    """What one stage trains, and its loss."""

    name: str
    trained: nn.ModuleDict

    def losses(self, rng: np.random.Generator, batch: int, device: torch.device) -> dict[str, torch.Tensor]:
        """The terms of one step's loss; ``rng`` decides everything that is random in it."""
        ...


@dataclass(frozen=True)
class Plan:
    """How long and how fast a stage learns."""

    steps: int
    batch: int
    rate: float
    seed: int
    weight_decay: float = 0.01
    warmup: int = 100

    def rate_at(self, step: int) -> float:
        """Warm-up, then half a cosine down to a fiftieth."""
        if step < self.warmup:
            return self.rate * (step + 1) / self.warmup
        done = (step - self.warmup) / max(1, self.steps - self.warmup)
        return self.rate * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * done)))


def train(stage: Stage, plan: Plan, folder: Path, device: torch.device) -> None:
    """Trains ``stage`` to its end from wherever an earlier run left it in ``folder``.

    A step's data depends on the seed and its number alone, so that an interrupted run goes on as if it had
    not been.
    """
    folder.mkdir(parents=True, exist_ok=True)
    saved, curve = folder / f"{stage.name}.pt", folder / f"{stage.name}.losses.jsonl"
    module = stage.trained.to(device).train()
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    optimiser = torch.optim.AdamW(
        _groups(module, plan.weight_decay), lr=plan.rate, betas=(0.9, 0.98), eps=1e-8
    )
    average = {name: value.detach().clone() for name, value in module.state_dict().items()}
    first, seconds = 0, 0.0
    if saved.is_file():
        state = torch.load(saved, map_location=device, weights_only=True)
        if state["plan"] != vars(plan):
            raise SystemExit(f"{saved}: was trained by another plan. Delete it, or choose another --work.")
        module.load_state_dict(state["module"])
        optimiser.load_state_dict(state["optimiser"])
        average, first, seconds = state["average"], state["step"], state["seconds"]
    if first == 0:
        curve.unlink(missing_ok=True)
    started = last_saved = time.monotonic()
    since_told: dict[str, list[float]] = {}
    for step in range(first, plan.steps):
        rng = np.random.default_rng([plan.seed, step])
        torch.manual_seed(int(rng.integers(2**62)))
        for group in optimiser.param_groups:
            group["lr"] = plan.rate_at(step)
        terms = stage.losses(rng, plan.batch, device)
        loss = torch.stack(list(terms.values())).sum()
        if not torch.isfinite(loss):
            raise SystemExit(f"{stage.name}: the loss of step {step} is {loss.item()}. Lower the rate.")
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        _follow(average, module, min(AVERAGE, (step + 1) / (step + 10)))
        for name, term in terms.items():
            since_told.setdefault(name, []).append(term.item())
        done = step + 1
        now = seconds + time.monotonic() - started
        if done % TOLD_STEPS == 0 or done == plan.steps:
            means = {name: float(np.mean(values)) for name, values in since_told.items()}
            _tell(stage.name, done, plan, means, now, curve)
            since_told = {}
        if time.monotonic() - last_saved > SAVE_SECONDS or done == plan.steps:
            _save(saved, {"plan": vars(plan), "module": module.state_dict(), "average": average,
                          "optimiser": optimiser.state_dict(), "step": done, "seconds": now})  # fmt: skip
            last_saved = time.monotonic()
    module.load_state_dict(average)
    module.eval().requires_grad_(False)


def trained(module: nn.ModuleDict, name: str, folder: Path) -> nn.ModuleDict:
    """``module`` with the averaged weights of the finished stage ``name``, to be used and not trained."""
    path = folder / f"{name}.pt"
    if not path.is_file():
        raise SystemExit(f"{path}: is missing. Train the stage {name!r} first.")
    state = torch.load(path, map_location="cpu", weights_only=True)
    if state["step"] != state["plan"]["steps"]:
        raise SystemExit(f"{path}: stopped at step {state['step']} of {state['plan']['steps']}. Train it on.")
    # What helped to train and is not used any more is left behind.
    module.load_state_dict({name: state["average"][name] for name in module.state_dict()})
    return module.eval().requires_grad_(False)


def _groups(module: nn.Module, weight_decay: float) -> list[Mapping[str, object]]:
    """Weight decay for matrices and kernels alone."""
    matrices = [p for p in module.parameters() if p.requires_grad and p.dim() > 1]
    others = [p for p in module.parameters() if p.requires_grad and p.dim() <= 1]
    return [{"params": matrices, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]


@torch.no_grad()
def _follow(average: dict[str, torch.Tensor], module: nn.Module, decay: float) -> None:
    for name, value in module.state_dict().items():
        if value.is_floating_point():
            average[name].lerp_(value, 1 - decay)
        else:
            average[name].copy_(value)


def _tell(name: str, done: int, plan: Plan, terms: Mapping[str, float], seconds: float, curve: Path) -> None:
    shown = "  ".join(f"{term} {value:.4f}" for term, value in terms.items())
    print(f"{name}  {done}/{plan.steps}  {shown}  {seconds:.0f} s", flush=True)
    with curve.open("a", encoding="utf-8") as file:
        rounded = {term: round(value, 5) for term, value in terms.items()}
        file.write(json.dumps({"step": done, **rounded, "seconds": round(seconds)}) + "\n")


def _save(path: Path, state: Mapping[str, object]) -> None:
    unfinished = path.with_suffix(".part")
    torch.save(state, unfinished)
    unfinished.replace(path)
