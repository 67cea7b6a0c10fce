"""How much sooner Core ML packages are made with fewer of coremltools' own checks; they are the same bytes.

Usage: conversion.py [--checkpoint CKPT] [--target NAME] [--rounds N]
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import tempfile
import time
from pathlib import Path

from mobile_o_export.backends.base import LowerRequest
from mobile_o_export.backends.coreml import convert
from mobile_o_export.backends.registry import backend
from mobile_o_export.checkpoint import Checkpoint
from mobile_o_export.plan import plan
from mobile_o_export.quiet import quiet_vendor
from mobile_o_export.targets import load_target

DEMO = Path(__file__).parent.parent / "examples" / "demo_checkpoint" / "checkpoint"


def lowered(request: LowerRequest, checkpoint: Checkpoint) -> tuple[float, str]:
    """Seconds of this process for one package, and the digest of its bytes."""
    with tempfile.TemporaryDirectory() as folder, quiet_vendor():
        begin = time.process_time()
        backend("coreml").lower(request, checkpoint, Path(folder), lambda _: None)
        seconds = time.process_time() - begin
        digest = hashlib.sha256()
        for path in sorted(Path(folder).rglob("*")):
            if path.is_file():
                digest.update(path.relative_to(folder).as_posix().encode() + path.read_bytes())
    return seconds, digest.hexdigest()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", type=Path, default=DEMO)
    parser.add_argument("--target", default="coreml-ane")
    parser.add_argument("--rounds", type=int, default=2)
    options = parser.parse_args()
    checkpoint, fewer = Checkpoint.open(options.checkpoint), convert.fewer_checks
    items = [item for item in plan(checkpoint, [load_target(options.target)]) if item.request]
    lowered(items[0].request, checkpoint)  # imports
    for item in items:
        best: dict[str, float] = {}
        digests = set()
        for _ in range(options.rounds):
            for name, checks in (("all", contextlib.nullcontext), ("few", fewer)):
                convert.fewer_checks = checks
                seconds, digest = lowered(item.request, checkpoint)
                best[name] = min(seconds, best.get(name, seconds))
                digests.add(digest)
        same = "the same bytes" if len(digests) == 1 else "OTHER BYTES"
        print(
            f"{item.component:15} {best['all']:6.1f} s with all checks, {best['few']:6.1f} s with few: "
            f"{best['all'] / best['few']:.2f} times as fast, {same}",
            flush=True,
        )


if __name__ == "__main__":
    main()
