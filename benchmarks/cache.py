"""What an export takes that finds everything in the cache, next to the first one and to none.

    python benchmarks/cache.py [CKPT] [--target T ...] [--component C ...] [--golden DIR] [--work DIR]

Three commands in processes of their own, on the demo's checkpoint by default: without a cache, with an empty
one, and again. ``over`` is the time over that without; the bundles have to be the same, byte for byte.
"""

from __future__ import annotations

import argparse
import filecmp
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from mobile_o_export.cli.console import table
from mobile_o_export.members import entries

ROOT = Path(__file__).parents[1]
CHECKPOINT, GOLDEN = ROOT / "examples" / "demo_checkpoint" / "checkpoint", ROOT / "golden" / "demo"
RUNS = {"without": ["--no-cache"], "first": ["--cache"], "again": ["--cache"]}


def export(arguments: list[str], out: Path) -> float:
    started = time.monotonic()
    command = [sys.executable, "-m", "mobile_o_export", "export", *arguments, "--out", str(out)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.monotonic() - started


def same_bytes(one: Path, other: Path) -> bool:
    names = [name for name, _ in entries(one)]
    if names != [name for name, _ in entries(other)]:
        return False
    _, differing, unreadable = filecmp.cmpfiles(one, other, names, shallow=False)
    return not differing and not unreadable


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", nargs="?", type=Path, default=CHECKPOINT)
    parser.add_argument("--target", action="append")
    parser.add_argument("--component", action="append", default=[])
    parser.add_argument("--golden", type=Path, default=None)
    parser.add_argument("--work", type=Path, default=None)
    given = parser.parse_args()
    golden = given.golden or (GOLDEN if given.checkpoint == CHECKPOINT else None)
    arguments = [str(given.checkpoint), *([] if golden is None else ["--golden", str(golden)])]
    arguments += [word for name in given.target or ["tensorrt-orin"] for word in ("--target", name)]
    arguments += [word for name in given.component for word in ("--component", name)]
    with tempfile.TemporaryDirectory(prefix="mobile-o-cache-", dir=given.work) as place:
        work = Path(place)
        cache = [str(work / "cache")]
        seconds = {
            name: export([*arguments, *options, *(cache if "--cache" in options else [])], work / name)
            for name, options in RUNS.items()
        }
        rows = [
            [
                name,
                f"{taken:.1f} s",
                f"{taken / seconds['without']:.2f}",
                "the same" if same_bytes(work / "without", work / name) else "OTHERS",
            ]
            for name, taken in seconds.items()
        ]
    print(table(["cache", "time", "over", "bytes"], rows, right=(1, 2)))
    sys.exit(any("OTHERS" in row for row in rows))


if __name__ == "__main__":
    main()
