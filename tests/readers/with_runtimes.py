"""The oldest runtimes that a bundle's manifest names compute its LiteRT and ONNX files as the newest do.

    python with_runtimes.py BUNDLE

Needs this folder's requirements.txt, not the project, and an index to take the runtimes from; they lie below
the environment afterwards. A line a target on stdout; exits with 1 on a difference.
"""

# ruff: noqa: T201 - it is a command.

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

RUNTIMES = {"litert": "ai-edge-litert", "onnx": "onnxruntime"}
"""By backend."""

SIZES = {"S": 7, "P": 9, "M": 16}
"""Of dynamic axes: a sequence, the cache before it, both."""

LEAST_DB = 25.0
"""Kernels that make int8 of activations, each in its way, leave 32 dB of the demo's DiT; 1.1's leave 22."""


# --- within one runtime ---


def inputs(specs: list[dict[str, Any]]) -> dict[str, Any]:
    """The same for every runtime. One is in the range of all that are no floats, and of masks."""
    generator, given = np.random.default_rng(0), {}
    for spec in specs:
        shape = [SIZES.get(size, size) for size in spec["shape"]]
        floats = spec["dtype"].startswith("float") and not spec["name"].endswith("mask")
        given[spec["name"]] = (generator.random(shape) / 2 if floats else np.ones(shape)).astype(
            spec["dtype"]
        )
    return given


def computed(bundle: Path, target: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Every result of every graph by component, graph and name."""
    for name, component in target["components"].items():
        for graph in component["graphs"]:
            path, spec = bundle / component["folder"] / graph["file"], graph["spec"]
            given = inputs(spec["inputs"])
            if target["backend"] == "litert":
                runtime = importlib.import_module("ai_edge_litert.interpreter")
                found = runtime.Interpreter(str(path)).get_signature_runner(graph["entry"])(**given)
            else:
                runtime = importlib.import_module("onnxruntime")
                session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
                names = [output.name for output in session.get_outputs()]
                found = dict(zip(names, session.run(names, given), strict=True))
            yield from ((f"{name} {spec['name']} {key}", value) for key, value in found.items())


# --- one runtime beside another ---


def installed(package: str, version: str) -> Path:
    """Where ``package`` alone lies, in ``version``, in the index's newest if it is empty."""
    folder = Path(sys.prefix) / "runtimes" / f"{package}-{version or 'newest'}"
    if not version or not folder.exists():
        wanted = f"{package}=={version}" if version else package
        pip = [sys.executable, "-m", "pip", "install", "-qq", "--disable-pip-version-check", "--no-deps"]
        subprocess.run([*pip, "--upgrade", "--target", str(folder), wanted], check=True)
    return folder


def run(bundle: Path, target: str, package: str, version: str, out: Path) -> tuple[str, dict[str, Any]]:
    """The version that ran, and what it computed."""
    environment = os.environ | {"PYTHONPATH": str(installed(package, version))}
    command = [sys.executable, __file__, str(bundle), "--target", target, "--out", str(out)]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if ended.returncode:
        raise RuntimeError(f"{package} {version}: {ended.stderr.strip().splitlines()[-1]}")
    return ended.stdout.strip(), dict(np.load(out))


def decibels(expected: Any, found: Any) -> float:
    expected, found = expected.astype(np.float64), found.astype(np.float64)
    noise = np.square(expected - found).sum()
    return float(10 * np.log10(np.square(expected).sum() / noise)) if noise else float("inf")


def main() -> int:
    parser = argparse.ArgumentParser(
        description="Runs a bundle's files in the oldest runtimes and the newest."
    )
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--target", help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    targets = json.loads((options.bundle / "manifest.json").read_text(encoding="utf-8"))["targets"]
    if options.out:
        target = targets[options.target]
        np.savez(options.out, **dict(computed(options.bundle, target)))
        print(importlib.metadata.version(RUNTIMES[target["backend"]]))
        return 0
    failed, out = False, Path(sys.prefix) / "runtimes" / "out.npz"
    for name, target in targets.items():
        if target["backend"] not in RUNTIMES:
            continue
        package = RUNTIMES[target["backend"]]
        try:
            newest, expected = run(options.bundle, name, package, "", out)
            oldest, found = run(options.bundle, name, package, target["least_runtimes"][package], out)
        except RuntimeError as error:
            failed = True
            print(f"{name}: {error}", file=sys.stderr)
            continue
        level, place = min((decibels(value, found[place]), place) for place, value in expected.items())
        failed = failed or not level >= LEAST_DB
        print(
            f"{name}: {package} {oldest} computes {len(expected)} results as {newest} does; "
            f"the furthest, {place}, to {level:.1f} dB"
        )
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
