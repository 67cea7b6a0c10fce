"""What was trained beside an adapter is taken over where it is the adapter's, else refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from mobile_o_export.checkpoint import Checkpoint
from mobile_o_export.checkpoint.inspection import inspect
from mobile_o_export.errors import CheckpointError

PROJECTION = "model.layers.0.self_attn.q_proj"
NORM = "model.norm.weight"
STATE = "mp_rank_00_model_states.pt"


def wrapped(name: str) -> str:
    return f"base_model.model.{name}"


def vision(folder: Path) -> dict[str, torch.Tensor]:
    """The vision tower's floating-point tensors, as they are."""
    tensors = load_file(folder / "model.safetensors")
    return {n: t for n, t in tensors.items() if "vision_tower" in n and t.is_floating_point()}


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    """An adapter on one projection."""
    folder = tmp_path / "adapter"
    folder.mkdir()
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    factors = {"A": torch.full((2, 128), 0.01), "B": torch.full((128, 2), 0.01)}
    named = {wrapped(f"{PROJECTION}.lora_{side}.weight"): factor for side, factor in factors.items()}
    save_file(named, folder / "adapter_model.safetensors")
    return folder


@pytest.fixture
def trained(reference_folder: Path) -> dict[str, torch.Tensor]:
    """The vision tower after some training, under the names that a PEFT model gives it."""
    return {wrapped(name): tensor + 0.05 for name, tensor in vision(reference_folder).items()}


def state_of(adapter: Path, trained: dict[str, torch.Tensor]) -> dict[str, Any]:
    """What DeepSpeed saves of a model with this adapter, the names of its factors included."""
    factors = {
        name.replace(".weight", ".default.weight"): tensor
        for name, tensor in load_file(adapter / "adapter_model.safetensors").items()
    }
    return {"module": {**trained, **factors}, "buffer_names": [], "ds_version": "0.16.4"}


def assert_taken_over(base: Path, adapter: Path, files: int = 1) -> Checkpoint:
    checkpoint = Checkpoint.open(base, adapter)
    found = checkpoint.state_dict("", torch.float32)
    for name, tensor in vision(base).items():
        torch.testing.assert_close(found[name], tensor.float() + 0.05, rtol=0, atol=2e-3)
    plain = Checkpoint.open(base).state_dict("", torch.float32)
    product = 2 * 2 * 0.01 * 0.01
    torch.testing.assert_close(found[f"{PROJECTION}.weight"], plain[f"{PROJECTION}.weight"] + product)
    torch.testing.assert_close(found[NORM], plain[NORM], rtol=0, atol=0)
    report = inspect(checkpoint).lora
    assert report is not None
    assert len(report.beside) == files
    return checkpoint


# --- taken over ---


def test_llava_s_file(reference_folder: Path, adapter: Path, trained: dict[str, torch.Tensor]) -> None:
    torch.save(trained, adapter / "non_lora_trainables.bin")
    checkpoint = assert_taken_over(reference_folder, adapter)
    # The digest tells what was trained.
    torch.save({n: t + 1 for n, t in trained.items()}, adapter / "non_lora_trainables.bin")
    assert Checkpoint.open(reference_folder, adapter).digest != checkpoint.digest
    with pytest.raises(CheckpointError, match="changed"):
        checkpoint.require_unchanged()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_deepspeed_state_in_the_adapter_s_folder(
    reference_folder: Path, adapter: Path, trained: dict[str, torch.Tensor], dtype: torch.dtype
) -> None:
    folder = adapter / "global_step10"
    folder.mkdir()
    trained = {name: (tensor.float()).to(torch.float32) for name, tensor in trained.items()}
    # The whole model is in it, what was not trained too, and rounded to the training's dtype.
    norm = load_file(reference_folder / "model.safetensors")[NORM]
    state = state_of(adapter, {**trained, wrapped(NORM): norm.to(dtype)})
    torch.save(state, folder / STATE)
    assert_taken_over(reference_folder, adapter)


