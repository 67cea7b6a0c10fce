"""The stages: pictures to latents and back; seeing; answering; drawing what was asked."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from model import CONDITIONING_LAYERS, IMAGE_SIZE, LANGUAGE, VISION, build
from torch import nn
from torch.nn import functional
from world import (
    BACKGROUNDS,
    COLOURS,
    DESCRIBE,
    SHAPES,
    SIDE,
    SIZES,
    Scene,
    described,
    random_edit,
    random_question,
    random_scene,
    render,
)

from mobile_o_export.pipelines.prompts import END_OF_TURN, IMAGE_TOKEN, Task, Templates
from mobile_o_export.tokenizer import Tokenizer

FLOW_SHIFT = 3.0
NOISE = 0.1
"""Deviation of what the decoder is used to, against latents of deviation 1."""

IGNORED = -100
"""A label that no loss counts."""


def pictures(scenes: Sequence[Scene], device: torch.device) -> torch.Tensor:
    """Rendered scenes [B, 3, SIDE, SIDE] in 0..1."""
    pixels = np.stack([render(scene) for scene in scenes]).transpose(0, 3, 1, 2)
    return torch.from_numpy(pixels).to(device).float() / 255


def vae_input(images: torch.Tensor) -> torch.Tensor:
    """[B, 3, SIDE, SIDE] in 0..1 → in -1..1, laid out as convolutions like it."""
    return (2 * images - 1).to(memory_format=torch.channels_last)


def vision_input(images: torch.Tensor) -> torch.Tensor:
    """[B, 3, SIDE, SIDE] → the encoder's [B, 3, R, R], by the bicubic kernel that Pillow resizes with."""
    size = (IMAGE_SIZE, IMAGE_SIZE)
    larger = functional.interpolate(images, size, mode="bicubic", antialias=True).clamp(0, 1)
    return larger.to(memory_format=torch.channels_last)


# --- 1. the autoencoder ---


class Autoencoder:
    """DC-AE on pictures, its latents held near mean 0 and deviation 1, the decoder used to some noise."""

    name = "autoencoder"

    def __init__(self) -> None:
        self.trained = build(["vae"]).to(memory_format=torch.channels_last)

    def losses(self, rng: np.random.Generator, batch: int, device: torch.device) -> dict[str, torch.Tensor]:
        """Distance of the decoded picture, of its edges, and of the latents from their place."""
        images = vae_input(pictures([random_scene(rng) for _ in range(batch)], device))
        vae = self.trained["vae"]
        with torch.autocast(device.type, torch.bfloat16):
            latents = vae.encoder(images).float()
            decoded = vae.decoder(latents + NOISE * torch.randn_like(latents)).float()
        mean, deviation = latents.mean((0, 2, 3)), latents.std((0, 2, 3))
        place = mean.square().mean() + (deviation - 1).square().mean()
        return {**_distances(decoded, images), "place": 0.1 * place}


class Decoding:
    """The decoder further, on latents that do not change any more, each background as often as the others."""

    name = "decoding"

    def __init__(self, coded: nn.ModuleDict) -> None:
        vae = coded["vae"].to(memory_format=torch.channels_last)
        self.trained = nn.ModuleDict({"decoder": vae.decoder})
        self.trained.requires_grad_(True)
        self._encoder = vae.encoder

    def losses(self, rng: np.random.Generator, batch: int, device: torch.device) -> dict[str, torch.Tensor]:
        """Distance of the decoded picture, and of its edges."""
        images = vae_input(pictures([self._scene(rng) for _ in range(batch)], device))
        with torch.autocast(device.type, torch.bfloat16):
            with torch.no_grad():
                latents = self._encoder(images).float()
            decoded = self.trained["decoder"](latents + NOISE * torch.randn_like(latents)).float()
        return _distances(decoded, images)

    def _scene(self, rng: np.random.Generator) -> Scene:
        while True:
            background = list(BACKGROUNDS)[int(rng.integers(len(BACKGROUNDS)))]
            scene = replace(random_scene(rng), background=background)
            if not scene.held_out:
                return scene


