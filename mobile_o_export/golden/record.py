"""Runs the PyTorch pipeline on real prompts and images and captures each function along the way."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mobile_o_export.backends.versions import installed
from mobile_o_export.components.registry import COMPONENT_NAMES, component
from mobile_o_export.golden.requests import Requests
from mobile_o_export.golden.store import Recorder
from mobile_o_export.parity.metrics import Array
from mobile_o_export.pipelines import prompts, tasks
from mobile_o_export.pipelines.preprocessing import load_picture, pixel_values
from mobile_o_export.pipelines.tokenizer import Tokenizer
from mobile_o_export.progress import Say
from mobile_o_export.reference import TorchRunners

if TYPE_CHECKING:
    from mobile_o_export.checkpoint import Checkpoint
    from mobile_o_export.pipelines.runner import Runner

CONTINUED_TOKENS = 3
"""After each drawing prompt: one from the prompt's logits and two that read its KV cache."""

Call = tuple[str, Mapping[str, Array], Mapping[str, Array]]


class CallLog:
    """A runner that keeps the calls of the functions in ``wanted``.

    ``kept`` names the outputs to keep of the next calls; None keeps all.
    """

    def __init__(self, runner: Runner, wanted: Iterable[str]) -> None:
        self._runner = runner
        self._wanted = frozenset(wanted)
        self.calls: list[Call] = []
        self.kept: frozenset[str] | None = None

    def run(self, function: str, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """As the runner underneath."""
        outputs = self._runner.run(function, inputs)
        if function in self._wanted:
            kept = {name: out for name, out in outputs.items() if self.kept is None or name in self.kept}
            self.calls.append((function, dict(inputs), kept))
        return outputs


class GoldenRecording:
    """Records every request of a set over one checkpoint."""

    def __init__(self, checkpoint: Checkpoint, images: Path, say: Say) -> None:
        self._checkpoint = checkpoint
        self._images = images
        self._progress = say
        self._runners = TorchRunners(checkpoint)
        self._tokenizer = Tokenizer(checkpoint.path)
        self._recorder = Recorder()
        self._features: dict[str, Array] = {}

    def record(self, requests: Requests, folder: Path) -> None:
        """Runs ``requests`` and writes the golden into the existing, empty ``folder``."""
        for item in requests.describe:
            self._describe(item.name, item.image, item.question, item.tokens)
        for request in requests.generate:
            text = prompts.generation(request.prompt)
            self._draw(request.name, text, None, request.seed, request.steps, request.guidance)
        for edit in requests.edit:
            features = self._encode(edit.image)
            self._draw(
                edit.name, prompts.editing(edit.prompt), features, edit.seed, edit.steps, edit.guidance
            )
        functions = {name: component(name).functions(self._checkpoint) for name in COMPONENT_NAMES}
        versions = installed(["mobile-o-export", "torch", "transformers", "diffusers", "numpy", "pillow"])
        self._recorder.write(folder, self._checkpoint.digest, versions, functions)

    def _encode(self, image: str) -> Array:
        """Features of an image; recorded the first time."""
        if image not in self._features:
            self._progress(f"vision encoder on {image}")
            config = self._checkpoint.config
            picture = load_picture(self._images / image)
            pixels = pixel_values(picture, config.image_size, square=config.image_aspect_ratio == "pad")
            with self._runners.open("vision_encoder") as runner:
                outputs = runner.run("encode", {"image": pixels})
            self._recorder.add("vision_encoder", Path(image).stem, [("encode", {"image": pixels}, outputs)])
            self._features[image] = outputs["image_features"]
        return self._features[image]

    def _describe(self, name: str, image: str, question: str, tokens: int) -> None:
        """Question answering: the embeddings, the prompt, and decode steps early, middle and deep."""
        features = self._encode(image)
        self._progress(f"{name}: answering with {tokens} tokens")
        compared = {0, 1, tokens // 2, tokens - 1}
        with self._runners.open("llm") as runner:
            embeds = CallLog(runner, {"embed"})
            prompt = tasks.embed_prompt(embeds, self._tokenizer, prompts.understanding(question), features)
            self._add_embeds(name, embeds.calls)
            sequence = CallLog(runner, {"prefill", "decode"})

            def before_call(index: int) -> None:
                # A prompt's hidden states are megabytes, and drawing compares them; here the tokens matter.
                outputs = {"logits"} if index == 0 else {"logits", "hidden_states"}
                sequence.kept = frozenset(outputs if index in compared else ())

            answer = list(tasks.greedy_tokens(sequence, prompt, tokens, before_call))
            self._recorder.add("llm", f"{name}-answer", sequence.calls)
            first = {"input_ids": np.array([answer[:1]], np.int32)}
            self._recorder.add("llm", f"{name}-token", [("embed", first, runner.run("embed", first))])

    def _add_embeds(self, name: str, calls: list[Call]) -> None:
        for index, call in enumerate(calls):
            self._recorder.add("llm", f"{name}-embed-{index}", [call])

    def _draw(
        self, name: str, text: str, features: Array | None, seed: int, steps: int, guidance: float
    ) -> None:
        """Text-to-image or editing: the prompt, both projections, the DiT's first, middle and last step."""
        self._progress(f"{name}: prompt")
        with self._runners.open("llm") as runner:
            embeds = CallLog(runner, {"embed"})
            prompt = tasks.embed_prompt(embeds, self._tokenizer, text, features)
            self._add_embeds(name, embeds.calls)
            # Drawing needs the prompt alone; tokens after it show that its KV cache is right as well.
            sequence = CallLog(runner, {"prefill", "decode"})
            list(tasks.greedy_tokens(sequence, prompt, CONTINUED_TOKENS))
        self._recorder.add("llm", f"{name}-prompt", sequence.calls)
        hidden = sequence.calls[0][2]["hidden_states"]

        with self._runners.open("mcp") as runner:
            mcp = CallLog(runner, {"project"})
            conditioning = tasks.project(mcp, hidden)
        for branch, call in zip(("conditional", "unconditional"), mcp.calls, strict=True):
            self._recorder.add("mcp", f"{name}-{branch}", [call])

        diffusion = self._checkpoint.config.diffusion
        scheduler = tasks.DiffusersScheduler(diffusion.scheduler, steps)
        recorded = {0, steps // 2, steps - 1}
        channels, size = diffusion.transformer["in_channels"], diffusion.transformer["sample_size"]
        noise = np.random.default_rng(seed).standard_normal((1, channels, size, size), np.float32)
        with self._runners.open("dit") as runner:
            dit = CallLog(runner, {"denoise"})

            def before_call(index: int, branch: str) -> None:
                self._progress(f"{name}: denoising step {index + 1} of {steps}, {branch}")

            latent = tasks.denoise(dit, conditioning, noise, scheduler, guidance, before_call)
        for number, call in enumerate(dit.calls):
            index, branch = number // 2, ("conditional", "unconditional")[number % 2]
            if index in recorded:
                self._recorder.add("dit", f"{name}-step{index + 1:02d}-{branch}", [call])

        self._progress(f"{name}: decoding the image")
        with self._runners.open("vae_decoder") as runner:
            vae = CallLog(runner, {"decode"})
            tasks.decode_latent(vae, latent, diffusion.vae["scaling_factor"])
        self._recorder.add("vae_decoder", name, vae.calls)
