"""What a training run with an adapter trained beside it, and left in files that PEFT does not read.

LLaVA's scripts, which Mobile-O's post-training grew from, save it as ``non_lora_trainables.bin``; DeepSpeed
saves the whole wrapped model as ``global_stepN/mp_rank_00_model_states.pt`` in each ``checkpoint-N``.
"""

from __future__ import annotations

import filecmp
import pickle
import re
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mobile_o_export.checkpoint.names import PEFT_PREFIX, unwrapped
from mobile_o_export.checkpoint.safetensors_file import SafetensorsFile, TensorInfo
from mobile_o_export.errors import CheckpointError

if TYPE_CHECKING:
    import torch

REST_FILE = "non_lora_trainables.bin"
STATE_FILES = "mp_rank_*_model_states.pt"
STATE_FILE = "mp_rank_00_model_states.pt"
PROJECTORS = ("mm_projector.bin", "gen_projector.bin")
"""What LLaVA's and Mobile-O's scripts save of the projectors where these were trained."""

_STEP = re.compile(r"(?:checkpoint-|global_step)(\d+)")
_FACTOR = re.compile(r"\.(lora_(?:A|B))\.[^.]+\.weight$")
_TRAINING_ONLY = "model.vae.encoder."
"""No use of a Mobile-O after training; a checkpoint may lack it."""

_OTHER_HALF = re.compile(r"\.original_module(?=\.)")

_MERGE = (
    "merge where the model was trained: load it with Mobile-O's own code, call merge_and_unload, save it "
    "with save_pretrained and export that without --lora."
)


@dataclass(frozen=True)
class TrainedBeside:
    """Base tensors that were trained beside an adapter.

    Attributes:
        files: where they were read from.
        tensors: own name → trained tensor, as stored.
    """

    files: tuple[Path, ...]
    tensors: Mapping[str, torch.Tensor]

    @classmethod
    def of(cls, folder: Path, adapter: SafetensorsFile, base: Mapping[str, TensorInfo]) -> TrainedBeside:
        """What lies beside the adapter in ``folder``, of the same step.

        Raises:
            CheckpointError: a file cannot be read without running code of its own, is not known to be of the
                adapter's step, or holds what fits no base weight.
        """
        files = [folder / name for name in (REST_FILE, *PROJECTORS) if (folder / name).is_file()]
        if (state := _state(folder, adapter)) is not None:
            files.append(state)
        tensors: dict[str, torch.Tensor] = {}
        for path in files:
            for name, tensor in _loaded(path).items():
                own = _own_name(path, name, tensor, adapter)
                if own is None or (own.startswith(_TRAINING_ONLY) and own not in base):
                    continue
                if own not in base or tuple(tensor.shape) != base[own].shape:
                    raise CheckpointError(
                        f"{path}: {name} {tuple(tensor.shape)} fits no weight of the checkpoint. Use the "
                        "checkpoint that it was trained on."
                    )
                tensors[own] = tensor
        return cls(tuple(files), tensors)

    @property
    def digest(self) -> str:
        """Hex SHA-256 over every tensor's name, dtype, shape and bytes, in order of name."""
        import torch

        content = sha256()
        for name, tensor in sorted(self.tensors.items()):
            content.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\n".encode())
            content.update(tensor.contiguous().flatten().view(torch.uint8).numpy().data)
        return content.hexdigest()


def _state(folder: Path, adapter: SafetensorsFile) -> Path | None:
    """The DeepSpeed state of the adapter's own step, or None where there is no state at all."""
    states = sorted(
        [*folder.glob(f"global_step*/{STATE_FILES}"), *folder.glob(f"checkpoint-*/*/{STATE_FILES}")]
    )
    if not states:
        return None
    last = max(states, key=lambda path: (_step(path), path.parts))
    if last.name != STATE_FILE or len([path for path in states if path.parent == last.parent]) > 1:
        raise CheckpointError(
            f"{last.parent}: the adapter is not all that was trained, and the rest is spread over several "
            f"files, one a process. M{_MERGE[1:]}"
        )
    home = last.parent.parent
    if home != folder and not _same_file(home / adapter.path.name, adapter.path):
        raise CheckpointError(
            f"{last}: holds more that was trained than the adapter, and whether at the adapter's step is not "
            f"known: {home} has no equal {adapter.path.name}. Give --lora {home} where that has an adapter. "
            f"Otherwise {_MERGE}"
        )
    return last


def _step(path: Path) -> int:
    return max((int(number) for number in _STEP.findall(str(path.parent))), default=0)


def _same_file(one: Path, other: Path) -> bool:
    return one.is_file() and filecmp.cmp(one, other, shallow=False)


def _loaded(path: Path) -> Mapping[str, torch.Tensor]:
    """The tensors of a pickled state; nothing but tensors and plain containers is ever made from it."""
    import torch

    try:
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, ValueError, EOFError, KeyError, OSError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CheckpointError(
            f"{path}: was trained beside the adapter, and cannot be read as weights alone ({reason}). "
            f"M{_MERGE[1:]}"
        ) from error
    state = content.get("module", content) if isinstance(content, dict) else None
    if not isinstance(state, dict) or not all(
        isinstance(name, str) and isinstance(tensor, torch.Tensor) for name, tensor in state.items()
    ):
        raise CheckpointError(
            f"{path}: was trained beside the adapter, and is no table of tensors. M{_MERGE[1:]}"
        )
    return state


def _own_name(path: Path, name: str, tensor: torch.Tensor, adapter: SafetensorsFile) -> str | None:
    """The base weight that ``name`` is; None where the adapter holds the same, or the base unchanged."""
    import torch

    stored = PEFT_PREFIX + unwrapped(name)
    factor = _FACTOR.sub(r".\1.weight", stored).replace(".modules_to_save.default.", ".")
    if factor in adapter.tensors and factor != stored:
        if torch.equal(adapter.tensor(factor).to(tensor.dtype), tensor):
            return None
        raise CheckpointError(
            f"{path}: {name} is not what the adapter holds: the two are of different steps. Give --lora the "
            f"folder that the state is in. Otherwise {_MERGE}"
        )
    if _OTHER_HALF.search(name):
        return None
    return unwrapped(name).replace(".base_layer.", ".")
