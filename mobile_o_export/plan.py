"""What an export would do: components × targets, with sizes, memory and refusals, before any work."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import prod
from typing import TYPE_CHECKING

from mobile_o_export.backends.base import Backend, LowerRequest
from mobile_o_export.backends.registry import backend
from mobile_o_export.components.registry import COMPONENT_NAMES, chosen_components, component
from mobile_o_export.compression.form import Form
from mobile_o_export.compression.recipe import Recipe
from mobile_o_export.errors import ConfigError
from mobile_o_export.golden.record import GOLDEN_ROOM_BYTES
from mobile_o_export.parity.gates import Gate, shipped_gates
from mobile_o_export.pipelines.schedule import SchedulerConfig
from mobile_o_export.pipelines.template_ids import require_template_ids
from mobile_o_export.quiet import quiet_vendor

if TYPE_CHECKING:
    from torch import nn

    from mobile_o_export.checkpoint import Checkpoint
    from mobile_o_export.components.base import GraphOptions
    from mobile_o_export.precision import Precision
    from mobile_o_export.targets import Target

REFUSED_HINT = "Give another precision, change the target's file or choose other components."
"""What to do about refusals."""

LOADED_BYTES = 480_000_000
"""torch, transformers and this package, as a process takes them."""

COMPRESSING_BYTES = 220_000_000
"""What compressing a few million weights at a time takes."""

WORKING_COPIES = 2.5
"""Room for the files beside the parts they are merged from, over their estimated size."""


@dataclass(frozen=True)
class PlanItem:
    """One component on one target.

    Attributes:
        recipe: precisions of the weights; None where the component is skipped.
        gate: what its outputs must reach; None likewise.
        forms: how each compressed weight would be stored.
        request: what would be lowered; None where it is skipped or refused.
        graphs: names of the graphs.
        size_bytes: estimated size of the files: the weights at the precision.
        memory_bytes: estimated peak memory.
        refusal: why it cannot be done.
        skip: why the target leaves it out.
        caution: what a user should know of it; empty where there is nothing.
    """

    target: str
    component: str
    recipe: Recipe | None
    gate: Gate | None = None
    forms: Mapping[str, Form] = field(default_factory=dict)
    request: LowerRequest | None = None
    graphs: tuple[str, ...] = ()
    size_bytes: int = 0
    memory_bytes: int = 0
    refusal: str = ""
    skip: str = ""
    caution: str = ""

    @property
    def key(self) -> tuple[str, str]:
        """Target and component."""
        return self.target, self.component

    @property
    def precisions(self) -> tuple[Precision, ...]:
        """Those that weights have, each once; a recipe may name others as well."""
        return () if self.recipe is None else _precisions(self.recipe, self.forms)


def plan(
    checkpoint: Checkpoint, targets: Sequence[Target], components: Iterable[str] = ()
) -> tuple[PlanItem, ...]:
    """An item for each target and component (all components where none are named).

    Raises:
        UsageError: a component is unknown.
        ConfigError: a target's backend or options are wrong, a rule matches nothing, a gate is looser than
            its precisions' without a reason, or the checkpoint's scheduler cannot be written
            as numbers.
        CheckpointError: the tokenizer gives a template other ids than transformers does.
    """
    names = chosen_components(components)
    SchedulerConfig.of(checkpoint.config.diffusion.scheduler)
    require_template_ids(checkpoint)
    return tuple(_item(checkpoint, target, name, names) for target in targets for name in names)


def room_bytes(items: Iterable[PlanItem]) -> int:
    """A bound on what a folder takes that ``items`` are made in, their golden included."""
    return GOLDEN_ROOM_BYTES + int(WORKING_COPIES * sum(item.size_bytes for item in items))


def peak_bytes(items: Iterable[PlanItem]) -> int:
    """The estimated peak of an export that makes one of ``items`` after the other."""
    return max((item.memory_bytes for item in items if item.request is not None), default=0)


def short_of_memory(items: Sequence[PlanItem], available_bytes: int) -> str:
    """What to say where a component needs more memory than is available; empty where none does."""
    large = [item for item in items if item.request is not None and item.memory_bytes > available_bytes]
    if not large:
        return ""
    first = max(large, key=lambda item: item.memory_bytes)
    return (
        f"{len(large)} of {len(items)} need more memory than the {available_bytes / 1e9:.1f} GB that are "
        f"available here, most {first.target}, {first.component}: {first.memory_bytes / 1e9:.1f} GB. The "
        "export may be slow, or the system may end it; close other programs, or use a larger machine"
    )


def _item(checkpoint: Checkpoint, target: Target, name: str, names: Sequence[str]) -> PlanItem:
    """The item of component ``name`` where ``names`` are exported together."""
    chosen = target.components[name]
    vendor = backend(target.backend)
    if chosen.precision is None:
        return PlanItem(target.name, name, None, skip=chosen.skip or "")
    recipe = target.recipe(name)
    exported = {name for name in names if target.components[name].precision is not None}
    request = LowerRequest(
        target=target.name,
        component=component(name),
        recipe=recipe,
        sequence=target.sequence,
        options=target.options,
        absent=frozenset(COMPONENT_NAMES) - exported,
    )
    options = vendor.graph_options(request)
    stored, elements = _outlined(checkpoint, request, options)
    refusal = refusal_of(request, vendor, checkpoint)
    try:
        gate = shipped_gates().effective(_precisions(recipe, stored), chosen.gate)
    except ValueError as error:
        raise ConfigError(f"{target.name}, {name}: {error}. Give gate.reason, or another gate.") from error
    size_bytes = _size_bytes(elements, recipe, stored.values())
    return PlanItem(
        target=target.name,
        component=name,
        recipe=recipe,
        gate=gate,
        forms=stored,
        request=None if refusal else request,
        graphs=tuple(spec.name for spec in component(name).graphs(checkpoint, options)),
        size_bytes=size_bytes,
        memory_bytes=_memory_bytes(checkpoint, request, vendor, stored, elements),
        refusal=refusal,
        caution="" if refusal else vendor.caution(request, size_bytes),
    )


def _memory_bytes(
    checkpoint: Checkpoint, request: LowerRequest, vendor: Backend, stored: Mapping[str, Form], elements: int
) -> int:
    """The estimated peak of a process that lowers one component; see ``backends.lowering``.

    While weights are compressed, those of the checkpoint are mapped into memory. From then on there are what
    they were compressed to, a byte a number, and the converter. When the file is written, weights that stay
    floating point are mapped once more; when it is read back, its largest weight is restored.
    """
    tensors = checkpoint.component_tensors(request.component.name)
    mapped = sum(tensor.size_bytes for tensor in tensors)
    compressed = [prod(form.shape) for form in stored.values()]
    kept = LOADED_BYTES + sum(compressed) + (4 * elements if request.component.widens else 0)
    file = sum(form.size_bytes for form in stored.values()) if vendor.maps_files else 0
    reading = file + vendor.bytes_of_restored * max(compressed, default=0)
    writing = 0 if compressed else mapped + 4 * max(tensor.parameters for tensor in tensors)
    return kept + max(mapped + COMPRESSING_BYTES, vendor.converter_bytes + max(writing, reading))


def within_memory(items: Iterable[PlanItem], limit_bytes: int | None) -> tuple[PlanItem, ...]:
    """``items``, of which those are refused that by estimate need more memory than a user allows."""
    return tuple(
        item
        if limit_bytes is None or item.request is None or item.memory_bytes <= limit_bytes
        else replace(
            item,
            request=None,
            refusal=f"needs about {item.memory_bytes / 1e9:.2f} GB of memory, and --max-memory allows "
            f"{limit_bytes / 1e9:.2f} GB; allow more where the machine has it",
        )
        for item in items
    )


def refusal_of(request: LowerRequest, vendor: Backend, checkpoint: Checkpoint) -> str:
    """Why ``vendor`` cannot carry out ``request``, or an empty string."""
    lacking = [precision for precision in request.recipe.precisions if not vendor.supports(precision)]
    if lacking:
        return f"{vendor.name} does not do {lacking[0]}; it does {vendor.precisions}"
    computed = request.recipe.floating
    ruled = (rule.precision for rule in request.recipe.rules)
    if other := next(
        (precision for precision in ruled if precision.floating and precision != computed), None
    ):
        return f"a rule asks for {other}, and what is not compressed is {computed} in this component"
    return vendor.refusal(request, checkpoint)


def outlined_module(checkpoint: Checkpoint, request: LowerRequest, options: GraphOptions) -> nn.Module:
    """The module that would be lowered, without its content."""
    from mobile_o_export.components import building

    with quiet_vendor():
        return building.prepare(request.component, request.component.load(checkpoint.outline()), options)


def _outlined(
    checkpoint: Checkpoint, request: LowerRequest, options: GraphOptions
) -> tuple[Mapping[str, Form], int]:
    """How the compressed weights would be stored, and how many parameters there are in all.

    Where anything is compressed these are the module's that would be lowered, without its content; else the
    checkpoint's, which takes no time.
    """
    part = request.component
    if not request.recipe.compresses and not request.recipe.rules:
        return {}, sum(tensor.parameters for tensor in checkpoint.component_tensors(part.name))
    from mobile_o_export.compression.compress import forms

    module = outlined_module(checkpoint, request, options)
    found = forms(module, request.recipe, f"{part.name} for {request.target}")
    return found, sum(parameter.numel() for parameter in module.parameters())


def _precisions(recipe: Recipe, stored: Mapping[str, Form]) -> tuple[Precision, ...]:
    return tuple(dict.fromkeys((recipe.floating, *(form.precision for form in stored.values()))))


def _size_bytes(elements: int, recipe: Recipe, stored: Iterable[Form]) -> int:
    """Of the weights, those that are not compressed in floating point."""
    stored = tuple(stored)
    rest = elements - sum(prod(form.shape) for form in stored)
    return rest * recipe.floating.weight_bits // 8 + sum(form.size_bytes for form in stored)
