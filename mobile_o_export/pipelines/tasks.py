"""Text-to-image, editing and understanding, written once for every runtime."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from mobile_o_export.parity.metrics import Array
from mobile_o_export.pipelines import prompts
from mobile_o_export.pipelines.runner import Runner
from mobile_o_export.quiet import quiet_vendor

if TYPE_CHECKING:
    from mobile_o_export.pipelines.tokenizer import Tokenizer

DEFAULT_STEPS = 20
DEFAULT_GUIDANCE = 1.2
"""Both as the reference implementation runs the model."""


class Scheduler(Protocol):
    """Integrates the flow from noise to image."""

    timesteps: Array

    def step(self, velocity: Array, index: int, latent: Array) -> Array:
        """The latent after step ``index``."""
        ...


class DiffusersScheduler:
    """diffusers' DPM-Solver++ with flow sigmas, from the checkpoint's scheduler configuration."""

    def __init__(self, config: Any, steps: int) -> None:
        from diffusers import DPMSolverMultistepScheduler

        with quiet_vendor():
            self._scheduler: Any = DPMSolverMultistepScheduler.from_config(dict(config))
            self._scheduler.set_timesteps(steps)
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


def embed_prompt(llm: Runner, tokenizer: Tokenizer, text: str, image_features: Array | None) -> Array:
    """Embeddings [1, S, D] of ``text``, the image features in the place of ``IMAGE_TOKEN``."""
    before, token, after = text.partition(prompts.IMAGE_TOKEN)
    parts = [llm.run("embed", {"input_ids": tokenizer.encode(before)})["inputs_embeds"]]
    if token:
        assert image_features is not None
        parts.append(image_features)
        parts.append(llm.run("embed", {"input_ids": tokenizer.encode(after)})["inputs_embeds"])
    return np.concatenate(parts, axis=1)


@dataclass(frozen=True)
class Conditioning:
    """What steers the DiT: both branches of classifier-free guidance, each [1, S, F].

    The unconditional one is the MCP's result for zeroed hidden states, not zeros.
    """

    conditional: Array
    unconditional: Array


def project(mcp: Runner, hidden_states: Array) -> Conditioning:
    """The MCP's two results for ``hidden_states`` [1, K, S, D]."""
    zeroed = np.zeros_like(hidden_states)
    return Conditioning(
        conditional=mcp.run("project", {"hidden_states": hidden_states})["conditioning"],
        unconditional=mcp.run("project", {"hidden_states": zeroed})["conditioning"],
    )


def denoise(
    dit: Runner,
    conditioning: Conditioning,
    latent: Array,
    scheduler: Scheduler,
    guidance: float,
    before_call: Callable[[int, str], None] = lambda _index, _branch: None,
    after_step: Callable[[int, Array], None] = lambda _index, _latent: None,
) -> Array:
    """The denoised latent [1, C, Y, X].

    ``before_call`` is told the step's index and the guidance branch before each call of the DiT,
    ``after_step`` the index and the latent after each step.
    """
    branches = (("conditional", conditioning.conditional), ("unconditional", conditioning.unconditional))
    for index, timestep in enumerate(scheduler.timesteps):
        velocities = []
        for name, condition in branches:
            before_call(index, name)
            inputs = {
                "latent": latent,
                "timestep": np.array([timestep], np.float32),
                "conditioning": condition,
            }
            velocities.append(dit.run("denoise", inputs)["velocity"])
        steered = velocities[1] + np.float32(guidance) * (velocities[0] - velocities[1])
        latent = scheduler.step(steered, index, latent)
        after_step(index, latent)
    return latent


def decode_latent(vae: Runner, latent: Array, scaling_factor: float) -> Array:
    """The image [1, 3, H, W], nominally in -1..1, of a denoised latent."""
    return vae.run("decode", {"latent": latent / np.float32(scaling_factor)})["image"]


def greedy_tokens(
    llm: Runner, embeds: Array, count: int, before_call: Callable[[int], None] = lambda _index: None
) -> Iterator[int]:
    """The ``count`` most likely next tokens after ``embeds`` [1, S, D], one after the other.

    ``before_call`` is told how many tokens were given before each call that computes the next.
    """
    before_call(0)
    logits = llm.run("prefill", {"inputs_embeds": embeds})["logits"]
    for index in range(1, count + 1):
        token = int(logits[0, -1].argmax())
        yield token
        if index < count:
            embed = llm.run("embed", {"input_ids": np.array([[token]], np.int32)})["inputs_embeds"]
            before_call(index)
            logits = llm.run("decode", {"inputs_embeds": embed})["logits"]
