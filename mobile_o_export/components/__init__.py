"""The five subgraphs of Mobile-O, in the order of the pipeline."""

from mobile_o_export.components.base import (
    CacheStyle,
    Component,
    Continuity,
    Extent,
    FunctionSpec,
    GraphOptions,
    GraphSpec,
    Profile,
)
from mobile_o_export.components.registry import COMPONENT_NAMES, component

__all__ = [
    "COMPONENT_NAMES",
    "CacheStyle",
    "Component",
    "Continuity",
    "Extent",
    "FunctionSpec",
    "GraphOptions",
    "GraphSpec",
    "Profile",
    "component",
]
