"""Tokens a second and seconds an image, by stage, from exported files and from PyTorch eager.

    python benchmarks/speed.py BUNDLE [BUNDLE ...] --checkpoint CKPT [--steps 4] [--tokens 24]

Every target of every bundle, and PyTorch on the checkpoint that they were made from, each in a process of its
own, on the same prompt and picture, with its own default number of threads. Each task runs twice and the
second run counts: what runtimes do lazily at a first call is then done. ``×`` is PyTorch's
time over the target's.
The prompt is read once; a token after the first costs one call of decode over the KV cache.

On Linux the Core ML line is the MIL interpreter: a check of the files, no measure of a phone's speed.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import mobile_o_export
from mobile_o_export import memory
from mobile_o_export.bundle.manifest import read_manifest
from mobile_o_export.cli.console import megabytes, table
from mobile_o_export.errors import ExportError
from mobile_o_export.progress import Say, silent
from mobile_o_export.resources import shipped
from mobile_o_export.workers import ProcessDiedError, run_alone

PROMPT = "a red cube to the left of a blue sphere on a wooden table"
QUESTION = "What is on the table, and what colour is each thing?"
TORCH = "torch"


def measure(job: tuple[Path, str, int, int], _say: Say) -> dict[str, Any]:
    """Runs both tasks twice, and what the second runs took: of a place, target, steps and tokens."""
    place, target, steps, tokens = job
    opened = (
        mobile_o_export.open_checkpoint(place)
        if target == TORCH
        else mobile_o_export.open_bundle(place, target)
    )
    with opened as model:
        picture = shipped("golden") / "still-life.png"
        for _ in range(2):
            answer = model.describe(picture, QUESTION, max_tokens=tokens, stop=False)
            ids = [token.id for token in answer]
            drawing = model.generate(PROMPT, seed=1, steps=steps)
        return {
            "target": target,
            "runtime": ", ".join(dict.fromkeys(model.runtimes.values())),
            "answer": answer.prompt_seconds,
            "decode": sum(answer.decode_seconds),
            "tokens_per_second": answer.tokens_per_second,
            "prompt_tokens": answer.prompt_tokens,
            "ids": ids,
            "drawing": drawing.seconds,
            "step": min(drawing.step_seconds),
            "peak": memory.peak_bytes(),
        }


def answering(result: dict[str, Any], torch: dict[str, Any]) -> list[str]:
    def total(found: dict[str, Any]) -> float:
        return sum(found["answer"].values()) + found["decode"]

    return [
        result["target"],
        f"{result['answer']['vision_encoder']:.2f} s",
        f"{result['answer']['llm']:.2f} s",
        f"{result['tokens_per_second']:.2f}",
        f"{result['tokens_per_second'] / torch['tokens_per_second']:.2f}",
        f"{total(result):.2f} s",
        f"{total(torch) / total(result):.2f}",
        f"{sum(a == b for a, b in zip(result['ids'], torch['ids'], strict=True))}/{len(torch['ids'])}",
    ]


def drawing(result: dict[str, Any], torch: dict[str, Any]) -> list[str]:
    seconds = result["drawing"]
    total = sum(seconds.values())
    return [
        result["target"],
        f"{seconds['llm']:.2f} s",
        f"{seconds['mcp']:.2f} s",
        f"{seconds['dit']:.2f} s",
        f"{result['step']:.2f} s",
        f"{seconds['vae_decoder']:.2f} s",
        f"{total:.2f} s",
        f"{sum(torch['drawing'].values()) / total:.2f}",
        megabytes(result["peak"]),
        result["runtime"],
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bundle", type=Path, nargs="+")
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=24)
    parser.add_argument("--json", type=Path, help="also write everything measured here")
    arguments = parser.parse_args()
    if arguments.tokens < 2:
        parser.error("--tokens: 2 or more, for a speed")
    jobs = [(arguments.checkpoint, TORCH)]
    jobs += [(bundle, target) for bundle in arguments.bundle for target in read_manifest(bundle).targets]
    results = []
    for place, target in jobs:
        print(f"measuring {target} …", file=sys.stderr, flush=True)
        job = (place, target, arguments.steps, arguments.tokens)
        try:
            results.append(run_alone(measure, job, silent))
        except ProcessDiedError as error:
            sys.exit(f"{target}: {error}")
        except ExportError as error:
            print(f"{target}: {error}", file=sys.stderr)
    if not results or results[0]["target"] != TORCH:
        sys.exit("PyTorch itself could not be measured; there is nothing to compare with.")
    torch = results[0]
    print(f"\nan answer of {arguments.tokens} tokens to a prompt of {torch['prompt_tokens']}\n")
    header = ["", "picture", "prompt", "tokens/s", "×", "in all", "×", "same tokens"]
    print(table(header, [answering(found, torch) for found in results], right=range(1, 8)))
    print(f"\nan image in {arguments.steps} steps\n")
    header = ["", "prompt", "mcp", "dit", "a step", "vae", "in all", "×", "peak memory", "runtime"]
    print(table(header, [drawing(found, torch) for found in results], right=range(1, 9)))
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