def _distances(decoded: torch.Tensor, images: torch.Tensor) -> dict[str, torch.Tensor]:
    """Of pictures [B, 3, Y, X] in -1..1."""
    error = decoded - images
    # Shapes are a small part of a picture; without this their edges come last.
    coloured = 1 + 3 * (images.amax(1, keepdim=True) - images.amin(1, keepdim=True))
    return {
        "pixels": (coloured * (error.abs() + error.square())).mean(),
        "edges": torch.stack([error.diff(dim=axis).abs().mean() for axis in (2, 3)]).sum(),
    }


# --- 2. seeing ---


PATCHES = IMAGE_SIZE // 64
"""Along a side: each image token is of one patch."""

HALVES = ("left", "right", "upper", "lower")
LABELS = (
    *(f"{colour} {shape}" for colour in COLOURS for shape in SHAPES),
    *SIZES,
    *HALVES,
    *BACKGROUNDS,
    *(f"row {row}" for row in range(PATCHES)),
    *(f"column {column}" for column in range(PATCHES)),
)
"""What can be said of a patch. Its place is among it: neither the LLM nor the DiT is told of it otherwise."""


def labelled(scene: Scene) -> np.ndarray:
    """float32 [N, LABELS]: of what has its centre in each patch, in which half of it; and the background."""
    found = np.zeros((PATCHES, PATCHES, len(LABELS)), np.float32)
    found[:, :, LABELS.index(scene.background)] = 1
    for index in range(PATCHES):
        found[index, :, LABELS.index(f"row {index}")] = 1
        found[:, index, LABELS.index(f"column {index}")] = 1
    for thing in scene.things:
        (row, down), (column, across) = (divmod(at * PATCHES / SIDE, 1) for at in (thing.y, thing.x))
        halves = ("left" if across < 0.5 else "right", "upper" if down < 0.5 else "lower")
        for label in (thing.name, thing.size, *halves):
            found[int(row), int(column), LABELS.index(label)] = 1
    return found.reshape(PATCHES * PATCHES, -1)


class Seeing:
    """The vision encoder, by a linear map from each image token to what lies in its patch.

    The published tower comes pretrained; this stands in for that, and the map is thrown away afterwards.
    """

    name = "seeing"

    def __init__(self) -> None:
        self.trained = build(["vision"]).to(memory_format=torch.channels_last)
        self.trained["labels"] = nn.Linear(VISION.expanded, len(LABELS))

    def losses(self, rng: np.random.Generator, batch: int, device: torch.device) -> dict[str, torch.Tensor]:
        """Cross-entropy of every label of every patch."""
        scenes = [random_scene(rng) for _ in range(batch)]
        seen = self.trained["vision"](vision_input(pictures(scenes, device)))
        truth = torch.from_numpy(np.stack([labelled(scene) for scene in scenes])).to(device)
        # Most patches are empty.
        missed = functional.binary_cross_entropy_with_logits(
            self.trained["labels"](seen), truth, pos_weight=truth.new_tensor(4.0)
        )
        return {"labels": missed}


# --- 3. answering ---


@dataclass
class Conversation:
    """Token ids of a sequence, -1 in the image's places, and which of them are to be learnt."""

    ids: list[int]
    labels: list[int]

    def add(self, ids: Sequence[int], *, learnt: bool) -> None:
        """Appends ids."""
        self.ids += ids
        self.labels += ids if learnt else [IGNORED] * len(ids)


def corpus() -> Iterator[str]:
    """The texts of all tasks, for the tokenizer: every word of this world becomes one token."""
    templates, rng = Templates(), np.random.default_rng(0)
    for _ in range(3000):
        scene = random_scene(rng)
        asked, answer = random_question(rng, scene)
        instruction, _ = random_edit(rng, scene)
        yield templates.fill(Task.DESCRIBE, asked).replace(IMAGE_TOKEN, "") + answer
        yield templates.fill(Task.EDIT, instruction).replace(IMAGE_TOKEN, "")
        yield templates.fill(Task.GENERATE, scene.caption) + described(scene)
        yield templates.fill(Task.CHAT, text_question(scene, asked))


def text_question(scene: Scene, asked: str) -> str:
    """A question about a caption alone."""
    return f"The caption is: {scene.caption}. {'Repeat it.' if asked == DESCRIBE else asked}"


