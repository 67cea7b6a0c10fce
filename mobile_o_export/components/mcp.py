"""mcp: ``project(hidden_states) → conditioning``, the Mobile Conditioning Projector.

Zeroed hidden states, not zeros, give the unconditional branch of classifier-free guidance.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from mobile_o_export.components import building
from mobile_o_export.components.base import FunctionSpec
from mobile_o_export.components.sizes import MCP_PREFIX, sizes
from mobile_o_export.components.stateless import StatelessComponent
from mobile_o_export.model.mcp import MobileConditioningProjector
from mobile_o_export.tensors import DType, Role, TensorSpec

if TYPE_CHECKING:
    from mobile_o_export.checkpoint import Checkpoint


def hidden_states_spec(checkpoint: Checkpoint) -> TensorSpec:
    """What the LLM gives and the MCP takes."""
    s = sizes(checkpoint)
    return TensorSpec(
        "hidden_states",
        (1, s.conditioning_layers, "S", s.hidden),
        DType.FLOAT32,
        "B K S D",
        Role.HIDDEN_STATES,
        None,
        "the last K of Hugging Face's hidden_states, the very last after the final norm",
    )


def conditioning_spec(checkpoint: Checkpoint) -> TensorSpec:
    """What the MCP gives and the DiT takes."""
    shape = (1, "S", sizes(checkpoint).conditioning)
    return TensorSpec("conditioning", shape, DType.FLOAT32, "B S F", Role.CONDITIONING)


def project(checkpoint: Checkpoint) -> FunctionSpec:
    """The contract of ``project``."""
    return FunctionSpec("project", (hidden_states_spec(checkpoint),), (conditioning_spec(checkpoint),))


def load(checkpoint: Checkpoint, dtype: torch.dtype | None) -> nn.Module:
    """The projector: (hidden_states [B, K, S, D], mask [B, S]) → [B, S, F]."""
    weights = checkpoint.state_dict(MCP_PREFIX, dtype)
    layout = MobileConditioningProjector.layout({name: tuple(t.shape) for name, t in weights.items()})
    return building.build(lambda: MobileConditioningProjector(**layout), weights)


def fuse(module: nn.Module) -> None:
    """Works out how layers are mixed, once."""
    assert isinstance(module, MobileConditioningProjector)
    module.float().fuse_for_inference()


COMPONENT = StatelessComponent("mcp", project, load, mask_name="mask", fuse=fuse)
