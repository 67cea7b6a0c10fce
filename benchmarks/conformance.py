"""coremltools' own tests, predicted by the MIL interpreter: a table by operator, and what has got worse.

Usage: conformance.py [--cases N] [--tests N] [--seed N] [--workers N] [--record] [--list FATE] [FOLDER…]

FOLDERs are below the installed coremltools, by default all that test ML Programs. Needs pytest-mock,
parameterized and scikit-learn, which the tests import.

The fate of a test:
    passed    it predicted, and what it compares is right
    silent    it passed without a prediction, and says nothing of the interpreter
    skipped   it skips itself, or expects to fail on Core ML too
    before    it failed before any prediction: a conversion that this PyTorch or NumPy does not allow
    beyond    it asks for something else than an ML Program's results, or took too long
    lacking   the interpreter has no such operator, parameter or type
    refused   the interpreter takes the package for damaged, or the inputs for wrong
    crashed   an operator failed
    wrong     it predicted, and its numbers are not those that the test compares them with
    after     it predicted, and something else failed: a message, the text of the program

Exit codes: 0; 1 where a test function fares worse than conformance.json has it.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

RECORDED = Path(__file__).with_suffix(".json")
FOLDERS = (
    "converters/mil/mil/ops/tests",
    "converters/mil/mil/tests/test_programs.py",
    "converters/mil/mil/passes/tests",
    "converters/mil/backend/mil",
    "converters/mil/frontend/torch/test",
    "converters/mil/frontend/milproto",
    "converters/mil/test_inputs_outputs_shape.py",
    "converters/mil/test_flexible_shape_inputs.py",
    "test/api",
    "test/ml_program",
    "test/optimize/coreml",
)
PREDICTED = ("passed", "lacking", "refused", "crashed", "wrong", "after")
FAILED = PREDICTED[1:]
JUDGED = tuple(fate for fate in PREDICTED if fate != "after")
"""Of these the interpreter's share of passes is taken: what is no matter of numbers says nothing of it."""

Line = dict[str, Any]


