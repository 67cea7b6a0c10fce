"""PyTorch behind the interface that files are run by: the truth that goldens record."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import numpy as np

from mobile_o_export.components.registry import component
from mobile_o_export.components.sizes import sizes
from mobile_o_export.errors import CheckpointError
from mobile_o_export.parity.metrics import Array
from mobile_o_export.pipelines.pipeline import TORCH, Pipeline
from mobile_o_export.pipelines.prompts import STOPS, Templates
from mobile_o_export.pipelines.runner import Limits, Runners
from mobile_o_export.pipelines.settings import (
    DEFAULT_GUIDANCE,
    PipelineNumbers,
    Preprocessing,
    SchedulerNumbers,
    Settings,
)
from mobile_o_export.pipelines.template_ids import require_control_tokens
from mobile_o_export.pipelines.workbench import Workbench
from mobile_o_export.progress import Say, silent
from mobile_o_export.quiet import quiet_vendor
from mobile_o_export.strict import check
from mobile_o_export.tokenizer import Tokenizer

if TYPE_CHECKING:
    from mobile_o_export.checkpoint import Checkpoint
    from mobile_o_export.components.base import ReferenceCalls


DEFAULT_CONTEXT = 32768
"""Qwen2's own, where ``config.json`` is silent."""


class TorchRunner:
    """One component in PyTorch, fp32, unpadded."""

    def __init__(self, calls: ReferenceCalls) -> None:
        import torch

        self._calls: ReferenceCalls | None = calls
        self.threads = torch.get_num_threads()
        self.runtime = f"PyTorch {version('torch')}, fp32"

    @classmethod
    def of(cls, checkpoint: Checkpoint, name: str) -> TorchRunner:
        """The component ``name`` of ``checkpoint``."""
        found = component(name)
        # transformers and diffusers warn about packages of others while they are imported.
        with quiet_vendor():
            module = found.load(checkpoint)
        return cls(found.reference(module, checkpoint))

    def run(self, function: str, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Outputs of ``function`` by name."""
        import torch

        assert self._calls is not None, "the runner is closed"
        with torch.no_grad():
            tensors = {name: torch.from_numpy(value) for name, value in inputs.items()}
            outputs = self._calls.call(function, tensors)
        return {name: tensor.contiguous().numpy() for name, tensor in outputs.items()}

    def close(self) -> None:
        """Lets go of the weights."""
        self._calls = None


class TorchRunners:
    """Opens components of a checkpoint; each is loaded when opened and freed when closed."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint
        longest = checkpoint.config.language.get("max_position_embeddings", DEFAULT_CONTEXT)
        self.limits = Limits("the model", longest, longest)

    def require(self, names: Sequence[str]) -> None:
        """Nothing: a checkpoint holds every component."""

    @contextmanager
    def open(self, name: str) -> Iterator[TorchRunner]:
        """The component ``name`` as a runner."""
        runner = TorchRunner.of(self._checkpoint, name)
        try:
            yield runner
        finally:
            # Whoever still holds the runner must not hold the weights.
            runner.close()


class DiffusersScheduler:
    """diffusers' DPM-Solver++ with flow sigmas, from the checkpoint's scheduler configuration."""

    def __init__(self, config: Mapping[str, Any], steps: int) -> None:
        from diffusers import DPMSolverMultistepScheduler

        try:
            with quiet_vendor():
                self._scheduler: Any = DPMSolverMultistepScheduler.from_config(dict(config))
                self._scheduler.set_timesteps(steps)
        # A configuration is data, and diffusers raises whatever a wrong value runs into.
        except Exception as error:
            raise CheckpointError(
                f"scheduler_config.json: diffusers cannot build the scheduler ({type(error).__name__}: "
                f"{error}). Restore the one that Mobile-O was trained with."
            ) from error
        self.timesteps: Array = self._scheduler.timesteps.numpy().astype(np.float32)
        self.sigmas: Array = self._scheduler.sigmas.numpy()

    def step(self, velocity: Array, index: int, latent: Array) -> Array:
        """The latent after step ``index``, in fp32."""
        import torch

        after = self._scheduler.step(
            torch.from_numpy(velocity), self._scheduler.timesteps[index], torch.from_numpy(latent)
        ).prev_sample
        out: Array = after.numpy()
        return out


def settings(checkpoint: Checkpoint, tokenizer: Tokenizer) -> Settings:
    """What an app needs to know of ``checkpoint`` beside its graphs.

    Raises:
        ConfigError: its scheduler cannot be written as numbers.
        CheckpointError: its tokenizer lacks the tokens of the chat template.
    """
    require_control_tokens(tokenizer, checkpoint.path)
    model, s = checkpoint.config, sizes(checkpoint)
    numbers = {
        "guidance": DEFAULT_GUIDANCE if model.guidance is None else model.guidance,
        "vae_scaling_factor": model.diffusion.vae["scaling_factor"],
        "latent_shape": (1, s.latent_channels, s.latent, s.latent),
        "image_tokens": s.image_tokens,
        "conditioning_layers": s.conditioning_layers,
        "stop_token_ids": tuple(_stops(model.language.get("eos_token_id"), tokenizer)),
        "pad_token_id": model.language.get("pad_token_id"),
    }
    return Settings(
        numbers=check(numbers, PipelineNumbers, f"{checkpoint.path}", CheckpointError),
        preprocessing=Preprocessing(image_size=s.image, square_first=model.image_aspect_ratio == "pad"),
        templates=Templates(),
        scheduler=SchedulerNumbers.of(model.diffusion.scheduler),
    )


def _stops(configured: int | list[int] | None, tokenizer: Tokenizer) -> Iterable[int]:
    """The ids that end an answer: the configuration's, and Qwen's where the vocabulary has them."""
    ids = [configured] if isinstance(configured, int) else configured or []
    found = {*ids, *(tokenizer.id_of(token) for token in STOPS)}
    return sorted(token for token in found if token is not None)


def torch_pipeline(
    checkpoint: Checkpoint, runners: Runners | None = None, *, keep: bool = True, say: Say = silent
) -> Pipeline:
    """The tasks in PyTorch, with diffusers' scheduler; over ``runners``, by default ``TorchRunners``."""
    tokenizer = Tokenizer(checkpoint.path)
    bench = Workbench(
        runners or TorchRunners(checkpoint), tokenizer, settings(checkpoint, tokenizer), keep=keep, say=say
    )
    config = checkpoint.config.diffusion.scheduler
    return Pipeline(bench, lambda steps: DiffusersScheduler(config, steps), TORCH)
