"""Trains the demo checkpoint, stage by stage: ``python train.py --work runs/demo --out checkpoint``.

Stages: autoencoder and seeing side by side, then decoding and answering, then drawing on all threads;
then the checkpoint is written. Interrupted, the same command goes on where it stopped.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import torch

from mobile_o_export.quiet import quiet_vendor

with quiet_vendor():
    from loop import Plan, Stage, train, trained
    from model import SPECIAL_ID, build, write_checkpoint
    from stages import Answering, Autoencoder, Decoding, Drawing, Seeing, corpus, pictures, vae_input
    from world import random_scene

    from mobile_o_export.checkpoint.small_tokenizer import write_tokenizer
    from mobile_o_export.tokenizer import Tokenizer

PLANS = {
    "autoencoder": Plan(steps=1300, batch=64, rate=1.5e-3, seed=1),
    "seeing": Plan(steps=1400, batch=64, rate=1.5e-3, seed=2),
    "decoding": Plan(steps=700, batch=64, rate=1.0e-3, seed=5),
    "answering": Plan(steps=2600, batch=64, rate=1.0e-3, seed=4),
    "drawing": Plan(steps=5600, batch=64, rate=1.0e-3, seed=3),
}


def main() -> None:
    arguments = _arguments()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    tokenizer = _tokenizer(arguments.work)
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    if arguments.stage == "all":
        _side_by_side(["autoencoder", "seeing"], arguments)
        _side_by_side(["decoding", "answering"], arguments)
        _run("drawing", arguments, tokenizer, device)
    elif arguments.stage != "write":
        _run(arguments.stage, arguments, tokenizer, device)
    if arguments.stage in ("all", "write"):
        _write(arguments.out, arguments.work, tokenizer)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("stage", nargs="?", default="all", choices=["all", *PLANS, "write"])
    parser.add_argument(
        "--work", type=Path, required=True, help="where losses and unfinished stages are kept"
    )
    parser.add_argument("--out", type=Path, help="the checkpoint's new folder")
    parser.add_argument("--threads", type=int, help="of the CPU; all of them where it is not given")
    parser.add_argument("--steps", type=int, help="of every stage, instead of its own number; to try it out")
    parser.add_argument("--batch", type=int, help="of every stage, instead of its own; to try it out")
    arguments = parser.parse_args()
    if arguments.stage in ("all", "write"):
        if arguments.out is None:
            parser.error("--out is needed, the checkpoint's new folder")
        if arguments.out.exists():
            parser.error(f"{arguments.out} exists already")
    return arguments


def _tokenizer(work: Path) -> Path:
    folder = work / "tokenizer"
    if not (folder / "tokenizer.json").is_file():
        folder.mkdir(parents=True, exist_ok=True)
        write_tokenizer(folder, SPECIAL_ID, corpus=corpus())
    return folder


def _side_by_side(names: list[str], arguments: argparse.Namespace) -> None:
    """Small models waste most of a second thread, so that two stages beside each other take less time."""
    command = [sys.executable, __file__, "--work", str(arguments.work), "--threads", "1"]
    for option in ("steps", "batch"):
        if value := getattr(arguments, option):
            command += [f"--{option}", str(value)]
    running = [subprocess.Popen([*command, name]) for name in names]
    codes = [process.wait() for process in running]
    if any(codes):
        raise SystemExit("a stage failed; what it said stands above")


def _run(name: str, arguments: argparse.Namespace, tokenizer: Path, device: torch.device) -> None:
    work, plan = arguments.work, PLANS[name]
    plan = replace(plan, steps=arguments.steps or plan.steps, batch=arguments.batch or plan.batch)
    torch.manual_seed(plan.seed)
    stage: Stage
    if name == "autoencoder":
        stage = Autoencoder()
    elif name == "seeing":
        stage = Seeing()
    elif name == "decoding":
        stage = Decoding(_coded(work).to(device))
    elif name == "answering":
        stage = Answering(Tokenizer(tokenizer), _seen(work).to(device))
    else:
        frozen = _frozen(work).to(device)
        stage = Drawing(Tokenizer(tokenizer), frozen, _scaling_factor(frozen))
    train(stage, plan, work, device)


def _seen(work: Path) -> torch.nn.ModuleDict:
    return trained(build(["vision"]), "seeing", work)


def _coded(work: Path) -> torch.nn.ModuleDict:
    return trained(build(["vae"]), "autoencoder", work)


def _frozen(work: Path) -> torch.nn.ModuleDict:
    """What the last stage does not train any more."""
    answered = trained(build(["llm", "projector"]), "answering", work)
    return torch.nn.ModuleDict({**_seen(work), **answered, **_coded(work)})


@torch.no_grad()
def _scaling_factor(frozen: torch.nn.ModuleDict) -> float:
    """One over the deviation of the latents."""
    import numpy as np

    rng = np.random.default_rng(0)
    images = pictures([random_scene(rng) for _ in range(256)], next(frozen.parameters()).device)
    deviation = frozen["vae"].encoder(vae_input(images)).std().item()
    return round(1 / deviation, 5)


def _write(out: Path, work: Path, tokenizer: Path) -> None:
    frozen = _frozen(work)
    drawn = trained(build(["mcp", "dit"]), "drawing", work)
    trained(torch.nn.ModuleDict({"decoder": frozen["vae"].decoder}), "decoding", work)
    origin = "examples/demo_checkpoint"
    write_checkpoint(out, {**frozen, **drawn}, tokenizer, _scaling_factor(frozen), origin)
    print(f"the checkpoint is in {out}")


if __name__ == "__main__":
    main()
