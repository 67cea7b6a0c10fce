"""Other people's generation loops drive the exported ONNX LLM and choose our own runner's tokens.

transformers' ``generate()`` and ONNX Runtime GenAI know nothing of the project: only Hugging Face's names of
inputs and outputs, and what they mean.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

# Before either is imported: ONNX Runtime and its GenAI report to their maker otherwise.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import numpy as np
import onnxruntime
import pytest
import torch
from transformers import DynamicCache, GenerationMixin, PreTrainedModel, Qwen2Config
from transformers.modeling_outputs import CausalLMOutputWithPast

from mobile_o_export.backends.base import Artifact
from mobile_o_export.backends.registry import backend
from mobile_o_export.bundle.manifest import Manifest, read_manifest
from mobile_o_export.parity.metrics import Array
from mobile_o_export.session import Session

TARGET = "tensorrt-orin"
PROMPT_TOKENS, NEW_TOKENS, PADDING = 12, 20, 3


@pytest.fixture(scope="module")
def manifest(bundle: Path) -> Manifest:
    return read_manifest(bundle)


@pytest.fixture(scope="module")
def folder(bundle: Path, manifest: Manifest) -> Path:
    return bundle / manifest.targets[TARGET].components["llm"].folder


def plain_session(path: Path) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


@pytest.fixture(scope="module")
def decoder(folder: Path) -> onnxruntime.InferenceSession:
    return plain_session(folder / "model.onnx")


@pytest.fixture(scope="module")
def embedder(folder: Path) -> onnxruntime.InferenceSession:
    return plain_session(folder / "embed.onnx")


@pytest.fixture(scope="module")
def own_runner(bundle: Path, manifest: Manifest) -> Iterator[Session]:
    entry = manifest.targets[TARGET].components["llm"]
    with backend("onnx").open(Artifact(entry.graphs), bundle / entry.folder, "llm") as executor:
        yield Session(manifest.functions["llm"], [graph.spec for graph in entry.graphs], executor)


def own_tokens(runner: Session, embeds: Array) -> list[int]:
    """What our own runner chooses, greedily."""
    logits = runner.run("prefill", {"inputs_embeds": embeds})["logits"]
    tokens = [int(logits[0, -1].argmax())]
    while len(tokens) < NEW_TOKENS:
        embed = runner.run("embed", {"input_ids": np.array([tokens[-1:]], np.int32)})["inputs_embeds"]
        logits = runner.run("decode", {"inputs_embeds": embed})["logits"]
        tokens.append(int(logits[0, -1].argmax()))
    return tokens


@pytest.fixture(scope="module")
def prompt(decoder: onnxruntime.InferenceSession) -> Array:
    """Token ids int64 [1, S]."""
    vocabulary = sizes(decoder)["vocab_size"]
    return np.random.default_rng(5).integers(0, vocabulary, (1, PROMPT_TOKENS))


@pytest.fixture(scope="module")
def picture_embeds(
    bundle: Path, manifest: Manifest, embedder: onnxruntime.InferenceSession, prompt: Array
) -> Array:
    """Embeddings [1, S, D] of a prompt with a picture's features between its words."""
    entry = manifest.targets[TARGET].components["vision_encoder"]
    (graph,) = entry.graphs
    encoder = plain_session(bundle / entry.folder / graph.file)
    picture = np.random.default_rng(6).random(encoder.get_inputs()[0].shape, np.float32)
    (features,) = encoder.run(["image_features"], {"image": picture})
    before, after = (
        embedder.run(["inputs_embeds"], {"input_ids": ids})[0] for ids in (prompt[:, :5], prompt[:, 5:])
    )
    return np.concatenate([before, features, after], axis=1)


@pytest.fixture(scope="module")
def expected(own_runner: Session, prompt: Array) -> list[int]:
    embeds = own_runner.run("embed", {"input_ids": prompt.astype(np.int32)})["inputs_embeds"]
    tokens = own_tokens(own_runner, embeds)
    # A loop that repeats one token would prove little.
    assert len(set(tokens)) > 1
    return tokens


def sizes(decoder: onnxruntime.InferenceSession) -> dict[str, int]:
    """Qwen2's sizes in the words of a Hugging Face configuration, from the shapes of the file alone."""
    shapes = {value.name: value.shape for value in (*decoder.get_inputs(), *decoder.get_outputs())}
    hidden, (_, heads, _, head) = shapes["inputs_embeds"][2], shapes["past_key_values.0.key"]
    return {
        "hidden_size": hidden,
        "num_hidden_layers": sum(name.endswith(".key") for name in shapes) // 2,
        "num_attention_heads": hidden // head,
        "num_key_value_heads": heads,
        "vocab_size": shapes["logits"][2],
    }


