"""Targets: where a model goes, as data in ``targets/*.toml``."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, Self

from pydantic import Field, StrictBool, model_validator

from mobile_o_export.components.registry import COMPONENT_NAMES, chosen_components
from mobile_o_export.compression.recipe import Recipe, Rule
from mobile_o_export.errors import ConfigError, UsageError
from mobile_o_export.parity.gates import Gate
from mobile_o_export.precision import Precision
from mobile_o_export.resources import shipped
from mobile_o_export.strict import Strict, nearest, read_toml

UNCOMPRESSED = "uncompressed"
"""Instead of a precision's name: the target's own floating point."""

RESERVED_NAMES = frozenset({"bundle", "config", "golden", "tokenizer", "torch", "vectors"})
"""Folders of a bundle beside its targets', and what commands call the bundle and PyTorch."""

SEQUENCE_KEYS = "either lengths (buckets, for static shapes) or max_length (for dynamic ones)"


MOST_LENGTHS = 64
"""Each is a graph of its own."""

MOST_CONTEXT = 2**24
"""Beyond any language model's, and few enough to be counted in fp32."""


class Sequence(Strict):
    """How sequence functions meet prompts of any length.

    Attributes:
        lengths: bucket lengths, ascending; empty for dynamic axes.
        max_length: the longest prompt of a dynamic axis.
        context: capacity of the KV cache, positions.
    """

    lengths: tuple[int, ...] = Field(default=(), max_length=MOST_LENGTHS)
    max_length: int | None = Field(default=None, ge=1)
    context: int = Field(gt=1, lt=MOST_CONTEXT)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if bool(self.lengths) == (self.max_length is not None):
            raise ValueError(f"give {SEQUENCE_KEYS}")
        if list(self.lengths) != sorted(set(self.lengths)) or min(self.lengths, default=1) < 1:
            raise ValueError("lengths must be positive and ascending")
        if self.longest >= self.context:
            raise ValueError("the longest prompt must be shorter than the context")
        return self

    @property
    def longest(self) -> int:
        """The longest prompt."""
        return self.lengths[-1] if self.lengths else self.max_length or 0


class ComponentPlan(Strict):
    """What a target does with one component: a precision, or ``skip`` with the reason.

    ``rules`` give some weights another precision; ``importance`` is as in ``Recipe``. A ``gate`` replaces the
    precisions' own; a looser one needs its reason.
    """

    precision: Precision | None = None
    rules: tuple[Rule, ...] = ()
    importance: StrictBool = False
    skip: str | None = Field(default=None, min_length=1)
    gate: Gate | None = None

    @model_validator(mode="after")
    def _one_of_two(self) -> Self:
        if (self.precision is None) == (self.skip is None):
            raise ValueError('give a precision, or skip = "the reason"')
        if (self.gate is not None or self.rules or self.importance) and self.precision is None:
            raise ValueError("a component that is skipped has no gate, no rules and no importance")
        return self


class ComponentRecipe(Strict):
    """The precision of a component's weights, and of some by rules; the rest as in ``ComponentPlan``."""

    precision: Precision
    rules: tuple[Rule, ...] = ()
    importance: StrictBool = False
    gate: Gate | None = None


class RecipeFile(Strict):
    """A recipe's file: what to use instead of a target's own precisions."""

    components: dict[str, ComponentRecipe] = Field(min_length=1)

    @model_validator(mode="after")
    def _names_components(self) -> Self:
        _require_components(self.components)
        return self


