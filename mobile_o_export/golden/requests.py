"""What a golden is recorded on: prompts and images from ``golden/prompts.toml``, or the user's own."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from mobile_o_export.errors import ConfigError
from mobile_o_export.pipelines.noise import LARGEST_SEED
from mobile_o_export.pipelines.schedule import MOST_STEPS
from mobile_o_export.pipelines.settings import MOST_GUIDANCE
from mobile_o_export.resources import shipped
from mobile_o_export.strict import Strict, read_toml

MOST_TOKENS = 4096
"""Of an answer: every one is computed in PyTorch, and again on every target."""


class Generate(Strict):
    """A text-to-image prompt."""

    name: str
    prompt: str
    seed: int = Field(default=0, ge=0, le=LARGEST_SEED)
    steps: int = Field(default=20, ge=1, le=MOST_STEPS)
    guidance: float | None = Field(default=None, ge=-MOST_GUIDANCE, le=MOST_GUIDANCE, allow_inf_nan=False)


class Edit(Generate):
    """An image and how to change it."""

    image: str


class Describe(Strict):
    """A question about an image, answered greedily with ``tokens`` tokens."""

    name: str
    image: str
    question: str
    tokens: int = Field(default=24, ge=2, le=MOST_TOKENS)


class Requests(Strict):
    """All of them; image paths are relative to the file."""

    generate: tuple[Generate, ...] = Field(min_length=1)
    edit: tuple[Edit, ...] = ()
    describe: tuple[Describe, ...] = Field(min_length=1)


def load_requests(path: Path | None) -> tuple[Requests, Path]:
    """The requests in ``path``, by default the shipped ones, and the folder that images are relative to.

    Raises:
        ConfigError: the file breaks its rules, or two requests share a name.
    """
    path = path or shipped("golden") / "prompts.toml"
    requests = read_toml(path, Requests)
    names = [item.name for item in requests.generate]
    names += [item.name for item in requests.edit]
    names += [item.name for item in requests.describe]
    if twice := {name for name in names if names.count(name) > 1}:
        raise ConfigError(f"{path}: the name {sorted(twice)[0]!r} is given twice. Rename one.")
    return requests, path.parent
