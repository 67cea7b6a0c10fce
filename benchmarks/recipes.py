"""What the targets' own precisions cost: size, levels, task scores next to PyTorch's.

    python benchmarks/recipes.py [--target T ...] [--precision P ...] [--work DIR] [--limit N]

Each target is exported from the demo checkpoint with its own recipe (or ``--precision``), judged on the
checkpoint's golden, and does the checkpoint's held-out tasks; one after the other, a row as each is done.
``share`` is the files' size over that of the weights in fp16, ``least dB`` the worst output of a function
alone, ``image`` the worst picture of a chain. ``points`` are of the task score, against what PyTorch did.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

from mobile_o_export.checkpoint import Checkpoint
from mobile_o_export.cli.console import megabytes, table
from mobile_o_export.evaluation.evaluate import Request, evaluate_models
from mobile_o_export.evaluation.score import Difference, Proportion
from mobile_o_export.export import ExportResult, export_bundle
from mobile_o_export.parity.chain import CHAIN
from mobile_o_export.targets import load_targets, target_names

ROOT = Path(__file__).parents[1]
CHECKPOINT, GOLDEN = ROOT / "examples" / "demo_checkpoint" / "checkpoint", ROOT / "golden" / "demo"
HEADINGS = ("target", "size", "share", "least dB", "image", "drawings", "points", "answers", "points")


def say(*words: str) -> None:
    print(f"[{time.strftime('%H:%M:%S')}]", *words, file=sys.stderr, flush=True)


def export(target: str, precisions: list[str], out: Path) -> ExportResult:
    checkpoint = Checkpoint.open(CHECKPOINT)
    return export_bundle(checkpoint, load_targets([target], precisions), (), GOLDEN, out, "0.0.0", say)


def row(target: str, found: ExportResult, work: Path, limit: int | None) -> list[str]:
    size = sum(cost.size_bytes for cost in found.costs)
    half = 2 * sum(tensor.parameters for tensor in Checkpoint.open(CHECKPOINT).tensors.values())
    alone = [level.snr_db for level in found.rows if level.component != CHAIN and level.snr_db is not None]
    images = [level.psnr_db for level in found.rows if level.psnr_db is not None]
    folder = work / f"{target}-tasks"
    folder.mkdir()
    scores = evaluate_models(found.bundle, [target], None, Request(limit=limit), folder, say).scores[target]
    return [
        target,
        megabytes(size),
        f"{size / half:.2f}",
        f"{min(alone):.1f}",
        f"{min(images):.1f} dB",
        *(count(scores.drawn), points(scores.drawn_difference)),
        *(count(scores.exact), points(scores.exact_difference)),
    ]


def count(found: Proportion | None) -> str:
    return "-" if found is None else f"{found.passed}/{found.of}"


def points(found: Difference | None) -> str:
    return "-" if found is None else f"{100 * found.value:+.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--target", action="append", choices=target_names())
    parser.add_argument("--precision", action="append", default=[])
    parser.add_argument("--work", type=Path, help="keep the bundles here")
    parser.add_argument("--limit", type=int, help="only so many tasks of each kind")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        work = chosen.work or Path(scratch)
        work.mkdir(parents=True, exist_ok=True)
        rows = []
        for target in chosen.target or target_names():
            found = export(target, chosen.precision, work / target)
            rows.append(row(target, found, work, chosen.limit))
            say(*rows[-1])
    print(table(HEADINGS, rows, right=range(1, len(HEADINGS))))


if __name__ == "__main__":
    main()