def run(folders: list[str], cases: int, tests: int, seed: int, workers: int) -> list[Line]:
    """A line for each test that was run."""
    spec = importlib.util.find_spec("coremltools")
    assert spec is not None
    assert spec.origin is not None
    package, here = Path(spec.origin).parent, Path(__file__).parent
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "fates"
        environment = os.environ | {
            "CONFORMANCE_OUT": str(out),
            "CONFORMANCE_CASES": str(cases),
            "CONFORMANCE_TESTS": str(tests),
            "CONFORMANCE_SEED": str(seed),
            "INCLUDE_MIL_FP32_UNIT_TESTS": "1",
            "OMP_NUM_THREADS": "1",
            "PYMIL_TEST_TARGETS": "mlprogram",
            "PYTHONDONTWRITEBYTECODE": "1",
            "PYTHONHASHSEED": "0",
            "PYTHONPATH": os.pathsep.join([str(here), str(here.parent), os.environ.get("PYTHONPATH", "")]),
            "TMPDIR": folder,
        }
        command = [sys.executable, "-m", "pytest", "-p", "conformance_plugin", "-p", "no:cacheprovider"]
        command += ["-c", os.devnull, "--rootdir", folder, "-q", "--tb=no", "--no-header", "-W", "ignore"]
        command += ["--continue-on-collection-errors", "-p", "no:xdist"]
        command += [str(package / name) for name in folders if (package / name).exists()]
        # Not by xdist: some tests are named after random numbers, and its processes have to agree on names.
        processes = [
            subprocess.Popen(
                command,
                env=environment | {"CONFORMANCE_SHARD": f"{shard}/{workers}"},
                cwd=folder,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            for shard in range(workers)
        ]
        ended = [process.communicate()[0] for process in processes]
        lines = [
            json.loads(line)
            for path in sorted(out.parent.glob("fates*.jsonl"))
            for line in path.read_text(encoding="utf-8").splitlines()
        ]
    if not lines:
        sys.exit(f"no test was run: {ended[0][-4000:]}")
    return lines


def by_operator(lines: list[Line]) -> dict[str, Counter[str]]:
    """How the tests of each operator that predict fared."""
    table: dict[str, Counter[str]] = defaultdict(Counter)
    for line in lines:
        if line["fate"] in PREDICTED:
            for operator in line["operators"] or ["(not loaded)"]:
                table[operator][line["fate"]] += 1
    return dict(sorted(table.items()))


def failures(lines: list[Line]) -> dict[str, dict[str, Any]]:
    """By test function: how many of its cases failed, how, and why one of them did."""
    found: dict[str, dict[str, Any]] = {}
    for line in sorted(lines, key=lambda line: (line["function"], line["id"])):
        if line["fate"] in FAILED:
            entry = found.setdefault(line["function"], {"reason": f"{line['fate']}: {line['reason'][:160]}"})
            entry[line["fate"]] = entry.get(line["fate"], 0) + 1
    return found


def worse(found: dict[str, dict[str, Any]], recorded: dict[str, Any], *, same_cases: bool) -> list[str]:
    """Test functions that fail in a way that is not recorded, or, of the same cases, more often."""
    complaints = []
    for function, entry in found.items():
        known = recorded["failures"].get(function, {})
        for fate in FAILED:
            count, before = entry.get(fate, 0), known.get(fate, 0)
            if count > before and (same_cases or not before):
                complaints.append(f"{function}: {count} {fate}, recorded {before}; {entry['reason']}")
    return complaints


def main() -> int:
    parser = argparse.ArgumentParser(description="coremltools' own tests, predicted by the MIL interpreter")
    parser.add_argument("folders", nargs="*", default=FOLDERS)
    parser.add_argument("--cases", type=int, default=2, help="of each test function and precision; 0: all")
    parser.add_argument("--tests", type=int, default=0, help="in all; 0: no limit")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--record", action="store_true", help="write conformance.json anew")
    parser.add_argument("--list", metavar="FATE", help="print the tests of this fate and why")
    options = parser.parse_args()
    lines = run(list(options.folders), options.cases, options.tests, options.seed, options.workers)
    version = importlib.metadata.version("coremltools")
    fates = Counter(line["fate"] for line in lines)
    table, found = by_operator(lines), failures(lines)
    print(f"{'operator':34}" + "".join(f"{fate:>9}" for fate in PREDICTED))
    for operator, counts in table.items():
        print(f"{operator:34}" + "".join(f"{counts[fate] or '':>9}" for fate in PREDICTED))
    judged = sum(fates[fate] for fate in JUDGED)
    print(
        f"\ncoremltools {version}, {len(lines)} tests: "
        + ", ".join(f"{n} {f}" for f, n in fates.most_common())
    )
    share = fates["passed"] / max(judged, 1)
    print(f"{fates['passed']} of {judged} whose predictions are compared pass: {share:.1%}")
    for line in lines:
        if line["fate"] == options.list:
            print(f"{line['function']} {line['id']}: {line['reason']}")
    asked = {"coremltools": version, "cases": options.cases, "tests": options.tests, "seed": options.seed}
    if options.record:
        operators = {name: dict(counts) for name, counts in table.items()}
        record = {"asked": asked, "fates": dict(fates), "failures": found, "operators": operators}
        RECORDED.write_text(json.dumps(record, indent=1, sort_keys=True) + "\n", encoding="utf-8")
        return 0
    recorded = json.loads(RECORDED.read_text(encoding="utf-8"))
    complaints = worse(found, recorded, same_cases=asked == recorded["asked"])
    for complaint in complaints:
        print(f"worse: {complaint}", file=sys.stderr)
    return 1 if complaints else 0


if __name__ == "__main__":
    sys.exit(main())
