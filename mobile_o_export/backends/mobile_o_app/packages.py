"""The app's four packages: what they are called, what they take and give.

Names, shapes, element types and lengths are those that the published app feeds and expects.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from mobile_o_export.backends.mobile_o_app.language import CHECKPOINT_PROJECTOR
from mobile_o_export.components.base import Component, Extent, GraphOptions, GraphSpec, Profile
from mobile_o_export.tensors import DType, Role, TensorSpec

if TYPE_CHECKING:
    from torch import nn

    from mobile_o_export.backends.lowering import Graphs
    from mobile_o_export.checkpoint import Checkpoint

LEAST_LENGTH = 77
"""The app pads shorter prompts with zeros, before the connector."""

VISION, CONNECTOR, TRANSFORMER = "vision_encoder", "mcp", "dit"
"""Components whose packages differ from their graphs in more than names."""

PROJECTOR = "projector"
"""The graph that takes the vision encoder's features on; the app keeps its weights in ``llm/``."""

PROJECTOR_WEIGHT = f"{CHECKPOINT_PROJECTOR}0.weight"
"""In a checkpoint, [D, W]: what says how wide the vision tower is."""


@dataclass(frozen=True)
class Package:
    """One package of the folder.

    Attributes:
        name: of the folder, without ``.mlpackage``.
        renamed: the contract's names of its tensors to the app's, where they differ.
        dtype: of its inputs and outputs.
    """

    name: str
    renamed: Mapping[str, str]
    dtype: DType = DType.FLOAT32

    @property
    def file(self) -> str:
        """The folder's name."""
        return f"{self.name}.mlpackage"


PACKAGES: Mapping[str, Package] = {
    VISION: Package("vision_encoder", {"image": "images"}, DType.FLOAT16),
    CONNECTOR: Package("connector", {"hidden_states": "stacked_hidden_states"}),
    # An fp16 result the app converts in a buffer that both guidance branches share: it has to be fp32.
    TRANSFORMER: Package("transformer", {"conditioning": "encoder_hidden_states"}),
    "vae_decoder": Package("vae_decoder", {}),
}
"""By component."""

MASK = TensorSpec(
    "encoder_attention_mask",
    (1, "S"),
    DType.FLOAT32,
    "B S",
    Role.MASK,
    (0.0, 1.0),
    "1 for each real position, then 0 for padding",
)


def package_specs(
    component: Component, checkpoint: Checkpoint, options: GraphOptions
) -> tuple[GraphSpec, ...]:
    """The package's graph as the app knows it; for the vision encoder also what takes its features on."""
    (plain,) = component.graphs(checkpoint, options)
    package = PACKAGES[component.name]

    def own(spec: TensorSpec) -> TensorSpec:
        return replace(spec, name=package.renamed.get(spec.name, spec.name), dtype=package.dtype)

    spec = replace(
        plain,
        inputs=tuple(own(tensor) for tensor in plain.inputs),
        outputs=tuple(own(tensor) for tensor in plain.outputs),
        profiles=tuple(_lengthened(profile) for profile in plain.profiles),
        aliases={theirs: ours for ours, theirs in package.renamed.items()},
    )
    if component.name == TRANSFORMER:
        return (replace(spec, inputs=(*spec.inputs, MASK)),)
    if component.name == CONNECTOR:
        (hidden,) = spec.inputs
        described = f"{hidden.description}; then zeros up to {LEAST_LENGTH} positions"
        return (replace(spec, inputs=(replace(hidden, description=described),), zeros_are_padding=True),)
    if component.name == VISION:
        (projected,) = plain.outputs
        width = checkpoint.tensors[PROJECTOR_WEIGHT].shape[1]
        features = replace(
            *spec.outputs,
            shape=(*projected.shape[:-1], width),
            layout="B N W",
            description="of the last stage, before the projector",
        )
        return (
            replace(spec, outputs=(features,), then=PROJECTOR),
            GraphSpec(PROJECTOR, (), (features,), (projected,)),
        )
    return (spec,)


def _lengthened(profile: Profile) -> Profile:
    """``profile`` from ``LEAST_LENGTH`` positions on."""
    extents = {
        letter: Extent(LEAST_LENGTH, LEAST_LENGTH, extent.maximum)
        for letter, extent in profile.extents.items()
    }
    return replace(profile, extents=extents)


def package_graphs(
    component: Component, spec: GraphSpec, checkpoint: Checkpoint, options: GraphOptions
) -> Graphs:
    """What the package of a component holds: one graph, of ``spec``."""
    from mobile_o_export.backends import lowering

    graphs = lowering.Graphs.of(component, checkpoint, options)
    return replace(
        graphs,
        specs=(spec,),
        load=lambda: _packaged(component, graphs.load()),
        around=lambda module, own: _masked(component, graphs.around(module, own)),
    )


def _packaged(component: Component, module: nn.Module) -> nn.Module:
    """The part of a component that its package holds."""
    from torch import nn

    if component.name == VISION:
        # A tower and a projector; weights keep their names, by which recipes know them.
        assert isinstance(module, nn.Sequential)
        module[1] = nn.Identity()
    return module


def _masked(component: Component, graph: nn.Module) -> nn.Module:
    if component.name != CONNECTOR:
        return graph
    from mobile_o_export.backends.mobile_o_app.connector import MaskedByZeros

    return MaskedByZeros(graph)
