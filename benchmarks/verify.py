"""``verify`` of this checkout next to that of another, each on a bundle of its own, by turns in one run.

    git worktree add /tmp/before COMMIT
    (cd /tmp/before && PYTHONPATH=. python -m mobile_o_export export CKPT … --out /tmp/before-bundle)
    python benchmarks/verify.py BUNDLE /tmp/before /tmp/before-bundle [--times 3] [-- --pipeline …]

Both bundles have to be exports of one checkpoint to the same targets. What follows ``--`` is given to both.
Seconds are those of the processor, of all threads: beside other work they say more than the clock's.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from mobile_o_export.cli.console import megabytes, table

HERE = Path(__file__).parent.parent


@dataclass(frozen=True)
class Cost:
    """What one run took: of the clock, of the processor, of memory at its peak."""

    seconds: float
    processor_seconds: float
    peak_bytes: int


def run(tree: Path, bundle: Path, arguments: list[str]) -> Cost:
    """Runs ``verify`` of the checkout ``tree``; what it does not pass ends the comparison."""
    command = [sys.executable, "-m", "mobile_o_export", "verify", str(bundle), *arguments]
    environment = {**os.environ, "PYTHONPATH": str(tree)}
    started = time.monotonic()
    with subprocess.Popen(command, env=environment, cwd=tree, stdout=subprocess.DEVNULL) as process:
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"{tree}: verify {bundle} ended with {process.returncode}")
    return Cost(time.monotonic() - started, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("other", type=Path, help="another checkout")
    parser.add_argument("other_bundle", type=Path)
    parser.add_argument("--times", type=int, default=3)
    own = sys.argv[1:]
    given = own[own.index("--") + 1 :] if "--" in own else []
    arguments = parser.parse_args(own[: own.index("--")] if "--" in own else own)
    sides = {"other": (arguments.other, arguments.other_bundle), "this": (HERE, arguments.bundle)}
    found: dict[str, list[Cost]] = {name: [] for name in sides}
    for _ in range(arguments.times):
        for name, (tree, bundle) in sides.items():
            found[name].append(run(tree.resolve(), bundle.resolve(), given))
    lines = []
    base = statistics.median(cost.processor_seconds for cost in found["other"])
    for name, costs in found.items():
        processor = statistics.median(cost.processor_seconds for cost in costs)
        lines.append(
            [
                name,
                f"{statistics.median(cost.seconds for cost in costs):.1f} s",
                f"{processor:.1f} s",
                f"{processor / base:.2f}",
                megabytes(max(cost.peak_bytes for cost in costs)),
            ]
        )
    print(table(["verify of", "clock", "processor", "×", "peak"], lines, right=(1, 2, 3, 4)))


if __name__ == "__main__":
    main()
