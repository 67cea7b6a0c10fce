"""Bundles with one thing wrong, sealed again so that hashes agree and only what is computed can tell."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from mobile_o_export.bundle.manifest import file_entries, read_manifest, write_manifest
from mobile_o_export.bundle.verdicts import judged_digest
from mobile_o_export.checkpoint import Checkpoint
from mobile_o_export.components.sizes import MCP_PREFIX
from mobile_o_export.parity.metrics import Array

TARGETS = ("coreml-ane", "litert-cpu", "tensorrt-orin")
SQUARE_WEIGHT = f"{MCP_PREFIX}sequence_refiners.0.conv.pointwise.weight"
"""Square, so that it still fits when it is transposed, and stored as it is by all three formats."""

SPEC = "Data/com.apple.CoreML/model.mlmodel"
WEIGHTS = "Data/com.apple.CoreML/weights/weight.bin"


def linked_copy(bundle: Path, folder: Path) -> Path:
    """A copy that shares its files; :func:`replace` gives it its own."""
    return Path(shutil.copytree(bundle, folder, copy_function=os.link))


def replace(path: Path, content: bytes) -> None:
    """Writes ``path`` anew; what shared its content keeps it."""
    path.unlink(missing_ok=True)
    path.write_bytes(content)


def reseal(bundle: Path, **changes: object) -> None:
    """Makes the manifest's file list that of what is there, and the verdict one on just that."""
    manifest = read_manifest(bundle).model_copy(update={"files": file_entries(bundle), **changes})
    path = bundle / "parity.json"
    try:
        report = json.loads(path.read_text())
        replace(path, json.dumps({**report, "judged": judged_digest(manifest)}).encode())
    except (OSError, ValueError):
        # The verdict itself is what is wrong.
        pass
    for name in ("manifest.json", "manifest.sha256"):
        (bundle / name).unlink()
    write_manifest(bundle, manifest.model_copy(update={"files": file_entries(bundle)}))


def weight_file(bundle: Path, target: str) -> Path:
    """Where the MCP's weights lie."""
    names = {
        "coreml-ane": f"mcp.mlpackage/{WEIGHTS}",
        "litert-cpu": "mcp.tflite",
        "tensorrt-orin": "project.onnx.data",
    }
    return bundle / target / "mcp" / names[target]


def edit_weight(bundle: Path, target: str, checkpoint: Checkpoint, change: Callable[[Array], Array]) -> None:
    """Puts ``change`` of the square weight [W, W, 1] in its place in the MCP's file."""
    import torch

    weights = checkpoint.state_dict(MCP_PREFIX, torch.float16)
    weight = weights[SQUARE_WEIGHT.removeprefix(MCP_PREFIX)].numpy()
    path = weight_file(bundle, target)
    content = path.read_bytes()
    assert content.count(weight.tobytes()) == 1
    changed = np.ascontiguousarray(change(weight.copy()))
    assert (changed.dtype, changed.size) == (np.float16, weight.size)
    assert changed.tobytes() != weight.tobytes()
    replace(path, content.replace(weight.tobytes(), changed.tobytes()))


def edit_onnx(path: Path, change: Callable[[Any], object]) -> None:
    """Writes the ONNX file ``path`` after ``change`` of its graph."""
    import onnx

    model = onnx.load(path, load_external_data=False)
    change(model.graph)
    replace(path, model.SerializeToString())


def rename_onnx(graph: Any, names: dict[str, str]) -> None:
    """Other names for values, wherever they are used."""
    for value in (*graph.input, *graph.output):
        value.name = names.get(value.name, value.name)
    for node in graph.node:
        for references in (node.input, node.output):
            references[:] = [names.get(name, name) for name in references]


def edit_coreml(package: Path, change: Callable[[Any], object]) -> None:
    """Writes the package's specification after ``change`` of each of its MIL functions.

    The declared interface follows the program, as in a package that was converted wrongly: one that
    contradicts itself would be refused before it runs.
    """
    from coremltools.proto import Model_pb2

    model = Model_pb2.Model()
    model.ParseFromString((package / SPEC).read_bytes())
    for name in sorted(model.mlProgram.functions):
        function = model.mlProgram.functions[name]
        features = {declared.name: declared for declared in model.description.functions}
        declared = features.get(name, model.description)
        (block,) = blocks(function)
        before = list(block.outputs)
        change(function)
        now = dict(zip(before, block.outputs, strict=False))
        for feature in declared.output:
            feature.name = now.get(feature.name, feature.name)
    replace(package / SPEC, model.SerializeToString())


def blocks(function: Any) -> Iterator[Any]:
    """The code of a MIL function."""
    yield from function.block_specializations.values()


def rename_coreml(function: Any, names: dict[str, str]) -> None:
    """Other names for values, wherever they are used."""
    for value in function.inputs:
        value.name = names.get(value.name, value.name)
    for block in blocks(function):
        block.outputs[:] = [names.get(name, name) for name in block.outputs]
        for operation in block.operations:
            for value in operation.outputs:
                value.name = names.get(value.name, value.name)
            for argument in operation.inputs.values():
                for binding in argument.arguments:
                    if binding.WhichOneof("binding") == "name":
                        binding.name = names.get(binding.name, binding.name)


def edit_litert(path: Path, change: Callable[[Any], object]) -> None:
    """Writes the .tflite ``path`` after ``change`` of each of its signatures."""
    from ai_edge_litert.tools import flatbuffer_utils

    model = flatbuffer_utils.read_model(str(path))
    for signature in model.signatureDefs:
        change(signature)
    path.unlink()
    flatbuffer_utils.write_model(model, str(path))


def rename_litert(entries: list[Any], names: dict[bytes, bytes]) -> None:
    """Other names for a signature's inputs or outputs."""
    for entry in entries:
        entry.name = names.get(entry.name, entry.name)
