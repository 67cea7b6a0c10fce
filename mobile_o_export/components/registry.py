"""Components by name."""

from __future__ import annotations

import importlib

from mobile_o_export.components.base import Component

COMPONENT_NAMES: tuple[str, ...] = ("vision_encoder", "llm", "mcp", "dit", "vae_decoder")
"""In the order of the pipeline; each is a module of this package with a ``COMPONENT``."""


def component(name: str) -> Component:
    """The component called ``name``, one of ``COMPONENT_NAMES``."""
    found: Component = importlib.import_module(f"mobile_o_export.components.{name}").COMPONENT
    return found
