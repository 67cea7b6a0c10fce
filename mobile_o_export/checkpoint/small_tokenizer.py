"""A small byte-level BPE tokenizer in Qwen2's form, trained on a given text or on one composed here."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from itertools import product
from pathlib import Path

_VOCABULARY = 553
"""Bytes and merges, before the special tokens: with those three, 556 of the small checkpoint's 576 ids."""

SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")

# Qwen2's pre-tokenizer, as in its published tokenizer.json.
_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def write_tokenizer(
    folder: Path,
    first_special_id: int | None = None,
    max_length: int = 2048,
    corpus: Iterable[str] | None = None,
) -> None:
    """``tokenizer.json``, ``tokenizer_config.json``, ``vocab.json`` and ``merges.txt`` in ``folder``.

    Args:
        folder: where the files go.
        first_special_id: id of ``<|endoftext|>``, the other special tokens following; right after the
            vocabulary where None. Qwen2's is 151643.
        max_length: ``model_max_length`` of the configuration.
        corpus: texts whose words become tokens; by default, texts like the usual prompts and answers.
    """
    from tokenizers import Regex, Tokenizer, decoders, normalizers, pre_tokenizers, trainers
    from tokenizers.models import BPE

    tokenizer = Tokenizer(BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=_VOCABULARY,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_corpus() if corpus is None else corpus, trainer)
    description = json.loads(tokenizer.to_str())
    vocabulary: dict[str, int] = description["model"]["vocab"]
    first = len(vocabulary) if first_special_id is None else first_special_id
    special = {token: first + offset for offset, token in enumerate(SPECIAL_TOKENS)}
    # Inside the model's vocabulary as well: added tokens outside it get the next free id, whatever id
    # tokenizer.json gives them.
    vocabulary.update(special)
    description["added_tokens"] = [
        {"id": number, "content": token, "special": True, "normalized": False}
        | dict.fromkeys(("single_word", "lstrip", "rstrip"), False)
        for token, number in special.items()
    ]
    merges = [" ".join(pair) if isinstance(pair, list) else pair for pair in description["model"]["merges"]]
    _write(folder / "tokenizer.json", json.dumps(description, ensure_ascii=False, indent=1))
    _write(folder / "vocab.json", json.dumps(vocabulary, ensure_ascii=False))
    _write(folder / "merges.txt", "\n".join(["#version: 0.2", *merges]) + "\n")
    settings = {
        "tokenizer_class": "Qwen2Tokenizer",
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "model_max_length": max_length,
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": False,
    }
    _write(folder / "tokenizer_config.json", json.dumps(settings, indent=1))


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def _corpus() -> Iterator[str]:
    """Text like the prompts and answers that the model meets."""
    templates = (
        "system\nYou are a helpful assistant.",
        "user\nPlease generate image based on the following caption: ",
        "user\n<image>\nPlease edit the provided image according to the following description: ",
        "user\n<image>\nWhat is in this image? Describe it in detail.",
        "assistant\nThe image shows ",
    )
    # As often as the longest list below, so that the words of every prompt become tokens.
    for _ in range(100):
        yield from templates
    counts = ("a", "two", "three", "some")
    colours = ("red", "blue", "green", "yellow", "white", "black", "orange", "small", "large", "old")
    things = (
        "cat",
        "dog",
        "car",
        "boat",
        "bird",
        "house",
        "tree",
        "cup",
        "bicycle",
        "clock",
        "robot",
        "flower",
    )
    animals = ("elephant", "horse", "sheep", "giraffe", "zebra", "rabbit", "tiger", "penguin")
    actions = ("running through", "sleeping beside", "looking at", "standing near", "swimming across")
    scenes = ("a quiet village", "the mountain river", "an empty kitchen", "a field of sunflowers")
    for animal, action, scene in product(animals, actions, scenes):
        yield f"Make the {animal} bigger and show it {action} {scene}, with dramatic lighting."
    places = ("on a wooden table", "in the snow", "beside a lake", "on the street", "under a night sky")
    for count, colour, thing, place in product(counts, colours, things, places):
        ending = "" if count == "a" else "s"
        yield f"A photo of {count} {colour} {thing}{ending} {place}, in the style of a painting."
        yield f"Is there {count} {colour} {thing}{ending}? Yes, it is {place}."