# transformers


class OnnxDecoder(PreTrainedModel, GenerationMixin):
    """The two files as a causal language model of transformers, by naming convention alone."""

    config_class = Qwen2Config
    device = torch.device("cpu")

    def __init__(self, embedder: onnxruntime.InferenceSession, decoder: onnxruntime.InferenceSession) -> None:
        super().__init__(Qwen2Config(**sizes(decoder), bos_token_id=None, eos_token_id=None, pad_token_id=0))
        self.embedder, self.decoder = embedder, decoder

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: DynamicCache | None = None,
        **_rest: Any,
    ) -> CausalLMOutputWithPast:
        assert position_ids is not None
        assert past_key_values is not None
        if inputs_embeds is None:
            assert input_ids is not None
            (embeds,) = self.embedder.run(["inputs_embeds"], {"input_ids": input_ids.numpy()})
        else:
            embeds = inputs_embeds.numpy()
        if attention_mask is None:
            # transformers leaves out a mask of ones.
            positions = past_key_values.get_seq_length() + embeds.shape[1]
            attention_mask = torch.ones(1, positions, dtype=torch.long)
        feed = {
            "inputs_embeds": embeds,
            "attention_mask": attention_mask.numpy(),
            "position_ids": position_ids.numpy(),
        }
        head = self.config.hidden_size // self.config.num_attention_heads
        empty = np.zeros((1, self.config.num_key_value_heads, 0, head), np.float16)
        for index, layer in enumerate(past_key_values.layers):
            for kind in ("key", "value"):
                tensor = getattr(layer, f"{kind}s").numpy() if layer.is_initialized else empty
                feed[f"past_key_values.{index}.{kind}"] = tensor
        names = [output.name for output in self.decoder.get_outputs()]
        out = dict(zip(names, map(torch.from_numpy, self.decoder.run(names, feed)), strict=True))
        layers = range(self.config.num_hidden_layers)
        present = DynamicCache([(out[f"present.{i}.key"], out[f"present.{i}.value"]) for i in layers])
        return CausalLMOutputWithPast(logits=out["logits"], past_key_values=present)


@pytest.fixture(scope="module")
def hugging_face(
    embedder: onnxruntime.InferenceSession, decoder: onnxruntime.InferenceSession
) -> OnnxDecoder:
    return OnnxDecoder(embedder, decoder)


def generate(model: OnnxDecoder, *inputs: torch.Tensor, **settings: Any) -> list[int]:
    """The new tokens."""
    given = inputs[0].shape[1] if inputs else 0
    found = model.generate(*inputs, do_sample=False, max_new_tokens=NEW_TOKENS, **settings)
    tokens: list[int] = found[0, given:].tolist()
    return tokens


def test_transformers_generates_our_tokens_from_ids(
    hugging_face: OnnxDecoder, prompt: Array, expected: list[int]
) -> None:
    assert generate(hugging_face, torch.from_numpy(prompt)) == expected


def test_transformers_generates_our_tokens_from_embeddings_with_a_picture(
    hugging_face: OnnxDecoder, own_runner: Session, picture_embeds: Array, expected: list[int]
) -> None:
    tokens = generate(hugging_face, inputs_embeds=torch.from_numpy(picture_embeds))
    assert tokens == own_tokens(own_runner, picture_embeds)
    assert tokens != expected


def test_transformers_may_read_a_prompt_in_pieces(
    hugging_face: OnnxDecoder, prompt: Array, expected: list[int]
) -> None:
    assert generate(hugging_face, torch.from_numpy(prompt), prefill_chunk_size=5) == expected


def test_transformers_may_pad_a_prompt_on_the_left(
    hugging_face: OnnxDecoder, prompt: Array, expected: list[int]
) -> None:
    padded = torch.from_numpy(np.pad(prompt, [(0, 0), (PADDING, 0)]))
    mask = torch.ones_like(padded)
    mask[:, :PADDING] = 0
    assert generate(hugging_face, padded, attention_mask=mask) == expected


# ONNX Runtime GenAI


