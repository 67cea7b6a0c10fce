"""Lowering by this checkout next to another's: seconds, peak memory and size of each component, in one run.

    git worktree add /tmp/before COMMIT
    python benchmarks/lowering.py CKPT /tmp/before [--target coreml-ane] [--component llm ...] [--times 1]

Each component is lowered in a process of its own, by either checkout in turn, with the packages of this
environment. ``×`` is the other's seconds over this one's, ``of`` this one's peak over the other's. Nothing is
verified but what lowering itself reads back.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from mobile_o_export.cli.console import megabytes, table
from mobile_o_export.components.registry import COMPONENT_NAMES

HERE = Path(__file__).parent.parent

LOWER = """
import json, resource, sys, tempfile, time
from pathlib import Path
from mobile_o_export.backends.registry import backend
from mobile_o_export.checkpoint import Checkpoint
from mobile_o_export.plan import plan
from mobile_o_export.quiet import quiet_vendor
from mobile_o_export.targets import load_targets
path, name, component, work = sys.argv[1:]
checkpoint = Checkpoint.open(Path(path))
(target,) = load_targets([name])
(item,) = plan(checkpoint, [target], [component])
with tempfile.TemporaryDirectory(dir=work) as folder, quiet_vendor():
    started = time.monotonic()
    backend(target.backend).lower(item.request, checkpoint, Path(folder), lambda _: None)
    seconds = time.monotonic() - started
    size = sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())
peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(json.dumps({"seconds": seconds, "peak": peak, "size": size}))
"""


def lower(tree: Path, checkpoint: Path, target: str, component: str, work: Path) -> dict[str, Any]:
    """What ``tree`` took for one component."""
    command = [sys.executable, "-c", LOWER, str(checkpoint), target, component, str(work)]
    environment = {**os.environ, "PYTHONPATH": str(tree)}
    done = subprocess.run(command, cwd=tree, env=environment, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        sys.exit(f"{tree}: lowering {component} for {target} ended with {done.returncode}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("other", type=Path, help="another checkout")
    parser.add_argument("--target", default="coreml-ane")
    parser.add_argument("--component", action="append", choices=COMPONENT_NAMES)
    parser.add_argument("--times", type=int, default=1, help="of which the quickest counts")
    parser.add_argument("--work", type=Path, help="where files are written and removed again")
    arguments = parser.parse_args()
    checkpoint, other = arguments.checkpoint.resolve(), arguments.other.resolve()
    work = arguments.work or Path(tempfile.gettempdir())
    lines = []
    for component in arguments.component or COMPONENT_NAMES:
        best: dict[Path, dict[str, Any]] = {}
        for _ in range(arguments.times):
            for tree in (other, HERE):
                print(f"{component}, {tree.name}", file=sys.stderr, flush=True)
                found = lower(tree, checkpoint, arguments.target, component, work)
                best[tree] = min(best.get(tree, found), found, key=lambda one: one["seconds"])
        before, now = best[other], best[HERE]
        faster, leaner = before["seconds"] / now["seconds"], now["peak"] / before["peak"]
        lines.append(
            [component, *(f"{one['seconds']:.0f} s" for one in (before, now)), f"{faster:.1f}",
             *(megabytes(one["peak"]) for one in (before, now)), f"{leaner:.2f}",
             *(megabytes(one["size"]) for one in (before, now))]
        )  # fmt: skip
    header = ["component", "other", "this", "×", "peak", "this", "of", "size", "this"]
    print(table(header, lines, right=range(1, 9)))


if __name__ == "__main__":
    main()