class Writer:
    """Fills the model's own templates and turns them into ids."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._templates = Templates()
        self._known: dict[str, list[int]] = {}

    def prompt(self, task: Task, text: str) -> list[int]:
        """Ids of a filled template, -1 for each image token."""
        before, image, after = self._templates.fill(task, text).partition(IMAGE_TOKEN)
        return self.ids(before) + ([-1] * PATCHES**2 + self.ids(after) if image else [])

    def ids(self, text: str) -> list[int]:
        """Ids of ``text``."""
        if text not in self._known:
            self._known[text] = self._tokenizer.encode(text)[0].tolist()
        return list(self._known[text])

    def conversation(self, task: Task, turns: Sequence[tuple[str, str]]) -> Conversation:
        """``turns`` of what is asked and answered; the answers, and where they end, are learnt."""
        talk = Conversation([], [])
        for index, (asked, answer) in enumerate(turns):
            begin = len(talk.ids)
            talk.add(self.prompt(Task.NEXT_TURN if index else task, asked), learnt=False)
            if index:
                # The template of a later turn begins with the end of the turn before.
                talk.labels[begin] = talk.ids[begin]
            talk.add(self.ids(answer), learnt=True)
        talk.add(self.ids(END_OF_TURN), learnt=True)
        return talk


def padded(rows: Sequence[Sequence[int]], filler: int, device: torch.device) -> torch.Tensor:
    """int64 [B, longest], filled on the right."""
    longest = max(len(row) for row in rows)
    return torch.tensor([[*row, *[filler] * (longest - len(row))] for row in rows], device=device)


def embeddings(llm: nn.Module, ids: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
    """``ids`` [B, S] → [B, S, D], the rows of ``features`` [n, D] in the places of -1, in order."""
    embeds = llm.model.embed_tokens(ids.clamp(min=0))
    return embeds.masked_scatter((ids == -1)[..., None], features.to(embeds.dtype))


class Conversations:
    """What is talked about in training: pictures, captions, and what a request will show.

    Answering a request to draw or edit with the caption of the result makes the hidden states say what the
    picture should be before any picture is learnt from them.
    """

    def __init__(self, tokenizer: Tokenizer, questions: int) -> None:
        self._writer = Writer(tokenizer)
        self._questions = questions

    def losses(
        self,
        rng: np.random.Generator,
        scenes: Sequence[Scene],
        llm: nn.Module,
        features: torch.Tensor,
    ) -> dict[str, torch.Tensor]:
        """Cross-entropy of answers: about ``scenes``, with image tokens ``features`` [B, N, D], and texts."""
        device = features.device
        looks = [self._about_picture(rng, scene) for scene in scenes]
        reads = [self._about_text(rng, random_scene(rng)) for _ in range(len(scenes) // 3)]
        talks = looks + reads
        ids = padded([talk.ids for talk in talks], LANGUAGE["pad_token_id"], device)
        labels = padded([talk.labels for talk in talks], IGNORED, device)
        with torch.autocast(device.type, torch.bfloat16):
            embeds = embeddings(llm, ids, features.flatten(0, 1))
            hidden = llm.model(inputs_embeds=embeds, use_cache=False).last_hidden_state
            asked = labels[:, 1:] != IGNORED
            logits = llm.lm_head(hidden[:, :-1][asked]).float()
        each = functional.cross_entropy(logits, labels[:, 1:][asked], reduction="none")
        of_picture = torch.arange(len(talks), device=device) < len(scenes)
        of_picture = of_picture[:, None].expand_as(asked)[asked]
        return {"pictures": each[of_picture].mean(), "texts": 0.3 * each[~of_picture].mean()}

    def _about_picture(self, rng: np.random.Generator, scene: Scene) -> Conversation:
        if rng.random() < 0.2:
            instruction, after = random_edit(rng, scene)
            return self._writer.conversation(Task.EDIT, [(instruction, described(after))])
        turns = dict(random_question(rng, scene) for _ in range(self._questions))
        return self._writer.conversation(Task.DESCRIBE, list(turns.items()))

    def _about_text(self, rng: np.random.Generator, scene: Scene) -> Conversation:
        if rng.random() < 0.5:
            return self._writer.conversation(Task.GENERATE, [(scene.caption, described(scene))])
        while True:
            asked, answer = random_question(rng, scene)
            # What a caption leaves open cannot be asked of it.
            if scene.relation or not any(word in asked for word in (" to the ", " above ", " below ")):
                break
        return self._writer.conversation(Task.CHAT, [(text_question(scene, asked), answer)])


class Answering:
    """Projector and LLM from nothing, on the finished vision encoder."""

    name = "answering"

    def __init__(self, tokenizer: Tokenizer, seen: nn.ModuleDict) -> None:
        self.trained = build(["llm", "projector"])
        self.frozen = seen
        # Several of one picture: what is seen of it is computed once.
        self._conversations = Conversations(tokenizer, questions=5)

    def losses(self, rng: np.random.Generator, batch: int, device: torch.device) -> dict[str, torch.Tensor]:
        """Of conversations."""
        scenes = [random_scene(rng) for _ in range(batch)]
        with torch.no_grad():
            seen = self.frozen["vision"](vision_input(pictures(scenes, device)))
        features = self.trained["projector"](seen)
        return self._conversations.losses(rng, scenes, self.trained["llm"], features)


# --- 4. drawing ---


class Drawing:
    """MCP and DiT by flow matching on the frozen autoencoder's latents, by the frozen LLM's states."""

    name = "drawing"
    EDITED = 0.25
    UNCONDITIONAL = 0.1

    def __init__(self, tokenizer: Tokenizer, frozen: nn.ModuleDict, scaling_factor: float) -> None:
        self.trained = build(["mcp", "dit"])
        self.frozen = frozen
        self._writer = Writer(tokenizer)
        self._scaling_factor = scaling_factor

    def losses(self, rng: np.random.Generator, batch: int, device: torch.device) -> dict[str, torch.Tensor]:
        """Mean squared error of the velocity, noise minus data."""
        edited = int(batch * self.EDITED)
        before = [random_scene(rng) for _ in range(edited)]
        edits = [random_edit(rng, scene) for scene in before]
        asked = [random_scene(rng) for _ in range(batch - edited)]
        prompts = [self._writer.prompt(Task.EDIT, text) for text, _ in edits]
        prompts += [self._writer.prompt(Task.GENERATE, scene.caption) for scene in asked]
        wanted = pictures([after for _, after in edits] + asked, device)
        with torch.no_grad(), torch.autocast(device.type, torch.bfloat16):
            hidden, mask = self.hidden_states(prompts, pictures(before, device))
            latents = self.frozen["vae"].encoder(vae_input(wanted)).float() * self._scaling_factor
        # The unconditional branch of guidance is the MCP's result for zeroed hidden states.
        kept = torch.rand(batch, device=device) >= self.UNCONDITIONAL
        hidden = hidden.float() * kept[:, None, None, None]
        uniform = torch.rand(batch, device=device)
        sigma = FLOW_SHIFT * uniform / (1 + (FLOW_SHIFT - 1) * uniform)
        noise = torch.randn_like(latents)
        noisy = torch.lerp(latents, noise, sigma[:, None, None, None])
        with torch.autocast(device.type, torch.bfloat16):
            velocity = self.trained["dit"](
                noisy,
                encoder_hidden_states=self.trained["mcp"](hidden, mask),
                timestep=1000 * sigma,
                encoder_attention_mask=mask,
                return_dict=False,
            )[0]
        return {"velocity": functional.mse_loss(velocity.float(), noise - latents)}

    def hidden_states(
        self, prompts: Sequence[Sequence[int]], images: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The LLM's last K hidden states [B, K, S, D] and the mask [B, S] of what is no padding."""
        ids = padded(prompts, LANGUAGE["pad_token_id"], images.device)
        mask = padded([[1] * len(prompt) for prompt in prompts], 0, images.device).float()
        llm = self.frozen["llm"]
        features = images.new_zeros(0, LANGUAGE["hidden_size"])
        if len(images):
            features = self.frozen["projector"](self.frozen["vision"](vision_input(images))).flatten(0, 1)
        out = llm.model(
            inputs_embeds=embeddings(llm, ids, features), output_hidden_states=True, use_cache=False
        )
        return torch.stack(out.hidden_states[-CONDITIONING_LAYERS:], dim=1), mask