def genai_config(
    decoder: onnxruntime.InferenceSession, embedder: onnxruntime.InferenceSession, end: int
) -> dict[str, Any]:
    """``genai_config.json``: the two files, unchanged, as a pipeline of embeddings and decoder.

    ``end`` is the token that ends an answer and pads a prompt.
    """
    found = sizes(decoder)
    stages = {
        name: {
            "filename": f"{name}.onnx",
            "inputs": [value.name for value in session.get_inputs()],
            # All of them: GenAI 0.18 frees twice what is not listed here.
            "outputs": [value.name for value in session.get_outputs()],
        }
        for name, session in (("embed", embedder), ("model", decoder))
    }
    return {
        "model": {
            "type": "decoder-pipeline",
            "vocab_size": found["vocab_size"],
            "context_length": 256,
            "bos_token_id": end,
            "eos_token_id": end,
            "pad_token_id": end,
            "decoder": {
                "hidden_size": found["hidden_size"],
                "num_attention_heads": found["num_attention_heads"],
                "num_key_value_heads": found["num_key_value_heads"],
                "num_hidden_layers": found["num_hidden_layers"],
                "head_size": found["hidden_size"] // found["num_attention_heads"],
                "inputs": {
                    "input_ids": "input_ids",
                    "inputs_embeds": "inputs_embeds",
                    "attention_mask": "attention_mask",
                    "position_ids": "position_ids",
                    "past_key_names": "past_key_values.%d.key",
                    "past_value_names": "past_key_values.%d.value",
                },
                "outputs": {
                    "logits": "logits",
                    "present_key_names": "present.%d.key",
                    "present_value_names": "present.%d.value",
                },
                "pipeline": [{name: stage} for name, stage in stages.items()],
            },
        },
        "search": {"do_sample": False, "past_present_share_buffer": False},
    }


@pytest.fixture(scope="module")
def genai_folder(
    folder: Path,
    bundle: Path,
    decoder: onnxruntime.InferenceSession,
    embedder: onnxruntime.InferenceSession,
    prompt: Array,
    expected: list[int],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """The bundle's files and GenAI's configuration beside them."""
    # It has to be in the vocabulary; one that does not come up ends nothing early.
    end = min(set(range(sizes(decoder)["vocab_size"])) - {*prompt[0].tolist(), *expected})
    copy = shutil.copytree(folder, tmp_path_factory.mktemp("genai") / "llm")
    shutil.copytree(bundle / "tokenizer", copy, dirs_exist_ok=True)
    (copy / "genai_config.json").write_text(json.dumps(genai_config(decoder, embedder, end)))
    return copy


@pytest.fixture(scope="module")
def genai(genai_folder: Path) -> Any:
    import onnxruntime_genai

    return onnxruntime_genai.Model(str(genai_folder))


def genai_generator(model: Any) -> Any:
    import onnxruntime_genai

    parameters = onnxruntime_genai.GeneratorParams(model)
    parameters.set_search_options(do_sample=False, max_length=PROMPT_TOKENS + NEW_TOKENS)
    return onnxruntime_genai.Generator(model, parameters)


def genai_tokens(generator: Any) -> list[int]:
    tokens = []
    while not generator.is_done():
        generator.generate_next_token()
        tokens.append(int(generator.get_next_tokens()[0]))
    return tokens


def test_genai_generates_our_tokens(genai: Any, prompt: Array, expected: list[int]) -> None:
    generator = genai_generator(genai)
    generator.append_tokens(prompt[0].astype(np.int32))
    assert genai_tokens(generator) == expected


def test_genai_may_read_a_prompt_in_pieces(genai: Any, prompt: Array, expected: list[int]) -> None:
    generator = genai_generator(genai)
    for start, end in pairwise((0, 5, 6, PROMPT_TOKENS)):
        generator.append_tokens(prompt[0, start:end].astype(np.int32))
    assert genai_tokens(generator) == expected


def test_genai_gives_the_hidden_states_that_the_projector_takes(
    genai: Any, own_runner: Session, prompt: Array
) -> None:
    generator = genai_generator(genai)
    generator.append_tokens(prompt[0].astype(np.int32))
    embeds = own_runner.run("embed", {"input_ids": prompt.astype(np.int32)})["inputs_embeds"]
    own = own_runner.run("prefill", {"inputs_embeds": embeds})["hidden_states"]
    found = generator.get_output("hidden_states")
    assert found.shape == own.shape
    # The same file on the same runtime; only the number of threads may differ.
    np.testing.assert_allclose(found, own, rtol=0, atol=1e-3)


def test_genai_s_tokenizer_reads_the_bundle_s(genai: Any, bundle: Path) -> None:
    import onnxruntime_genai
    from tokenizers import Tokenizer

    text = "<|im_start|>user\nA red cube, 2 blue spheres & a naïve café?<|im_end|>\n<|im_start|>assistant\n"
    ids = Tokenizer.from_file(str(bundle / "tokenizer" / "tokenizer.json")).encode(text).ids
    tokenizer = onnxruntime_genai.Tokenizer(genai)
    assert tokenizer.encode(text).tolist() == ids
    assert len(set(ids)) > 10
