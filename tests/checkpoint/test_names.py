"""Checkpoints under the names that training leaves: DDP's, torch.compile's, PEFT's, one set or two."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from mobile_o_export.checkpoint import Checkpoint
from mobile_o_export.checkpoint.inspection import inspect
from mobile_o_export.checkpoint.names import unwrapped
from mobile_o_export.errors import CheckpointError

PEFT = "base_model.model."

Rename = Callable[[str], str]


@pytest.fixture
def rename(reference_folder: Path, tmp_path: Path) -> Callable[[Rename], Path]:
    """The fixture checkpoint, its tensors under other names."""

    def make(change: Rename) -> Path:
        folder = Path(shutil.copytree(reference_folder, tmp_path / "checkpoint"))
        tensors = load_file(folder / "model.safetensors")
        save_file({change(name): value for name, value in tensors.items()}, folder / "model.safetensors")
        return folder

    return make


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda name: f"module.{name}", "DDP"),
        (lambda name: f"_orig_mod.{name}", "torch.compile"),
        (lambda name: f"module._orig_mod.{name}", "DDP of a compiled model"),
        (lambda name: f"_orig_mod.module.{name}", "a compiled DDP"),
        (lambda name: f"{PEFT}{name}", "PEFT"),
        (lambda name: f"module.{PEFT}{name}", "DDP of PEFT"),
        (lambda name: name.replace("model.dit.", "model.dit._orig_mod."), "the DiT alone compiled"),
        (lambda name: f"{PEFT}{name}" if "model.layers" in name else name, "PEFT around a part"),
    ],
)
def test_wrappers_are_taken_off(
    rename: Callable[[Rename], Path], reference_folder: Path, change: Rename, why: str
) -> None:
    found, plain = Checkpoint.open(rename(change)), Checkpoint.open(reference_folder)
    assert found.digest == plain.digest
    assert found.second_copies == ()
    wanted = plain.state_dict("")
    for name, tensor in found.state_dict("").items():
        assert torch.equal(tensor, wanted[name])


def test_a_second_copy_under_peft_s_names_is_left_out(reference_folder: Path, tmp_path: Path) -> None:
    """As in the published Mobile-O-0.5B-SFT; transformers reads tensors under their own names alone."""
    folder = Path(shutil.copytree(reference_folder, tmp_path / "checkpoint"))
    tensors = load_file(folder / "model.safetensors")
    copies = {f"{PEFT}{n}": t + 1 for n, t in tensors.items() if ".vision_tower." in n or ".dit." in n}
    save_file({**copies, **tensors}, folder / "model.safetensors")
    found = Checkpoint.open(folder)
    assert found.digest == Checkpoint.open(reference_folder).digest
    assert inspect(found).second_copies == len(copies) == len(found.second_copies)


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (f"{PEFT}model.layers.0.self_attn.q_proj.lora_A.default.weight", "adapter that was not merged"),
        (f"{PEFT}model.layers.0.self_attn.q_proj.base_layer.weight", "adapter that was not merged"),
        (f"{PEFT}lm_head.modules_to_save.default.weight", r"not merged\. Merge it with PEFT"),
        ("model.layers.0.self_attn.q_proj.lora_magnitude_vector", "not merged"),
    ],
)
def test_an_adapter_that_was_not_merged(
    reference_folder: Path, tmp_path: Path, extra: str, message: str
) -> None:
    folder = Path(shutil.copytree(reference_folder, tmp_path / "checkpoint"))
    tensors = load_file(folder / "model.safetensors")
    save_file({**tensors, extra: torch.ones(2)}, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=message):
        Checkpoint.open(folder)


def test_two_wrapped_tensors_of_one_name(reference_folder: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(reference_folder, tmp_path / "checkpoint"))
    tensors = load_file(folder / "model.safetensors")
    norm = tensors.pop("model.norm.weight")
    twice = {"module.model.norm.weight": norm, "_orig_mod.model.norm.weight": norm + 1}
    save_file({**tensors, **twice}, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"are both model\.norm\.weight\. Keep one of the two"):
        Checkpoint.open(folder)


@pytest.mark.parametrize("name", ["model.norm.weight", "lm_head.weight", "model.dit.modules.x", "a.module.b"])
def test_other_names_stay(name: str) -> None:
    assert unwrapped(name) == name
