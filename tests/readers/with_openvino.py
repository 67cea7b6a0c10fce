"""OpenVINO reads every .tflite of a bundle and computes its first signature as TensorFlow Lite does.

    python with_openvino.py BUNDLE

Needs this folder's requirements.txt, not the project. A line a file on stdout; exits with 1 on a difference.
OpenVINO reads a file's first subgraph alone, and restores weights where LiteRT multiplies integers.
"""

# ruff: noqa: T201 - it is a command.

from __future__ import annotations

import os
import sys
import warnings
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")

import numpy as np
import openvino
import tensorflow as tf
from with_runtimes import decibels
from with_tensorflow import asked_for

warnings.filterwarnings("ignore", message=r"(?s).*tf\.lite\.Interpreter is deprecated", category=UserWarning)

VERSION = openvino.__version__.partition("-")[0]

LEAST_DB = 20.0
"""Activations that LiteRT rounds to 8 bits leave 27 dB in the demo's DiT; weights read wrongly leave none."""


def level(path: Path, first: str) -> float:
    """How near OpenVINO's results are to TensorFlow Lite's on the same inputs, in dB; the worst of them."""
    model = openvino.Core().compile_model(str(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    generator, given = np.random.default_rng(0), {}
    for port in model.inputs:
        shape, kind, name = list(port.shape), port.element_type.to_dtype(), port.any_name
        floats = np.issubdtype(kind, np.floating) and not name.endswith("mask")
        # One is in the range of everything that is no float: tokens, lengths, positions, masks.
        given[name] = (generator.random(shape) if floats else np.ones(shape)).astype(kind)
    found = model(given)
    runner = tf.lite.Interpreter(str(path)).get_signature_runner(first)
    expected = runner(**{name.removeprefix(f"{first}_"): value for name, value in given.items()})
    # Tensors are called after the signature and its names, what is given with "_output" behind.
    results = {port.any_name.removeprefix(f"{first}_").removesuffix("_output"): found[port] for port in found}
    return min(decibels(value, np.asarray(results[name])) for name, value in expected.items())


def main() -> int:
    bundle, files = asked_for("Reads a bundle's .tflite files with OpenVINO.")
    failed = False
    for path, signatures in files.items():
        first, name = next(iter(signatures)), path.relative_to(bundle)
        try:
            found = level(path, first)
        except RuntimeError as error:
            failed = True
            print(f"{name}: OpenVINO {VERSION} does not read it: {error}", file=sys.stderr)
            continue
        failed = failed or not found >= LEAST_DB
        print(f"{name}: OpenVINO {VERSION} computes {first} to {found:.1f} dB of TensorFlow Lite")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
