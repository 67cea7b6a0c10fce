"""Recipes: which weight of a component is stored at which precision."""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatchcase
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, StringConstraints

from mobile_o_export.errors import ConfigError
from mobile_o_export.precision import Precision
from mobile_o_export.strict import Strict, nearest


def _listed(value: Any) -> Any:
    """A pattern that stands alone, as the only one of a list."""
    return [value] if isinstance(value, str) else value


class Rule(Strict):
    """The precision of every weight whose name matches one of some patterns.

    Attributes:
        match: shell-style, of whole names: ``transformer_blocks.*.ff.*``; a file may give one without a list.
        precision: of those weights.
        reason: why, for a reader.
    """

    match: Annotated[
        tuple[Annotated[str, StringConstraints(min_length=1)], ...],
        BeforeValidator(_listed, json_schema_input_type=str | list[str]),
        Field(min_length=1),
    ]
    precision: Precision
    reason: str = ""

    def concerns(self, name: str) -> bool:
        """Whether it speaks of the weight ``name``."""
        return any(fnmatchcase(name, pattern) for pattern in self.match)


class Recipe(Strict):
    """The precisions of a component's weights: the first rule that matches, else the default.

    Vectors (norms, biases) and small matrices stay floating point whatever it says.

    Attributes:
        floating: what is computed in, and how weights are stored that are not compressed.
        default: of weights that no rule matches.
        rules: in order.
        importance: fit palettes to errors weighed by the power of what each weight is multiplied by.
    """

    floating: Precision
    default: Precision
    rules: tuple[Rule, ...] = ()
    importance: bool = False

    @property
    def compresses(self) -> bool:
        """Whether any weight may be stored in fewer bits."""
        return not all(precision.floating for precision in self.precisions)

    @property
    def calibrated(self) -> bool:
        """Whether it needs to know what activations are like."""
        return self.importance or any(precision.calibrated_bits for precision in self.precisions)

    @property
    def precisions(self) -> tuple[Precision, ...]:
        """Every precision that it names, each once."""
        return tuple(dict.fromkeys((self.floating, self.default, *(rule.precision for rule in self.rules))))

    def __str__(self) -> str:
        """In few words: the default, and what rules make others."""
        others = [str(precision) for precision in self.precisions[1:] if precision != self.default]
        return str(self.default) + (f" ({', '.join(others)} by rules)" if others else "")

    def of(self, name: str) -> Precision:
        """The precision of the weight ``name``."""
        return next((rule.precision for rule in self.rules if rule.concerns(name)), self.default)

    def require_used(self, names: Iterable[str], where: str) -> None:
        """Raises ConfigError where a rule's pattern matches none of the weights ``names``."""
        known = list(names)
        for pattern in (pattern for rule in self.rules for pattern in rule.match):
            if not any(fnmatchcase(name, pattern) for name in known):
                others = f" There are {', '.join(known[:3])} …" if known else ""
                raise ConfigError(
                    f"{where}: the rule {pattern!r} matches no weight.{nearest(pattern, known)}{others}"
                    " Correct or remove it."
                )
