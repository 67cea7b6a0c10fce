"""Every kind of adapter that PEFT writes for these modules: merged as merge_and_unload does, or refused.

Each is trained (its weights are random), saved, loaded again by PEFT onto a fresh base and merged there; on a
base with a head of its own, and on one whose head is its embeddings.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from mobile_o_export.checkpoint import Checkpoint
from mobile_o_export.checkpoint.lora import LoraAdapter
from mobile_o_export.checkpoint.safetensors_file import SafetensorsFile
from mobile_o_export.errors import CheckpointError

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    # PEFT warns of what is tested here: shared embeddings, fan_in_fan_out on a Linear, and the like.
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),
]

ATTENTION = ("q_proj", "v_proj")
UNSUPPORTED = "which is not supported. Merge it with PEFT"
SHARED = "head and embeddings are one table"


@dataclass(frozen=True)
class Flavour:
    """One way to train and save an adapter.

    Attributes:
        options: of ``LoraConfig``.
        changed: how many of the LLM's tensors it changes.
        refused: part of the refusal, where it is refused.
        tied: likewise where the head is the embeddings; as ``refused`` if None.
        tied_changed: likewise, as ``changed`` if None.
        save: of ``save_pretrained``.
        edit: what the saved configuration says otherwise.
    """

    options: dict[str, Any]
    changed: int = 12
    refused: str = ""
    tied: str | None = None
    tied_changed: int | None = None
    save: dict[str, Any] = field(default_factory=dict)
    edit: dict[str, Any] = field(default_factory=dict)


WHOLE = {"save_embedding_layers": True}
FLAVOURS = {
    "attention": Flavour({}),
    "all linear": Flavour({"target_modules": "all-linear"}, 42),
    "all linear but one": Flavour({"target_modules": "all-linear", "exclude_modules": ["down_proj"]}, 36),
    "by an expression": Flavour({"target_modules": r".*layers\.[0-2]\..*\.(q|k)_proj"}, 6),
    "of some layers": Flavour({"layers_to_transform": [1, 3]}, 4),
    "of one module": Flavour({"target_modules": ["layers.0.mlp.down_proj"]}, 1),
    "with dropout": Flavour({"lora_dropout": 0.3}),
    "of rank 1": Flavour({"r": 1, "lora_alpha": 1}),
    "of an odd rank": Flavour({"r": 7, "lora_alpha": 3.5}),
    "rank-stabilised": Flavour({"use_rslora": True}),
    "ranks of their own": Flavour({"rank_pattern": {"layers.1.self_attn.q_proj": 4}}),
    "ranks by an expression": Flavour({"rank_pattern": {r"layers\.[0-3]\.self_attn\.q_proj": 3}}),
    "alphas of their own": Flavour({"alpha_pattern": {"v_proj": 5}}),
    "both, rank-stabilised": Flavour(
        {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"q_proj": 3}, "use_rslora": True}
    ),
    "gaussian": Flavour({"init_lora_weights": "gaussian"}),
    "orthogonal": Flavour({"init_lora_weights": "orthogonal"}),
    "not initialised": Flavour({"init_lora_weights": False}),
    "fan in, fan out": Flavour({"target_modules": ["o_proj"]}, 6, edit={"fan_in_fan_out": True}),
    "biases": Flavour({"bias": "lora_only"}, 24),
    "all biases": Flavour({"bias": "all"}, 30),
    "embeddings": Flavour({"target_modules": ["q_proj", "embed_tokens"]}, 7, tied=SHARED),
    "head": Flavour({"target_modules": ["q_proj", "lm_head"]}, 7, tied=SHARED),
    "embeddings and head": Flavour({"target_modules": ["q_proj", "lm_head", "embed_tokens"]}, 8, tied=SHARED),
    "embeddings, tying kept": Flavour(
        {"target_modules": ["q_proj", "embed_tokens"], "ensure_weight_tying": True}, 7, tied=SHARED
    ),
    "embeddings whole": Flavour({"modules_to_save": ["embed_tokens"]}, 13),
    "head whole": Flavour({"modules_to_save": ["lm_head"]}, 13),
    "embeddings and head whole": Flavour({"modules_to_save": ["embed_tokens", "lm_head"]}, 14),
    "embeddings whole, tying kept": Flavour(
        {"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True}, 13, tied_changed=14
    ),
    "norms whole": Flavour({"modules_to_save": ["norm"]}, 25),
    "embeddings saved along": Flavour({}, save=WHOLE),
    "embeddings factored and saved": Flavour(
        {"target_modules": ["q_proj", "embed_tokens"]}, 7, tied=SHARED, save=WHOLE
    ),
    "embeddings whole and saved": Flavour({"modules_to_save": ["embed_tokens"]}, 13, save=WHOLE),
    "head whole and saved": Flavour({"modules_to_save": ["lm_head"]}, 13, save=WHOLE),
    "embeddings whole and saved, tying kept": Flavour(
        {"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True}, 13, tied_changed=14, save=WHOLE
    ),
    "DoRA": Flavour({"use_dora": True}, refused=UNSUPPORTED),
    "QA-LoRA": Flavour({"use_qalora": True, "qalora_group_size": 16}, refused=UNSUPPORTED),
    "biases of factors": Flavour({"lora_bias": True}, refused=UNSUPPORTED),
    "trainable tokens": Flavour({"trainable_token_indices": [1, 2]}, refused=UNSUPPORTED),
    "parameters": Flavour({"target_parameters": ["self_attn.o_proj.weight"]}, refused=UNSUPPORTED),
    "PiSSA": Flavour({"init_lora_weights": "pissa"}, refused="changed the base weights"),
    "OLoRA": Flavour({"init_lora_weights": "olora"}, refused="changed the base weights"),
    "layers repeated": Flavour({"layer_replication": [[0, 3], [2, 6]]}, refused=UNSUPPORTED),
}


@pytest.fixture(scope="session")
def whole_tied(reference_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The fixture checkpoint with its embeddings for a head."""
    folder = Path(shutil.copytree(reference_folder, tmp_path_factory.mktemp("whole") / "checkpoint"))
    tensors = load_file(folder / "model.safetensors")
    del tensors["lm_head.weight"]
    save_file(tensors, folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text()) | {"tie_word_embeddings": True}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def llm(folder: Path) -> Any:
    from transformers import Qwen2Config, Qwen2ForCausalLM

    checkpoint = Checkpoint.open(folder)
    tied = checkpoint.config.tie_word_embeddings
    model = Qwen2ForCausalLM(Qwen2Config(**{**checkpoint.config.language, "tie_word_embeddings": tied}))
    model.load_state_dict(checkpoint.component_state_dict("llm", torch.float32))
    return model


