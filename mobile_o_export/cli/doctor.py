"""``doctor``: what works on this machine."""

from __future__ import annotations

import platform
import shutil
import sys
from pathlib import Path
from typing import Annotated

import typer

from mobile_o_export import __version__
from mobile_o_export.backends.registry import BACKEND_NAMES, backend
from mobile_o_export.backends.versions import installed, missing
from mobile_o_export.cli import screen
from mobile_o_export.cli.console import megabytes, table
from mobile_o_export.errors import MissingToolError
from mobile_o_export.targets import load_target, target_names

CORE = ("torch", "transformers", "diffusers", "safetensors", "tokenizers", "numpy", "pillow")


def doctor(
    json_output: Annotated[
        bool, typer.Option("--json", help="Print a JSON object instead of a table.")
    ] = False,
) -> None:
    """Say what works on this machine, and what is missing."""
    probes = [backend(name).probe() for name in BACKEND_NAMES]
    absent = missing(CORE)
    free = shutil.disk_usage(Path.cwd()).free
    if json_output:
        content = {
            "schema": 1,
            "version": __version__,
            "python": platform.python_version(),
            "platform": platform.platform(),
            "packages": installed(CORE),
            "missing": absent,
            "disk_free_bytes": free,
            "backends": [
                {
                    "name": probe.backend,
                    "runtime": probe.runtime,
                    "versions": dict(probe.versions),
                    "problem": probe.problem,
                    "remedy": probe.remedy,
                }
                for probe in probes
            ],
        }
        screen.result_json(content)
    else:
        core = ", ".join(f"{name} {version}" for name, version in installed(CORE).items())
        screen.result(
            f"mobile-o-export {__version__}, Python {platform.python_version()}, {platform.platform()}"
        )
        screen.result(f"PyTorch side: {core or 'nothing installed'}")
        screen.result(f"free disk here: {megabytes(free)}\n")
        rows = [
            [
                probe.backend,
                "ok" if not probe.problem else probe.problem,
                probe.runtime,
                ", ".join(f"{name} {version}" for name, version in probe.versions.items()),
            ]
            for probe in probes
        ]
        screen.result(table(["backend", "state", "runs files with", "packages"], rows))
        targets = ", ".join(f"{name} ({load_target(name).backend})" for name in target_names())
        screen.result(f"\ntargets: {targets}")
        if sys.platform != "darwin":
            screen.result(
                "Core ML itself runs on macOS only: here its packages are evaluated by the MIL interpreter."
            )
    problems = [f"{probe.problem}: {probe.remedy}" for probe in probes if probe.problem]
    if absent:
        problems.insert(0, f"not installed: {', '.join(absent)}: pip install {' '.join(absent)}")
    if problems:
        raise MissingToolError("; ".join(problems))