class Target(Strict):
    """One target file.

    Attributes:
        floating: what is computed in, and how weights are stored that are not compressed.
        candidates: what ``tune`` chooses from, each where the backend does it for a component.
    """

    name: str
    backend: str
    description: str
    sequence: Sequence
    floating: Precision
    candidates: tuple[Precision, ...] = ()
    options: dict[str, Any] = Field(default_factory=dict)
    components: dict[str, ComponentPlan]

    @model_validator(mode="after")
    def _has_a_folder_of_its_own(self) -> Self:
        if not re.fullmatch(r"\w[\w-]*", self.name) or self.name in RESERVED_NAMES:
            raise ValueError(
                f"the name {self.name!r} cannot be a folder of a bundle. Use letters, digits, - and _, and "
                f"none of {', '.join(sorted(RESERVED_NAMES))}"
            )
        return self

    @model_validator(mode="after")
    def _computes_in_floating_point(self) -> Self:
        if not self.floating.floating:
            raise ValueError(f"floating must be fp32, fp16 or w16, not {self.floating}")
        return self

    @model_validator(mode="after")
    def _names_every_component(self) -> Self:
        _require_components(self.components)
        if missing := [name for name in COMPONENT_NAMES if name not in self.components]:
            raise ValueError(f"says nothing of {', '.join(missing)}: give a precision or skip each")
        return self

    def with_recipes(self, recipes: Mapping[str, ComponentRecipe]) -> Target:
        """This target with other precisions for components that it does not skip.

        A gate of the target's own stays where the weights are compressed to the same precisions as before.
        """
        changed = {
            name: _replaced(chosen, recipes[name])
            for name, chosen in self.components.items()
            if name in recipes and chosen.skip is None
        }
        return self.model_copy(update={"components": {**self.components, **changed}})

    def recipe(self, component: str) -> Recipe:
        """The precisions of the weights of a component that is not skipped."""
        chosen = self.components[component]
        assert chosen.precision is not None
        floating = chosen.precision if chosen.precision.floating else self.floating
        return Recipe(
            floating=floating,
            default=chosen.precision,
            rules=chosen.rules,
            importance=chosen.importance,
        )


def _replaced(chosen: ComponentPlan, recipe: ComponentRecipe) -> ComponentPlan:
    same = _compressed(chosen) == _compressed(recipe)
    return ComponentPlan(**{**dict(recipe), "gate": recipe.gate or (chosen.gate if same else None)})


def _compressed(chosen: ComponentPlan | ComponentRecipe) -> set[Precision]:
    """The precisions that are not floating point."""
    named = {chosen.precision, *(rule.precision for rule in chosen.rules)}
    return {precision for precision in named if precision is not None and not precision.floating}


def _require_components(names: Iterable[str]) -> None:
    for name in names:
        if name not in COMPONENT_NAMES:
            raise ValueError(
                f"component {name!r} is unknown.{nearest(name, COMPONENT_NAMES)} Use "
                f"{', '.join(COMPONENT_NAMES)}"
            )


def target_names() -> list[str]:
    """The names of the shipped targets."""
    return sorted(path.stem for path in shipped("targets").glob("*.toml"))


def load_target(name_or_path: str) -> Target:
    """The shipped target of that name, or the one in that .toml file.

    Raises:
        UsageError: there is no such target.
        ConfigError: its file is wrong.
    """
    path = Path(name_or_path)
    if path.suffix != ".toml":
        path = shipped("targets") / f"{name_or_path}.toml"
        if not path.is_file():
            known = target_names()
            raise UsageError(
                f"target {name_or_path!r} is unknown.{nearest(name_or_path, known)} Use one of "
                f"{', '.join(known)}, or give the path of a .toml file."
            )
    target = read_toml(path, Target)
    if target.name != path.stem:
        raise ConfigError(f"{path}: name = {target.name!r} must be the file's own name, {path.stem!r}.")
    return target


def load_targets(
    names: list[str], precisions: Collection[str] = (), recipe: Path | None = None
) -> list[Target]:
    """Several targets, each once.

    Args:
        names: shipped ones, or .toml files.
        precisions: instead of their own: of every component that is not skipped, or ``component=precision``;
            ``uncompressed`` is each target's floating point.
        recipe: a .toml file of precisions and rules for components, likewise; ``precisions`` come before it.

    Raises:
        UsageError: one is unknown, two have one name, or a precision is not known.
        ConfigError: the recipe's file is wrong.
    """
    targets = [load_target(name) for name in dict.fromkeys(names)]
    found = [target.name for target in targets]
    if twice := {name for name in found if found.count(name) > 1}:
        raise UsageError(f"two targets are called {sorted(twice)[0]!r}. Rename one and its file.")
    chosen = {} if recipe is None else dict(read_toml(recipe, RecipeFile).components)
    for index, target in enumerate(targets):
        asked = dict(chosen)
        for text in precisions:
            asked.update(_chosen(text, target.floating))
        targets[index] = target.with_recipes(asked)
    return targets


def _chosen(text: str, floating: Precision) -> dict[str, ComponentRecipe]:
    """What ``P`` or ``component=P`` asks of components, for a target that computes in ``floating``."""
    component, of_one, name = text.rpartition("=")
    components = chosen_components([component] if of_one else ())
    try:
        wanted = ComponentRecipe(precision=floating if name == UNCOMPRESSED else Precision.parse(name))
    except ValueError as error:
        raise UsageError(f"{error}.") from error
    return dict.fromkeys(components, wanted)