def train(model: Any, adapter: Path, flavour: Flavour) -> None:
    """Saves an adapter with random weights."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    options = {"r": 8, "lora_alpha": 16, "target_modules": list(ATTENTION), **flavour.options}
    wrapped = get_peft_model(model, LoraConfig(**options))
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if parameter.requires_grad:
                parameter.copy_(torch.randn_like(parameter) * 0.05 + (0 if "lora" in name else parameter))
    wrapped.save_pretrained(adapter, **flavour.save)
    config = adapter / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | flavour.edit))


@pytest.mark.parametrize("tied", [False, True], ids=["own head", "tied head"])
@pytest.mark.parametrize("name", FLAVOURS)
def test_an_adapter_is_merged_as_peft_merges_it_or_refused(
    reference_folder: Path, whole_tied: Path, tmp_path: Path, name: str, tied: bool
) -> None:
    from peft import PeftModel

    flavour, base = FLAVOURS[name], whole_tied if tied else reference_folder
    train(llm(base), tmp_path, flavour)
    refused = flavour.tied if tied and flavour.tied is not None else flavour.refused
    if refused:
        with pytest.raises(CheckpointError, match=refused):
            Checkpoint.open(base, lora=tmp_path)
        return
    adapted = PeftModel.from_pretrained(llm(base), str(tmp_path)).eval()
    ids = torch.arange(40)[None]
    with torch.no_grad():
        trained = adapted(ids).logits
        merged = adapted.merge_and_unload()
        # PEFT's own merge has to be what was trained, or it is nothing to be held to.
        torch.testing.assert_close(merged(ids).logits, trained, rtol=0, atol=1e-4)
    ours = Checkpoint.open(base, lora=tmp_path).component_state_dict("llm", torch.float32)
    wanted = merged.state_dict()
    assert ours.keys() == wanted.keys()
    for key, tensor in wanted.items():
        torch.testing.assert_close(ours[key], tensor, rtol=0, atol=1e-6)
    before = Checkpoint.open(base).component_state_dict("llm", torch.float32)
    different = [key for key in before if not torch.equal(ours[key], before[key])]
    changed = flavour.tied_changed if tied and flavour.tied_changed is not None else flavour.changed
    assert len(different) == changed


# --- convolutions ---


class Tower(nn.Module):
    """A few of the kinds of convolution that towers, DiTs and VAEs have."""

    def __init__(self) -> None:
        super().__init__()
        self.dense = nn.Conv2d(8, 16, 3)
        self.pointwise = nn.Conv2d(16, 12, 1)
        self.depthwise = nn.Conv2d(12, 12, 7, groups=12)
        self.grouped = nn.Conv2d(12, 24, (3, 5), groups=4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.grouped(self.depthwise(self.pointwise(self.dense(x))))


def train_convolution(module: str, folder: Path) -> tuple[dict[str, torch.Tensor], Any]:
    """A tower's tensors, and PEFT's model of it with an adapter on ``module`` that is saved in ``folder``."""
    from peft import LoraConfig, PeftModel, get_peft_model

    torch.manual_seed(0)
    tower = Tower()
    before = {name: value.clone() for name, value in tower.state_dict().items()}
    wrapped = get_peft_model(tower, LoraConfig(r=12, lora_alpha=6, target_modules=[module]))
    with torch.no_grad():
        for parameter in wrapped.parameters():
            if parameter.requires_grad:
                parameter.copy_(torch.randn_like(parameter))
    wrapped.save_pretrained(folder / "adapter")
    save_file(before, folder / "base.safetensors")
    fresh = Tower()
    fresh.load_state_dict(before)
    return before, PeftModel.from_pretrained(fresh, str(folder / "adapter")).eval()


@pytest.mark.parametrize("module", ["dense", "pointwise"])
def test_convolutions(tmp_path: Path, module: str) -> None:
    before, adapted = train_convolution(module, tmp_path)
    image = torch.randn(1, 8, 20, 20)
    with torch.no_grad():
        trained = adapted(image)
    base = SafetensorsFile(tmp_path / "base.safetensors")
    adapter = LoraAdapter(tmp_path / "adapter", base.tensors)
    assert adapter.targets == (f"{module}.weight",)
    found = adapter.merged(f"{module}.weight", before[f"{module}.weight"])
    ours = Tower()
    ours.load_state_dict({**before, f"{module}.weight": found})
    with torch.no_grad():
        torch.testing.assert_close(ours(image), trained, rtol=1e-4, atol=1e-4)
        assert not torch.allclose(Tower()(image), trained, atol=1e-2)
    merged = adapted.merge_and_unload().state_dict()
    torch.testing.assert_close(found, merged[f"{module}.weight"], rtol=0, atol=1e-5)


@pytest.mark.parametrize("module", ["depthwise", "grouped"])
def test_convolutions_in_groups_are_refused(tmp_path: Path, module: str) -> None:
    _, adapted = train_convolution(module, tmp_path)
    with pytest.raises(NotImplementedError, match="groups > 1"):
        adapted.merge_and_unload()
    base = SafetensorsFile(tmp_path / "base.safetensors")
    with pytest.raises(CheckpointError, match=f"{module} is a convolution in groups, .*Train an adapter wi"):
        LoraAdapter(tmp_path / "adapter", base.tensors)


@pytest.mark.parametrize(
    "harm",
    [
        lambda factors: factors.update(B=torch.ones(16, 5, 1, 1)),
        lambda factors: factors.update(B=torch.ones(16, 4, 3, 3)),
        lambda factors: factors.update(A=torch.ones(4, 8, 3)),
        lambda factors: factors.update(A=torch.ones(4, 8, 3, 5)),
    ],
)
def test_factors_that_fit_no_convolution(
    tmp_path: Path, harm: Callable[[dict[str, torch.Tensor]], None]
) -> None:
    save_file({"dense.weight": torch.ones(16, 8, 3, 3)}, tmp_path / "base.safetensors")
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 4}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    factors = {"A": torch.ones(4, 8, 3, 3), "B": torch.ones(16, 4, 1, 1)}
    harm(factors)
    named = {f"base_model.model.dense.lora_{side}.weight": factor for side, factor in factors.items()}
    save_file(named, tmp_path / "adapter_model.safetensors")
    with pytest.raises(CheckpointError, match="does not fit"):
        LoraAdapter(tmp_path, SafetensorsFile(tmp_path / "base.safetensors").tensors)