def test_the_last_of_several_states_where_its_adapter_is_the_final_one(
    reference_folder: Path, adapter: Path, trained: dict[str, torch.Tensor]
) -> None:
    for step in (5, 10):
        folder = adapter / f"checkpoint-{step}" / f"global_step{step}"
        folder.mkdir(parents=True)
        torch.save(state_of(adapter, trained if step == 10 else {}), folder / STATE)
        shutil.copy(adapter / "adapter_model.safetensors", folder.parent)
    assert_taken_over(reference_folder, adapter)


def test_projectors_that_scripts_save_by_themselves(
    reference_folder: Path, adapter: Path, trained: dict[str, torch.Tensor]
) -> None:
    torch.save(trained, adapter / "non_lora_trainables.bin")
    name = "model.mm_projector.0.weight"
    weight = load_file(reference_folder / "model.safetensors")[name]
    torch.save({name: weight + 1}, adapter / "mm_projector.bin")
    checkpoint = assert_taken_over(reference_folder, adapter, files=2)
    found = checkpoint.state_dict("model.mm_projector.", torch.float32)["0.weight"]
    torch.testing.assert_close(found, weight.float() + 1, rtol=0, atol=2e-3)


# --- refused ---


def other_factors(adapter: Path, state: dict[str, Any]) -> None:
    name = next(name for name in state["module"] if "lora_A" in name)
    state["module"][name] = state["module"][name] + 1


def no_tensors(adapter: Path, state: dict[str, Any]) -> None:
    state["module"] = {"step": 3}


def code(adapter: Path, state: dict[str, Any]) -> None:
    state["args"] = Path("a", "class", "of", "its", "own")


def unknown(adapter: Path, state: dict[str, Any]) -> None:
    state["module"][wrapped("model.no_such.weight")] = torch.ones(2)


def misshapen(adapter: Path, state: dict[str, Any]) -> None:
    state["module"][wrapped(NORM)] = torch.ones(2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (other_factors, "is not what the adapter holds: the two are of different steps"),
        (no_tensors, "is no table of tensors. Merge where the model was trained"),
        (code, "cannot be read as weights alone .* Merge where the model was trained: .*merge_and_unload"),
        (unknown, r"no_such\.weight \(2,\) fits no weight"),
        (misshapen, r"norm\.weight \(2,\) fits no weight"),
    ],
)
def test_a_state_that_is_not_the_adapter_s(
    reference_folder: Path,
    adapter: Path,
    trained: dict[str, torch.Tensor],
    change: Callable[[Path, dict[str, Any]], None],
    message: str,
) -> None:
    folder = adapter / "global_step10"
    folder.mkdir()
    state = state_of(adapter, trained)
    change(adapter, state)
    torch.save(state, folder / STATE)
    with pytest.raises(CheckpointError, match=message):
        Checkpoint.open(reference_folder, adapter)


def test_a_state_of_an_unknown_step(
    reference_folder: Path, adapter: Path, trained: dict[str, torch.Tensor]
) -> None:
    """A run that saves every ten steps and ends after fifteen leaves an older state than its adapter."""
    folder = adapter / "checkpoint-10" / "global_step10"
    folder.mkdir(parents=True)
    torch.save({"module": trained}, folder / STATE)
    with pytest.raises(CheckpointError, match=r"at the adapter's step is not known: .*Otherwise merge where"):
        Checkpoint.open(reference_folder, adapter)


def test_a_state_of_several_processes(reference_folder: Path, adapter: Path) -> None:
    folder = adapter / "global_step10"
    folder.mkdir()
    for rank in (0, 1):
        torch.save({"module": {}}, folder / f"mp_rank_0{rank}_model_states.pt")
    with pytest.raises(CheckpointError, match="spread over several files"):
        Checkpoint.open(reference_folder, adapter)


def test_a_file_that_is_no_state(reference_folder: Path, adapter: Path) -> None:
    (adapter / "non_lora_trainables.bin").write_bytes(b"nothing of the kind")
    with pytest.raises(CheckpointError, match="cannot be read as weights alone"):
        Checkpoint.open(reference_folder, adapter)
