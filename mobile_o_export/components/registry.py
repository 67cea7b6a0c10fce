"""Components by name."""

from __future__ import annotations

import importlib
from collections.abc import Iterable

from mobile_o_export.components.base import Component
from mobile_o_export.errors import UsageError
from mobile_o_export.strict import nearest

COMPONENT_NAMES: tuple[str, ...] = ("vision_encoder", "llm", "mcp", "dit", "vae_decoder")
"""In the order of the pipeline; each is a module of this package with a ``COMPONENT``."""


def chosen_components(names: Iterable[str]) -> tuple[str, ...]:
    """The components called ``names`` in the pipeline's order; all where none is named.

    Raises:
        UsageError: one is unknown.
    """
    chosen = tuple(names)
    for name in chosen:
        if name not in COMPONENT_NAMES:
            raise UsageError(
                f"component {name!r} is unknown.{nearest(name, COMPONENT_NAMES)} Use one of "
                f"{', '.join(COMPONENT_NAMES)}."
            )
    return tuple(name for name in COMPONENT_NAMES if not chosen or name in chosen)


def component(name: str) -> Component:
    """The component called ``name``, one of ``COMPONENT_NAMES``."""
    found: Component = importlib.import_module(f"mobile_o_export.components.{name}").COMPONENT
    return found
