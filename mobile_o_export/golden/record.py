"""Runs the PyTorch pipeline on real prompts and images and captures each function along the way."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mobile_o_export.backends.versions import installed
from mobile_o_export.components.registry import COMPONENT_NAMES, component
from mobile_o_export.golden.requests import Describe, Edit, Generate, Requests, load_requests
from mobile_o_export.golden.store import AnswerChain, DrawingChain, Recorder
from mobile_o_export.parity.metrics import Array
from mobile_o_export.pipelines.noise import initial_latent
from mobile_o_export.pipelines.runner import Runner, Runners
from mobile_o_export.progress import Progress, Say
from mobile_o_export.reference import TorchRunners, settings, torch_pipeline
from mobile_o_export.tokenizer import Tokenizer

if TYPE_CHECKING:
    from mobile_o_export.checkpoint import Checkpoint

CONTINUED_TOKENS = 2
"""Decoded after each drawing prompt. Drawing needs the prompt alone; its KV cache has to be right as well."""

CANDIDATES = 8
"""Likely tokens kept at each position of an answer: enough to tell a near tie from an error."""

GOLDEN_ROOM_BYTES = 256 * 2**20
"""A bound on what a recorded golden takes."""

Call = tuple[str, Mapping[str, Array], Mapping[str, Array]]


class LoggedRunner:
    """A runner that keeps its calls."""

    def __init__(self, runner: Runner, calls: list[Call]) -> None:
        self._runner = runner
        self._calls = calls
        self.runtime = runner.runtime

    def run(self, function: str, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """As the runner underneath."""
        outputs = self._runner.run(function, inputs)
        self._calls.append((function, dict(inputs), outputs))
        return outputs


class LoggedRunners:
    """Runners whose calls are kept, by component, until they are taken."""

    def __init__(self, runners: Runners) -> None:
        self._runners = runners
        self._calls: defaultdict[str, list[Call]] = defaultdict(list)
        self.limits = runners.limits

    def require(self, names: Sequence[str]) -> None:
        """As the runners underneath."""
        self._runners.require(names)

    @contextmanager
    def open(self, name: str) -> Iterator[LoggedRunner]:
        """The component ``name``, logged."""
        with self._runners.open(name) as runner:
            yield LoggedRunner(runner, self._calls[name])

    def take(self, name: str, *functions: str) -> list[Call]:
        """The calls of ``functions`` of the component ``name``, which are forgotten."""
        taken = [call for call in self._calls[name] if call[0] in functions]
        self._calls[name][:] = [call for call in self._calls[name] if call[0] not in functions]
        return taken


class GoldenRecording:
    """Records every request of a set over one checkpoint."""

    def __init__(self, checkpoint: Checkpoint, images: Path, say: Say) -> None:
        self._checkpoint = checkpoint
        self._images = images
        self._say = say
        self._request = ""
        self._runners = LoggedRunners(TorchRunners(checkpoint))
        self._pipeline = torch_pipeline(checkpoint, self._runners, keep=False, say=self._said)
        self._recorder = Recorder()
        self._seen: set[str] = set()

    def record(self, requests: Requests, folder: Path) -> None:
        """Runs ``requests`` and writes the golden into the existing, empty ``folder``."""
        for item in requests.describe:
            # At real size two components at once are gigabytes: each request gives back what it loaded.
            with self._pipeline:
                self._describe(item)
        for request in (*requests.generate, *requests.edit):
            with self._pipeline:
                self._draw(request)
        functions = {name: component(name).functions(self._checkpoint) for name in COMPONENT_NAMES}
        versions = installed(["mobile-o-export", "torch", "transformers", "diffusers", "numpy", "pillow"])
        settings, tokenizer = truth_of(self._checkpoint)
        self._recorder.write(folder, self._checkpoint.digest, versions, settings, tokenizer, functions)

    def _said(self, phrase: str) -> None:
        self._say(f"{self._request}: {phrase}")

    def _describe(self, item: Describe) -> None:
        """Question answering: the image, the embeddings, the prompt, decode steps early, middle and deep."""
        self._request = item.name
        answer = self._pipeline.describe(
            self._images / item.image, item.question, max_tokens=item.tokens, stop=False
        )
        logits = [token.logits for token in answer]
        pixels = self._add_image(item.image)
        embeds = self._runners.take("llm", "embed")
        # The prompt's come first, then a token's at a time.
        self._add_each("llm", [f"{item.name}-{part}" for part in ("embed-0", "embed-1", "token")], embeds[:3])
        sequence = self._runners.take("llm", "prefill", "decode")
        compared = {1, item.tokens // 2, item.tokens - 1}
        # A prompt's hidden states are megabytes, and drawing compares them; here the tokens matter.
        kept = [{"logits"}] + [
            {"logits", "hidden_states"} if index in compared else set() for index in range(1, len(sequence))
        ]
        calls = [_keeping(call, names) for call, names in zip(sequence, kept, strict=True)]
        self._recorder.add("llm", f"{item.name}-answer", calls)

        rows = np.stack(logits)
        order = np.argsort(-rows, axis=1, kind="stable")[:, :CANDIDATES]
        assert answer.image_features is not None
        self._recorder.add_answer(
            AnswerChain(
                name=item.name,
                question=item.question,
                pixels=self._store(pixels),
                image_features=self._store(answer.image_features),
                logits=self._store(logits[0][None, None]),
                tokens=tuple(answer.tokens),
                candidates=self._store(order.astype(np.int32)),
                candidate_logits=self._store(np.take_along_axis(rows, order, axis=1)),
                spread=self._store(rows.max(axis=1) - rows.mean(axis=1)),
            )
        )

    def _draw(self, request: Generate) -> None:
        """Text-to-image or editing: the prompt, both projections, the DiT's first, middle and last step."""
        self._request = name = request.name
        latent = initial_latent(request.seed, self._pipeline.settings.numbers.latent_shape)
        steps, guidance = request.steps, request.guidance
        pixels = None
        if isinstance(request, Edit):
            drawing = self._pipeline.edit(
                self._images / request.image, request.prompt, steps=steps, guidance=guidance, latent=latent
            )
            pixels = self._add_image(request.image)
        else:
            drawing = self._pipeline.generate(request.prompt, steps=steps, guidance=guidance, latent=latent)
        embeds = self._runners.take("llm", "embed")
        self._add_each("llm", [f"{name}-embed-{index}" for index in range(len(embeds))], embeds)
        (prefill,) = self._runners.take("llm", "prefill")
        self._recorder.add("llm", f"{name}-prompt", self._continued(prefill))
        branches = ("conditional", "unconditional")
        self._add_each("mcp", [f"{name}-{b}" for b in branches], self._runners.take("mcp", "project"))

        recorded = sorted({0, steps // 2, steps - 1})
        labels = [f"{name}-step{index + 1:02d}-{branch}" for index in recorded for branch in branches]
        calls = self._runners.take("dit", "denoise")
        chosen = [calls[len(branches) * i + offset] for i in recorded for offset in range(len(branches))]
        self._add_each("dit", labels, chosen)
        self._add_each("vae_decoder", [name], self._runners.take("vae_decoder", "decode"))
        self._recorder.add_drawing(
            DrawingChain(
                name=name,
                prompt=request.prompt,
                pixels=None if pixels is None else self._store(pixels),
                initial_latent=self._store(latent),
                guidance=drawing.guidance,
                hidden_states=self._store(drawing.hidden_states),
                conditional=self._store(drawing.conditioning.conditional),
                unconditional=self._store(drawing.conditioning.unconditional),
                latents=tuple(self._store(after) for after in drawing.latents),
                image=self._store(drawing.image),
            )
        )

    def _continued(self, prefill: Call) -> list[Call]:
        """The prompt again, and the decoding of tokens after it."""
        with self._runners.open("llm") as llm:
            logits = llm.run("prefill", prefill[1])["logits"]
            for _ in range(CONTINUED_TOKENS):
                token = logits[0].argmax(axis=-1).astype(np.int32)[None]
                logits = llm.run("decode", llm.run("embed", {"input_ids": token}))["logits"]
        self._runners.take("llm", "embed")
        return self._runners.take("llm", "prefill", "decode")

    def _add_image(self, image: str) -> Array:
        """Records the encoder's call if ``image`` is new; the pixels that it was given, [1, 3, R, R]."""
        (call,) = self._runners.take("vision_encoder", "encode")
        if image not in self._seen:
            self._seen.add(image)
            self._recorder.add("vision_encoder", Path(image).stem, [call])
        return call[1]["image"]

    def _add_each(self, name: str, cases: Sequence[str], calls: Sequence[Call]) -> None:
        """A case a call."""
        for case, call in zip(cases, calls, strict=True):
            self._recorder.add(name, case, [call])

    def _store(self, value: Array) -> str:
        return self._recorder.store(self._request, value)


def record_golden(checkpoint: Checkpoint, prompts: Path | None, folder: Path, progress: Progress) -> None:
    """Records a golden of ``checkpoint`` on ``prompts`` (the shipped ones if None) into ``folder``."""
    requests, images = load_requests(prompts)
    recording = GoldenRecording(checkpoint, images, lambda phrase: progress("golden", "", phrase))
    recording.record(requests, folder)


def truth_of(checkpoint: Checkpoint) -> tuple[dict[str, str], dict[str, str]]:
    """What a golden says of the settings and of the tokenizer that it was recorded with: digests by file."""
    found = settings(checkpoint, Tokenizer(checkpoint.path))
    files = {path.name: sha256(path.read_bytes()).hexdigest() for path in checkpoint.tokenizer_files}
    return found.digests(), files


def _keeping(call: Call, outputs: Collection[str]) -> Call:
    """``call`` with those of its outputs that are to be compared."""
    function, inputs, found = call
    return function, inputs, {name: value for name, value in found.items() if name in outputs}
