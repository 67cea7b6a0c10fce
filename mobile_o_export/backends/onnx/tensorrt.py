"""What TensorRT needs to know and allows: its operator table, optimisation profiles, a build script."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from mobile_o_export.backends.base import GraphFile
from mobile_o_export.components.base import GraphSpec, Profile

OPERATOR_TABLE = Path(__file__).with_name("tensorrt_operators.json")
"""onnx-tensorrt's table at 10.1; what 10.1 parses, 10.3 and later parse."""


TENSORRT_OPSET = 20
"""The last that TensorRT 10.3 parses."""


@functools.cache
def _table() -> Mapping[str, Mapping[str, object]]:
    table: Mapping[str, Mapping[str, object]] = json.loads(OPERATOR_TABLE.read_text())["operators"]
    return table


def unsupported(operators: Iterable[str]) -> list[str]:
    """The ones of ``operators`` that TensorRT's ONNX parser lacks, sorted."""
    table = _table()
    return sorted(name for name in set(operators) if not table.get(name, {}).get("supported"))


PROFILES = "profiles.json"
BUILD_SCRIPT = "build_engines.py"


def write_build(folder: Path, graphs: Mapping[str, tuple[GraphFile, ...]]) -> None:
    """Writes ``profiles.json`` and ``build_engines.py`` into a target's folder.

    Args:
        folder: the target's.
        graphs: each component's graphs, their files below ``folder / component``.
    """
    content = {
        f"{component}/{graph.file}": [_profile(graph.spec, profile) for profile in graph.spec.profiles]
        for component, files in graphs.items()
        for graph in files
    }
    (folder / PROFILES).write_text(json.dumps(content, indent=1) + "\n")
    (folder / BUILD_SCRIPT).write_text(Path(__file__).with_name("build_engines.py").read_text())


def _profile(spec: GraphSpec, profile: Profile) -> dict[str, Any]:
    """One optimisation profile: the smallest, typical and largest shape of every dynamic input."""
    shapes = {}
    for tensor in spec.inputs:
        if tensor.symbols:
            shapes[tensor.name] = {
                bound: [
                    getattr(profile.extents[dim], extent) if isinstance(dim, str) else dim
                    for dim in tensor.shape
                ]
                for bound, extent in (("min", "minimum"), ("opt", "typical"), ("max", "maximum"))
            }
    return {"function": profile.function, "shapes": shapes}
