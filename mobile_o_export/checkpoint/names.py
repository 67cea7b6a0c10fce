"""Names that training wraps around a tensor's own: DDP's, torch.compile's, PEFT's."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

HEAD, EMBEDDINGS = "lm_head.weight", "model.embed_tokens.weight"

PEFT_PREFIX = "base_model.model."

_WRAPPERS = re.compile(r"^(?:module\.|base_model\.model\.)+|(?:(?<=^)|(?<=\.))_orig_mod\.")
"""DDP prefixes ``module.``, PEFT ``base_model.model.``; torch.compile inserts ``_orig_mod.`` anywhere."""

_FACTOR = re.compile(
    r"\.lora_(?:A|B|embedding_A|embedding_B|magnitude_vector)\b|\.base_layer\.|\.modules_to_save\."
)
"""What a model holds whose adapter was not merged."""


def unwrapped(name: str) -> str:
    """``name`` without what wrappers put before or into it."""
    while (bare := _WRAPPERS.sub("", name)) != name:
        name = bare
    return name


@dataclass(frozen=True)
class Names:
    """Which stored tensor is which of the model's.

    Attributes:
        stored: own name → stored name.
        ignored: stored names of second copies, under a wrapper's name beside their own. The published
            Mobile-O-0.5B-SFT has 1,207; transformers, which looks tensors up by their own names, leaves
            them out, too.
    """

    stored: Mapping[str, str]
    ignored: tuple[str, ...]

    @classmethod
    def of(cls, found: Iterable[str]) -> Names:
        """The names in a checkpoint's files.

        Raises:
            ValueError: an adapter was not merged, or two wrapped tensors have one own name.
        """
        found = list(found)
        if factor := next((name for name in found if _FACTOR.search(name)), None):
            raise ValueError(
                f"{factor} belongs to an adapter that was not merged. Merge it with PEFT (merge_and_unload) "
                "and save the result"
            )
        stored = {name: name for name in found if unwrapped(name) == name}
        ignored = []
        wrapped: dict[str, str] = {}
        for name in found:
            own = unwrapped(name)
            if own == name:
                continue
            if own in stored:
                ignored.append(name)
            elif own in wrapped:
                raise ValueError(f"{wrapped[own]} and {name} are both {own}. Keep one of the two")
            else:
                wrapped[own] = name
        return cls({**stored, **wrapped}, tuple(sorted(ignored)))
