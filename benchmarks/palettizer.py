"""The palettizer next to coremltools' own, on the same weights in one run: seconds and squared error.

    pip install scikit-learn        # what coremltools' k-means needs
    python benchmarks/palettizer.py [--weights 4] [--bits 4 6] [--group 16] [--against TREE]

Weights are fp16 [channels, 4096], normal and heavy-tailed (Student's t with 3 degrees of freedom), a palette
for each group of 16 output channels. ``×`` is coremltools' time over ours, ``error`` our squared error over
theirs less one. coremltools prefers the package kmeans1d (the global optimum) to scikit-learn where it is
installed. With --against it is not coremltools but this project's palettizer of another checkout, at TREE.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from mobile_o_export import memory
from mobile_o_export.cli.console import table
from mobile_o_export.compression.palettes import palettize
from mobile_o_export.parity.metrics import Array
from mobile_o_export.quiet import quiet_vendor

COLUMNS = 4096
SCALE = 0.02


def samples(count: int) -> dict[str, Array]:
    """Weights as networks have them, and with heavier tails."""
    rng = np.random.default_rng(0)
    shape = (count // COLUMNS, COLUMNS)
    drawn = {"normal": rng.standard_normal(shape), "Student's t, 3": rng.standard_t(3, shape)}
    return {name: (SCALE * values).astype(np.float16) for name, values in drawn.items()}


def ours(weights: Array, bits: int, group: int) -> Array:
    """Weights after a way through our palettes."""
    return palettize(weights.reshape(-1, group * COLUMNS), bits).restored().reshape(weights.shape)


def theirs(weights: Array, bits: int, group: int) -> Array:
    """Weights after a way through coremltools'."""
    with quiet_vendor():
        from coremltools.optimize.coreml._quantization_passes import palettize_weights

        found: Any = palettize_weights.grouped_channelwise_compress(weights, "KMEANS", bits, 0, group)
    tables = found.lut.reshape(len(weights) // group, -1)
    indices = found.indices.reshape(len(tables), -1).astype(np.intp)
    return np.take_along_axis(tables, indices, axis=1).reshape(weights.shape)


def of_tree(tree: Path, weights: Array, bits: int, group: int) -> tuple[Array, float]:
    """Weights after a way through the palettes of the checkout at ``tree``, and the seconds that it took."""
    with tempfile.TemporaryDirectory() as folder:
        np.save(f"{folder}/weights.npy", weights.reshape(-1, group * COLUMNS))
        command = [sys.executable, "-c", OTHER, folder, str(bits)]
        environment = {**os.environ, "PYTHONPATH": str(tree.resolve())}
        subprocess.run(command, check=True, cwd=folder, env=environment)
        restored = np.load(f"{folder}/restored.npy").reshape(weights.shape)
        return restored, float(Path(folder, "seconds").read_text())


OTHER = """
import sys, time
from pathlib import Path
import numpy as np
from mobile_o_export.compression.palettes import palettize
folder, bits = Path(sys.argv[1]), int(sys.argv[2])
weights = np.load(folder / "weights.npy")
palettize(weights[:1], bits).restored()  # warm
started = time.perf_counter()
restored = palettize(weights, bits).restored()
(folder / "seconds").write_text(str(time.perf_counter() - started))
np.save(folder / "restored.npy", restored)
"""


def timed(work: Callable[[Array, int, int], Array], *arguments: Any) -> tuple[Array, float]:
    """What ``work`` gives and the seconds that it took."""
    started = time.perf_counter()
    return work(*arguments), time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--weights", type=float, default=4, help="millions (default 4; coremltools takes a while)"
    )
    parser.add_argument("--bits", type=int, nargs="+", default=[4, 6])
    parser.add_argument("--group", type=int, default=16, help="output channels that share a palette")
    parser.add_argument("--against", type=Path, help="a checkout of another commit", metavar="TREE")
    arguments = parser.parse_args()
    other = arguments.against
    count = round(arguments.weights * 1e6 / COLUMNS / arguments.group) * arguments.group * COLUMNS
    ours(next(iter(samples(COLUMNS * arguments.group).values())), 2, arguments.group)  # warm
    lines = []
    for name, weights in samples(count).items():
        wide = weights.astype(np.float64)
        for bits in arguments.bits:
            print(f"{name}, {bits} bits", file=sys.stderr)
            errors, seconds = [], []
            for work in (ours, theirs):
                if work is theirs and other is not None:
                    restored, took = of_tree(other, weights, bits, arguments.group)
                else:
                    restored, took = timed(work, weights, bits, arguments.group)
                errors.append(float(np.square(restored.astype(np.float64) - wide).sum()))
                seconds.append(took)
            snr = 10 * np.log10(np.square(wide).sum() / errors[0])
            lines.append(
                [name, bits, f"{seconds[0]:.2f} s", f"{seconds[1]:.2f} s", f"{seconds[1] / seconds[0]:.1f}",
                 f"{snr:.2f} dB", f"{100 * (errors[0] / errors[1] - 1):+.3f} %"]
            )  # fmt: skip
    peak = f"{memory.peak_bytes() / 1e9:.2f} GB"
    print(f"{count / 1e6:.1f} M weights, groups of {arguments.group} channels, peak memory {peak}")
    print(
        table(
            ["weights", "bits", "ours", "coremltools" if other is None else "other", "×", "SNR", "error"],
            lines,
            right=range(1, 7),
        )
    )


if __name__ == "__main__":
    main()
