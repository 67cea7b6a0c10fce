"""Puts a bundle through a campaign of corruptions, and counts what ``verify`` catches.

    python benchmarks/mutations.py BUNDLE [--seed N] [--only TEXT]

Hashes, sizes and the golden's digest are recomputed for every corruption, and so is what the verdict says
that it was given on: a script that wrote the bundle wrong would have done all that. Each is then judged by
the checks of files and records, next by running the component's outputs, last by whole chains
(``--pipeline``). Exits with 1 if one passes that is not known to be harmless.
"""

from __future__ import annotations

import argparse
import collections
import sys
import tempfile
from pathlib import Path

import numpy as np
from campaign import campaign
from corruptions import Corruption, NothingToChange, copied, seal

from mobile_o_export.bundle.verify import Wish, checks, verify_bundle
from mobile_o_export.errors import ExportError, UsageError
from mobile_o_export.parity.judge import Row, Status

CHECKS, OUTPUTS, CHAINS, PASSED = "checks", "outputs", "chains", "passed"


def caught_by(bundle: Path, corruption: Corruption) -> tuple[str, str]:
    """What notices a corruption first, and what it says."""
    targets = [corruption.target] if corruption.target else []
    components = [corruption.component] if corruption.component else []
    functions, chains = Wish(targets, components), Wish(targets, chains=True)
    try:
        for row in checks(bundle, functions):
            if row.status is not Status.PASSED:
                return CHECKS, reason_of(row)
        for wish, what in ((functions, OUTPUTS), (chains, CHAINS)):
            try:
                rows = verify_bundle(bundle, wish, lambda *_: None)
            except UsageError:
                # A bundle without all components of a task has no chains to run.
                continue
            if failed := [row for row in rows if row.status is not Status.PASSED]:
                return what, reason_of(failed[0])
    except UsageError:
        return PASSED, ""
    except ExportError as error:
        return CHECKS, str(error)
    return PASSED, ""


def reason_of(row: Row) -> str:
    return f"{row.target} {row.component} {row.output}: {row.reason}"


def harmed(bundle: Path, corruption: Corruption, folder: Path, seed: int) -> Path:
    """A copy of ``bundle`` with one thing wrong, sealed again."""
    copy = copied(bundle, folder)
    corruption.edit(copy, np.random.default_rng(seed))
    try:
        seal(copy, verdict=True)
    except (ValueError, KeyError, OSError):
        # What is wrong leaves nothing to seal.
        seal(copy, verdict=False)
    return copy


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="corruptions whose name holds this")
    arguments = parser.parse_args()
    found = [corruption for corruption in campaign(arguments.bundle) if arguments.only in corruption.name]
    counts: collections.Counter[str] = collections.Counter()
    missed = []
    for index, corruption in enumerate(found):
        with tempfile.TemporaryDirectory(dir=arguments.bundle.parent) as work:
            try:
                copy = harmed(arguments.bundle, corruption, Path(work) / "bundle", arguments.seed + index)
            except NothingToChange:
                continue
            what, reason = caught_by(copy, corruption)
        if what == PASSED and corruption.harmless:
            what, reason = "harmless", corruption.harmless
        counts[what] += 1
        if what == PASSED:
            missed.append(corruption.name)
        print(f"{what:8}  {corruption.name}  [{reason[:120]}]", flush=True)
    told = ", ".join(f"{count} {what}" for what, count in counts.most_common())
    print(f"\n{counts.total()} corruptions: {told}")
    for name in missed:
        print(f"MISSED: {name}", file=sys.stderr)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
