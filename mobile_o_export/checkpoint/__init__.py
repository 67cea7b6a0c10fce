"""Checkpoints: read, validate, digest, inspect, and write random ones."""

from __future__ import annotations

from mobile_o_export.checkpoint.config import BUILT_IN_DIFFUSION, DiffusionConfig, MobileOConfig
from mobile_o_export.checkpoint.lora import LoraAdapter
from mobile_o_export.checkpoint.reader import COMPONENT_PREFIXES, RANDOM_MARKER, Checkpoint
from mobile_o_export.checkpoint.safetensors_file import TensorInfo

__all__ = [
    "BUILT_IN_DIFFUSION",
    "COMPONENT_PREFIXES",
    "RANDOM_MARKER",
    "Checkpoint",
    "DiffusionConfig",
    "LoraAdapter",
    "MobileOConfig",
    "TensorInfo",
]
