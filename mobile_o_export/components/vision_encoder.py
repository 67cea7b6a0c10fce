"""vision_encoder: ``encode(image) → image_features``, FastViTHD and the projector into the LLM's space."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from mobile_o_export.components import building
from mobile_o_export.components.base import FunctionSpec
from mobile_o_export.components.sizes import PROJECTOR_PREFIX, VISION_PREFIX, sizes
from mobile_o_export.components.stateless import StatelessComponent
from mobile_o_export.model.fastvithd import FastViTHD, FastViTHDLayout, Projector, fuse_for_inference
from mobile_o_export.tensors import DType, Role, TensorSpec

if TYPE_CHECKING:
    from mobile_o_export.checkpoint import Checkpoint


def encode(checkpoint: Checkpoint) -> FunctionSpec:
    """The contract of ``encode``."""
    s = sizes(checkpoint)
    image = TensorSpec(
        "image",
        (1, 3, s.image, s.image),
        DType.FLOAT32,
        "B 3 R R",
        Role.IMAGE,
        (0.0, 1.0),
        "RGB, shortest edge resized (bicubic) and centre cropped, divided by 255",
    )
    features = TensorSpec(
        "image_features",
        (1, s.image_tokens, s.hidden),
        DType.FLOAT32,
        "B N D",
        Role.FEATURES,
        None,
        "takes the place of the <image> token among the LLM's input embeddings",
    )
    return FunctionSpec("encode", (image,), (features,))


def load(checkpoint: Checkpoint, dtype: torch.dtype | None) -> nn.Module:
    """The tower, then the projector: image [B, 3, R, R] → [B, N, D]."""
    tower = checkpoint.state_dict(VISION_PREFIX, dtype)
    layout = FastViTHDLayout.from_shapes({name: tuple(tensor.shape) for name, tensor in tower.items()})
    projector = checkpoint.state_dict(PROJECTOR_PREFIX, dtype)
    outputs, inputs = projector["0.weight"].shape
    return nn.Sequential(
        building.build(lambda: FastViTHD(layout), tower),
        building.build(lambda: Projector(inputs, outputs), projector),
    ).eval()


def fuse(module: nn.Module) -> None:
    """Folds norms and scales of the tower into its convolutions, in place."""
    tower = module.get_submodule("0").float()
    assert isinstance(tower, FastViTHD)
    fuse_for_inference(tower)


COMPONENT = StatelessComponent("vision_encoder", encode, load, fuse=fuse)
