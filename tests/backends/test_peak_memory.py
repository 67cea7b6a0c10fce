"""The peak of lowering is what ``plan`` says beforehand."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mobile_o_export.checkpoint import Checkpoint
from mobile_o_export.plan import plan
from mobile_o_export.targets import load_targets

LOWER = """
import sys, tempfile
from pathlib import Path
from mobile_o_export import memory
from mobile_o_export.backends.registry import backend
from mobile_o_export.checkpoint import Checkpoint
from mobile_o_export.plan import plan
from mobile_o_export.quiet import quiet_vendor
from mobile_o_export.targets import load_targets
checkpoint, (target,) = Checkpoint.open(Path(sys.argv[1])), load_targets([sys.argv[2]])
(item,) = plan(checkpoint, [target], [sys.argv[3]])
with tempfile.TemporaryDirectory() as folder, quiet_vendor():
    backend(target.backend).lower(item.request, checkpoint, Path(folder), lambda _: None)
print(memory.peak_bytes())
"""

WITHIN = 1.2
LEAST = 0.6
"""A smaller share would say that the estimate means nothing; packages take less on some hosts."""


@pytest.mark.slow
@pytest.mark.parametrize("target", ["coreml-ane", "litert-cpu", "tensorrt-orin"])
def test_a_component_is_lowered_in_the_memory_that_plan_names(
    reference_folder: Path, reference_checkpoint: Checkpoint, target: str
) -> None:
    (item,) = plan(reference_checkpoint, load_targets([target]), ["mcp"])
    # Each thread more has an arena of its own.
    run = subprocess.run(
        [sys.executable, "-c", LOWER, reference_folder, target, "mcp"],
        env={**os.environ, "OMP_NUM_THREADS": "2"},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    peak = int(run.stdout.splitlines()[-1])
    assert LEAST * item.memory_bytes < peak < WITHIN * item.memory_bytes
