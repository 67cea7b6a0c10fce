"""The steps that the tasks consist of, written once for every runtime."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from mobile_o_export.errors import GateError, PromptTooLongError, UsageError
from mobile_o_export.parity.metrics import Array
from mobile_o_export.pipelines.prompts import IMAGE_TOKEN, SLOT, Task, Templates
from mobile_o_export.pipelines.runner import Runner
from mobile_o_export.tokenizer import Tokenizer


class Scheduler(Protocol):
    """Integrates the flow from noise to image."""

    timesteps: Array

    def step(self, velocity: Array, index: int, latent: Array) -> Array:
        """The latent after step ``index``."""
        ...


@dataclass(frozen=True)
class Conditioning:
    """What steers the DiT: both branches of classifier-free guidance, each [1, S, F].

    The unconditional one is the MCP's result for zeroed hidden states, not zeros.
    """

    conditional: Array
    unconditional: Array


@dataclass(frozen=True)
class Prompt:
    """A prompt as token ids, around the place of the image features where it has one.

    Attributes:
        before: int32 [1, S], all of it where there is no image.
        after: int32 [1, S], what follows the image.
        length: tokens in all, the image's included.
    """

    before: Array
    after: Array | None
    length: int


def tokenize(tokenizer: Tokenizer, text: str, image_tokens: int) -> Prompt:
    """The tokens of a filled template; an image counts ``image_tokens``."""
    first, image, rest = text.partition(IMAGE_TOKEN)
    before = tokenizer.encode(first)
    after = tokenizer.encode(rest) if image else None
    length = before.shape[1] + (image_tokens + after.shape[1] if after is not None else 0)
    return Prompt(before, after, length)


def fitted_prompt(
    tokenizer: Tokenizer,
    templates: Templates,
    task: Task,
    text: str,
    image_tokens: int,
    source: str,
    longest: int,
    truncate: bool,
) -> Prompt:
    """The prompt of ``task`` with the user's ``text``, cut at its end to ``longest`` if ``truncate``.

    ``source`` is what sets the limit, for messages.

    Raises:
        UsageError: the text is empty, or holds the image's placeholder.
        PromptTooLongError: it makes too long a prompt.
    """
    if not text.strip():
        raise UsageError("the prompt is empty. Say what to draw, change or answer.")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise UsageError(f"the prompt is no UTF-8 text: {error}. Type it in a UTF-8 terminal.") from error
    if IMAGE_TOKEN in text:
        raise UsageError(f"the prompt holds {IMAGE_TOKEN}, which stands for the picture. Leave it out.")

    def prompt_of(words: str) -> Prompt:
        return tokenize(tokenizer, templates.fill(task, words), image_tokens)

    prompt = prompt_of(text)
    excess = prompt.length - longest
    if excess <= 0:
        return prompt
    if not truncate:
        image = f", {image_tokens} of them the image's," if prompt.after is not None else ""
        raise PromptTooLongError(
            f"the prompt has {prompt.length} tokens{image} and {source} has room for {longest}. "
            "Shorten it, let it be cut with --truncate, or export with a longer [sequence]."
        )
    ends = tokenizer.ends(text)
    # Cutting a word can change how its rest is divided, so one token less may take another round.
    for kept in range(len(ends) - excess, 0, -1):
        words = text[: ends[kept - 1]]
        if words.strip() and (shorter := prompt_of(words)).length <= longest:
            return shorter
    needed = prompt_of(SLOT).length
    raise PromptTooLongError(
        f"{source} has room for {longest} tokens, and this task's template alone needs about "
        f"{needed}. Export with a longer [sequence]."
    )


def embed_prompt(llm: Runner, prompt: Prompt, image_features: Array | None, longest: int) -> Array:
    """Embeddings [1, S, D] of ``prompt``, the image features [1, N, D] in the image's place."""
    parts = [embed(llm, prompt.before, longest)]
    if prompt.after is not None:
        assert image_features is not None
        parts += [image_features, embed(llm, prompt.after, longest)]
    return np.concatenate(parts, axis=1)


def embed(llm: Runner, ids: Array, longest: int) -> Array:
    """Embeddings [1, S, D] of token ids int32 [1, S], by calls of at most ``longest`` tokens."""
    pieces = [ids[:, start : start + longest] for start in range(0, ids.shape[1], longest)]
    embeds = [llm.run("embed", {"input_ids": piece})["inputs_embeds"] for piece in pieces]
    return embeds[0] if len(embeds) == 1 else np.concatenate(embeds, axis=1)


def finite(component: str, name: str, value: Array) -> Array:
    """``value``, an output of ``component``, which decides what comes next.

    Raises:
        GateError: it holds NaN or infinity: a black picture or a wrong token would follow without a word.
    """
    if not np.isfinite(value).all():
        raise GateError(
            f"{component} computed NaN or infinity ({name}): its arithmetic overflows. "
            "'mobile-o-export verify' says where; export it at a higher precision."
        )
    return value


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
) -> Iterator[Array]:
    """The latent [1, C, Y, X] after each step; the last one is denoised.

    ``before_call`` is told the step's index and the guidance branch before each call of the DiT.
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
            velocities.append(finite("dit", "velocity", dit.run("denoise", inputs)["velocity"]))
        steered = velocities[1] + np.float32(guidance) * (velocities[0] - velocities[1])
        latent = scheduler.step(steered, index, latent)
        yield latent


def decode_latent(vae: Runner, latent: Array, scaling_factor: float) -> Array:
    """The image [1, 3, O, O], nominally in -1..1, of a denoised latent."""
    image = vae.run("decode", {"latent": latent / np.float32(scaling_factor)})["image"]
    return finite("vae_decoder", "image", image)
