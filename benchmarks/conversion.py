"""How much sooner components are converted without what torch and coremltools repeat; same bytes.

Usage: conversion.py [--checkpoint CKPT] [--target NAME] [--recipe NAME] [--rounds N]
"""

from __future__ import annotations

import argparse
import gc
import hashlib
import tempfile
import time
from contextlib import ExitStack, nullcontext
from pathlib import Path
from unittest.mock import patch

from mobile_o_export.backends.base import LowerRequest
from mobile_o_export.backends.coreml import convert as coreml
from mobile_o_export.backends.litert import convert as litert
from mobile_o_export.backends.onnx import convert as onnx
from mobile_o_export.backends.registry import backend
from mobile_o_export.checkpoint import Checkpoint
from mobile_o_export.plan import plan
from mobile_o_export.quiet import quiet_vendor
from mobile_o_export.targets import load_targets

DEMO = Path(__file__).parent.parent / "examples" / "demo_checkpoint" / "checkpoint"


def lowered(name: str, request: LowerRequest, checkpoint: Checkpoint) -> tuple[float, str]:
    """Seconds of this process for one component, and the digest of its files' bytes."""
    with tempfile.TemporaryDirectory() as folder, quiet_vendor():
        begin = time.process_time()
        backend(name).lower(request, checkpoint, Path(folder), lambda _: None)
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
    parser.add_argument("--recipe", help="uncompressed shows conversion alone")
    parser.add_argument("--rounds", type=int, default=2)
    options = parser.parse_args()
    checkpoint = Checkpoint.open(options.checkpoint)
    (target,) = load_targets([options.target], [options.recipe] if options.recipe else [])
    items = [item for item in plan(checkpoint, [target]) if item.request]
    lowered(target.backend, items[0].request, checkpoint)  # imports
    gc.freeze()
    for item in items:
        best: dict[str, float] = {}
        digests = set()
        for _ in range(options.rounds):
            for name in ("as they are", "spared"):
                with ExitStack() as changes:
                    if name == "as they are":
                        changes.enter_context(patch.object(coreml, "spared", nullcontext))
                        for module in (coreml, litert, onnx):
                            changes.enter_context(patch.object(module, "unprinted", nullcontext))
                    seconds, digest = lowered(target.backend, item.request, checkpoint)
                best[name] = min(seconds, best.get(name, seconds))
                digests.add(digest)
        same = "the same bytes" if len(digests) == 1 else "OTHER BYTES"
        print(
            f"{item.component:15} {best['as they are']:6.1f} s, spared {best['spared']:6.1f} s: "
            f"{best['as they are'] / best['spared']:.2f} times as fast, {same}",
            flush=True,
        )


if __name__ == "__main__":
    main()
