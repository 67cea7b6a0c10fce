"""TensorFlow's own interpreter reads every .tflite of a bundle as its manifest describes it, and runs it.

    python with_tensorflow.py BUNDLE

Needs this folder's requirements.txt, not the project. A line a file on stdout; exits with 1 on a difference.
"""

# ruff: noqa: T201 - it is a command.

from __future__ import annotations

import argparse
import json
import os
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")

import numpy as np
import tensorflow as tf

# TensorFlow names LiteRT as its successor here; this reads the files with what is still installed widely.
warnings.filterwarnings("ignore", message=r"(?s).*tf\.lite\.Interpreter is deprecated", category=UserWarning)


def signatures_by_file(bundle: Path) -> dict[Path, dict[str, Any]]:
    """The manifest's graphs by .tflite file and signature."""
    manifest = json.loads((bundle / "manifest.json").read_text())
    found: dict[Path, dict[str, Any]] = {}
    for target in manifest["targets"].values():
        if target["backend"] == "litert":
            for component in target["components"].values():
                for graph in component["graphs"]:
                    path = bundle / component["folder"] / graph["file"]
                    found.setdefault(path, {})[graph["entry"]] = graph["spec"]
    return found


def declared(specs: list[dict[str, Any]]) -> dict[str, tuple[str, tuple[int, ...]]]:
    return {spec["name"]: (spec["dtype"], tuple(spec["shape"])) for spec in specs}


def read(details: Mapping[str, Any]) -> dict[str, tuple[str, tuple[int, ...]]]:
    return {
        name: (np.dtype(found["dtype"]).name, tuple(found["shape"].tolist()))
        for name, found in details.items()
    }


def differences(path: Path, signatures: Mapping[str, Any]) -> list[str]:
    """What TensorFlow finds otherwise than the manifest says."""
    interpreter = tf.lite.Interpreter(str(path))
    if interpreter.get_signature_list().keys() != signatures.keys():
        return [f"has the signatures {sorted(interpreter.get_signature_list())}, not {sorted(signatures)}"]
    found = []
    for name, spec in signatures.items():
        runner = interpreter.get_signature_runner(name)
        inputs = runner.get_input_details()
        for kind, details in (("inputs", inputs), ("outputs", runner.get_output_details())):
            if read(details) != declared(spec[kind]):
                found.append(f"{name}: {kind} are {read(details)}, not {declared(spec[kind])}")
        # One is in the range of everything: pixels, tokens, lengths, positions, masks.
        outputs = runner(**{key: np.ones(detail["shape"], detail["dtype"]) for key, detail in inputs.items()})
        if {key: (value.dtype.name, value.shape) for key, value in outputs.items()} != declared(
            spec["outputs"]
        ):
            found.append(f"{name}: gives other outputs than it declares")
        found += [
            f"{name}: {key} is not finite" for key, value in outputs.items() if not np.isfinite(value).all()
        ]
    return found


def asked_for(description: str) -> tuple[Path, dict[Path, dict[str, Any]]]:
    """The bundle that the command names, and its graphs by .tflite file and signature."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("bundle", type=Path)
    bundle: Path = parser.parse_args().bundle
    files = signatures_by_file(bundle)
    if not files:
        sys.exit(f"{bundle}: its manifest lists no .tflite file")
    return bundle, files


def main() -> int:
    bundle, files = asked_for("Reads a bundle's .tflite files with TensorFlow.")
    failed = False
    for path, signatures in files.items():
        problems = differences(path, signatures)
        failed = failed or bool(problems)
        for problem in problems:
            print(f"{path.relative_to(bundle)}: {problem}", file=sys.stderr)
        if not problems:
            print(
                f"{path.relative_to(bundle)}: TensorFlow {tf.__version__} finds and runs the manifest's "
                f"{len(signatures)} signatures: {', '.join(signatures)}"
            )
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
