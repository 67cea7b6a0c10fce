"""Files do not depend on the dtype that a checkpoint stores the same numbers in."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from mobile_o_export.backends.registry import backend
from mobile_o_export.checkpoint import Checkpoint
from mobile_o_export.plan import plan
from mobile_o_export.targets import load_targets

WEIGHTS = "model.safetensors"


@pytest.fixture(scope="module")
def checkpoints(reference_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Checkpoint]:
    """The same numbers in 16 bits and in 32."""
    found = {}
    halves = {
        name: tensor.bfloat16() if tensor.is_floating_point() else tensor
        for name, tensor in load_file(reference_folder / WEIGHTS).items()
    }
    wide = {name: value.float() if value.is_floating_point() else value for name, value in halves.items()}
    for name, tensors in (("bf16", halves), ("fp32", wide)):
        folder = tmp_path_factory.mktemp(name) / "checkpoint"
        shutil.copytree(reference_folder, folder)
        save_file(tensors, folder / WEIGHTS)
        found[name] = Checkpoint.open(folder)
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "target"),
    [
        ("mcp", "coreml-ane"),
        ("mcp", "onnx-cpu"),
        ("mcp", "tensorrt-orin"),
        # Of it parts are rewritten.
        ("vision_encoder", "litert-cpu"),
        ("vision_encoder", "tensorrt-orin"),
    ],
)
def test_the_same_numbers_give_the_same_files(
    checkpoints: dict[str, Checkpoint], tmp_path: Path, target: str, name: str
) -> None:
    written = []
    for dtype, checkpoint in checkpoints.items():
        (item,) = plan(checkpoint, load_targets([target]), [name])
        assert item.request is not None
        folder = tmp_path / dtype
        folder.mkdir()
        backend(load_targets([target])[0].backend).lower(item.request, checkpoint, folder, lambda _: None)
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        written.append({path.relative_to(folder): path.read_bytes() for path in files})
        assert checkpoint.component_state_dict(name)[WEIGHT[name]].dtype == DTYPES[dtype]
    assert written[0] == written[1]


DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
WEIGHT = {
    "mcp": "model.diffusion_connector.fusion.input_compress.0.weight",
    "vision_encoder": "model.mm_projector.0.weight",
}
