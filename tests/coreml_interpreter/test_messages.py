"""A package is read without coremltools, by its field numbers."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mobile_o_export.backends.coreml.interpreter.messages import MESSAGES, SCALARS

EXPORTERS = [
    *("coremltools", "litert_torch", "ai_edge_litert", "onnx", "onnxruntime", "onnxscript", "onnx_ir"),
    *("transformers", "diffusers", "accelerate", "peft", "tensorflow", "jax"),
]
"""What a package's exporters need, and its interpreter does not."""


def theirs() -> dict[str, Any]:
    """coremltools' descriptors by the last word of their names."""
    from coremltools.proto import FeatureTypes_pb2, MIL_pb2, Model_pb2

    found: dict[str, Any] = {}

    def add(descriptor: Any) -> None:
        # Another message may have the name as well; MIL's goes before.
        found.setdefault(descriptor.name, descriptor)
        for nested in descriptor.nested_types:
            add(nested)

    for module in (MIL_pb2, FeatureTypes_pb2, Model_pb2):
        for descriptor in module.DESCRIPTOR.message_types_by_name.values():
            add(descriptor)
    return found


@pytest.mark.parametrize("name", [name for name in MESSAGES if name != "Empty"])
def test_fields_are_coremltools_own(name: str) -> None:
    descriptor = theirs()[name]
    for field_name, text in MESSAGES[name].items():
        number, *words = text.split()
        field = descriptor.fields_by_name[field_name]
        assert field.number == int(number)
        assert field.is_repeated == (words[0] in ("repeated", "map"))
        group = field.containing_oneof
        assert (group.name if group else "") == (words[-1] if "in" in words else "")
        kind = words[1] if words[0] in ("repeated", "map") else words[0]
        if words[0] == "map":
            field = field.message_type.fields_by_name["value"]
        if kind in SCALARS:
            # What is an enumeration there is a number here.
            types = {"int32": (field.TYPE_INT32, field.TYPE_ENUM)}
            assert field.type in types.get(kind, (getattr(field, f"TYPE_{kind.upper()}"),))
        elif kind != "Empty":
            assert field.message_type.name == kind


def test_a_package_runs_where_no_exporter_is_installed(
    build_program: Any, save_program: Any, tmp_path: Path
) -> None:
    from coremltools.converters.mil import Builder as mb  # noqa: N813

    x = np.array([1, -2, 3], np.float32)
    save_program(build_program({"x": x}, {"it": lambda x: mb.relu(x=x)}), tmp_path / "relu.mlpackage")
    np.save(tmp_path / "x.npy", x)
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({EXPORTERS!r})); "
        "from mobile_o_export.cli.main import main; sys.exit(main())"
    )
    arguments = ["mil", "run", "relu.mlpackage", "--input", "x=x.npy", "--out", "results"]
    ended = subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr
    assert np.load(tmp_path / "results" / "out_it_0.npy").tolist() == [1, 0, 3]
