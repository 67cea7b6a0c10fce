from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

DATA = Path(__file__).parents[1] / "data"


@pytest.fixture(scope="session")
def reference_folder() -> Path:
    """The checkpoint that the reference implementation wrote. Read only."""
    return DATA / "reference-tiny"


@pytest.fixture
def folder(tmp_path: Path, reference_folder: Path) -> Path:
    """A copy of the reference checkpoint, to be damaged."""
    skipped = shutil.ignore_patterns("reference_outputs.safetensors", "image.png")
    return Path(shutil.copytree(reference_folder, tmp_path / "checkpoint", ignore=skipped))


@pytest.fixture
def edit_config(folder: Path) -> Callable[..., None]:
    """Sets keys of the copy's config.json; a value of None removes the key."""

    def edit(**changes: Any) -> None:
        path = folder / "config.json"
        config = json.loads(path.read_text()) | changes
        removed = {key for key, value in changes.items() if value is None}
        path.write_text(json.dumps({key: value for key, value in config.items() if key not in removed}))

    return edit


@pytest.fixture
def edit_tensors(folder: Path) -> Callable[..., None]:
    """Rewrites the copy's weights after ``change`` has had its way with them."""

    def edit(change: Callable[[dict[str, Any]], Any]) -> None:
        from safetensors.torch import load_file, save_file

        path = folder / "model.safetensors"
        tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}
        change(tensors)
        save_file(tensors, path, {"format": "pt"})

    return edit


@pytest.fixture
def shard(folder: Path) -> Callable[[], Path]:
    """Splits the copy's weights in two by name; gives the index's path."""

    def split() -> Path:
        from safetensors.torch import load_file, save_file

        tensors = {name: tensor.clone() for name, tensor in load_file(folder / "model.safetensors").items()}
        (folder / "model.safetensors").unlink()
        weight_map = {}
        for number, part in enumerate((sorted(tensors)[:200], sorted(tensors)[200:]), 1):
            file = f"model-{number:05}-of-00002.safetensors"
            save_file({name: tensors[name] for name in part}, folder / file)
            weight_map |= dict.fromkeys(part, file)
        index = folder / "model.safetensors.index.json"
        index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
        return index

    return split
