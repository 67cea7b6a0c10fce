"""What a checkpoint holds, as a value to print or to write."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from mobile_o_export.checkpoint.reader import COMPONENT_PREFIXES, RANDOM_MARKER, Checkpoint

SCHEMA_VERSION = 1
"""Of :meth:`CheckpointReport.to_json`; raised when a field changes its meaning or goes away."""


@dataclass(frozen=True)
class ComponentReport:
    """One component's stored tensors: how many, how many numbers and bytes, and in which dtypes."""

    name: str
    tensors: int
    parameters: int
    size_bytes: int
    dtypes: tuple[str, ...]


@dataclass(frozen=True)
class LoraReport:
    """The adapter that reading merges in; ``beside`` are files of what was trained with it, and read, too."""

    path: str
    rank: int
    alpha: float
    targets: int
    digest: str
    beside: tuple[str, ...]


@dataclass(frozen=True)
class CheckpointReport:
    """Components, totals, digest and the settings that tell one checkpoint from another.

    ``dtypes`` are those of floating-point tensors; the batch norms' integer counters are left out of them
    and of ``parameters``, as everywhere else where parameters are counted. ``settings`` are the sizes that
    a reader wants to see, by the names of ``config.json``. ``second_copies`` counts tensors that are stored
    twice, once under a name that training wrapped them in, and are read under their own.
    """

    path: str
    digest: str
    components: tuple[ComponentReport, ...]
    settings: dict[str, int | str | None]
    random_weights: bool
    second_copies: int
    lora: LoraReport | None

    @property
    def parameters(self) -> int:
        """Numbers in all components."""
        return sum(component.parameters for component in self.components)

    @property
    def size_bytes(self) -> int:
        """Bytes of all components."""
        return sum(component.size_bytes for component in self.components)

    @property
    def dtypes(self) -> tuple[str, ...]:
        """Floating-point dtypes of all components, sorted."""
        return tuple(sorted({dtype for component in self.components for dtype in component.dtypes}))

    def to_json(self) -> dict[str, Any]:
        """The stable form that ``inspect --json`` prints."""
        return {
            "schema_version": SCHEMA_VERSION,
            **asdict(self),
            "parameters": self.parameters,
            "size_bytes": self.size_bytes,
            "dtypes": list(self.dtypes),
        }


def inspect(checkpoint: Checkpoint) -> CheckpointReport:
    """The report on ``checkpoint``; computing its digest reads every byte once.

    Components that the checkpoint lacks (the VAE's encoder may) are left out.
    """
    config, lora = checkpoint.config, checkpoint.lora
    components = (_component(checkpoint, name) for name in COMPONENT_PREFIXES)
    return CheckpointReport(
        path=str(checkpoint.path),
        digest=checkpoint.digest,
        components=tuple(component for component in components if component.tensors),
        settings={
            "model_type": config.raw["model_type"],
            "hidden_size": config.language["hidden_size"],
            "num_hidden_layers": config.language["num_hidden_layers"],
            "vocab_size": config.language["vocab_size"],
            "image_size": config.image_size,
            "image_aspect_ratio": config.image_aspect_ratio,
            "vlm_num_layers": config.conditioning_layers,
            "diffusion": config.diffusion.source,
            "dit_layers": config.diffusion.transformer["num_layers"],
            "latent_channels": config.diffusion.vae["latent_channels"],
            "sample_size": config.diffusion.transformer["sample_size"],
        },
        random_weights=bool(config.raw.get(RANDOM_MARKER)),
        second_copies=len(checkpoint.second_copies),
        lora=None
        if lora is None
        else LoraReport(
            str(lora.path),
            lora.rank,
            lora.alpha,
            len(lora.targets),
            lora.digest,
            tuple(path.relative_to(lora.path).as_posix() for path in lora.beside.files),
        ),
    )


def _component(checkpoint: Checkpoint, name: str) -> ComponentReport:
    tensors = checkpoint.component_tensors(name)
    numbers = [info for info in tensors if info.dtype != "int64"]
    return ComponentReport(
        name=name,
        tensors=len(tensors),
        parameters=sum(info.parameters for info in numbers),
        size_bytes=sum(info.size_bytes for info in tensors),
        dtypes=tuple(sorted({info.dtype for info in numbers})),
    )
