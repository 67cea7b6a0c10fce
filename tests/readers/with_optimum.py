"""optimum's ``ORTModelForCausalLM.generate()`` runs a bundle's LLM and chooses the tokens of a plain loop.

    python with_optimum.py BUNDLE

optimum takes token ids and one file; the bundle has the embeddings in a file of their own, for prompts with a
picture. So ``onnx.compose`` joins the two, unchanged, and a Qwen2 configuration of their sizes goes beside.

Needs this folder's requirements.txt, not the project. A line a check on stdout; exits with 1 on a difference.
"""

# ruff: noqa: T201 - it is a command.

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
# transformers imports TensorFlow where it is installed.
os.environ.setdefault("USE_TF", "0")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import compose
from optimum.onnxruntime import ORTModelForCausalLM
from transformers import AutoTokenizer

PROMPTS = ("a red cube to the left of a blue sphere on a wooden table", "What is in the picture?\n", "a")
NEW_TOKENS = 20


def llm_folder(bundle: Path) -> Path:
    """Where the manifest says that the ONNX LLM lies."""
    manifest = json.loads((bundle / "manifest.json").read_text())
    folders = [
        target["components"]["llm"]["folder"]
        for target in manifest["targets"].values()
        if target["backend"] == "onnx" and target["components"].get("llm", {}).get("graphs")
    ]
    if len(folders) != 1:
        raise SystemExit(f"{bundle}: its manifest lists {len(folders)} ONNX LLMs; one is needed")
    return bundle / folders[0]


def join(source: Path, folder: Path) -> None:
    """Writes embeddings and decoder as one ``model.onnx`` that takes token ids, as optimum looks for it."""
    embed, model = onnx.load(source / "embed.onnx"), onnx.load(source / "model.onnx")
    joined = compose.merge_models(embed, model, io_map=[("inputs_embeds", "inputs_embeds")])
    onnx.checker.check_model(joined)
    onnx.save(joined, folder / "model.onnx", save_as_external_data=True, location="model.onnx.data")


def qwen2_config(model: onnxruntime.InferenceSession) -> dict[str, Any]:
    """``config.json`` with the sizes that the file's own shapes tell; nothing ends an answer early."""
    shapes = {value.name: value.shape for value in (*model.get_inputs(), *model.get_outputs())}
    hidden, (_, heads, _, head) = shapes["inputs_embeds"][2], shapes["past_key_values.0.key"]
    return {
        "model_type": "qwen2",
        "architectures": ["Qwen2ForCausalLM"],
        "hidden_size": hidden,
        "num_attention_heads": hidden // head,
        "num_key_value_heads": heads,
        "num_hidden_layers": sum(name.startswith("past_key_values.") for name in shapes) // 2,
        "vocab_size": shapes["logits"][2],
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": 0,
    }


def plain_tokens(
    embed: onnxruntime.InferenceSession, model: onnxruntime.InferenceSession, ids: list[int]
) -> list[int]:
    """Greedy tokens by a loop over the bundle's own two files."""
    heads, head = next(value.shape[1::2] for value in model.get_inputs() if value.name.endswith(".key"))
    past = {
        value.name: np.zeros((1, heads, 0, head), np.float16)
        for value in model.get_inputs()
        if value.name.startswith("past_key_values.")
    }
    names = [value.name for value in model.get_outputs()]
    tokens: list[int] = []
    fresh, position = ids, 0
    while len(tokens) < NEW_TOKENS:
        end = position + len(fresh)
        feed = {
            "inputs_embeds": embed.run(["inputs_embeds"], {"input_ids": np.array([fresh])})[0],
            "attention_mask": np.ones((1, end), np.int64),
            "position_ids": np.arange(position, end)[None],
            **past,
        }
        outputs = dict(zip(names, model.run(names, feed), strict=True))
        past = {name: outputs[name.replace("past_key_values.", "present.")] for name in past}
        tokens.append(int(outputs["logits"][0, -1].argmax()))
        fresh, position = tokens[-1:], end
    return tokens


def undecoded(tokenizer: Any, prompts: list[list[int]]) -> list[str]:
    """The texts that do not come back from their tokens."""
    return [text for text, ids in zip(PROMPTS, prompts, strict=True) if tokenizer.decode(ids) != text]


def optimum_tokens(model: ORTModelForCausalLM, ids: list[int]) -> list[int]:
    """Greedy tokens by ``generate()``."""
    given = torch.tensor([ids])
    mask = torch.ones_like(given)
    found = model.generate(given, attention_mask=mask, do_sample=False, max_new_tokens=NEW_TOKENS)
    tokens: list[int] = found[0, len(ids) :].tolist()
    return tokens


def main() -> int:
    parser = argparse.ArgumentParser(description="Runs a bundle's ONNX LLM with optimum.")
    parser.add_argument("bundle", type=Path)
    bundle: Path = parser.parse_args().bundle
    source = llm_folder(bundle)
    embed, model = (
        onnxruntime.InferenceSession(str(source / file), providers=["CPUExecutionProvider"])
        for file in ("embed.onnx", "model.onnx")
    )
    tokenizer = AutoTokenizer.from_pretrained(bundle / "tokenizer")
    prompts = [tokenizer(text)["input_ids"] for text in PROMPTS]
    problems = [f"{text!r} is not what its tokens decode to" for text in undecoded(tokenizer, prompts)]
    if not problems:
        print(
            f"tokenizer: {type(tokenizer).__name__} of transformers reads it; {len(PROMPTS)} texts round-trip"
        )
    lengths = ", ".join(str(len(ids)) for ids in prompts)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        join(source, folder)
        (folder / "config.json").write_text(json.dumps(qwen2_config(model)))
        for io_binding in (False, True):
            how = f"optimum-onnx {version('optimum-onnx')}, I/O binding {'on' if io_binding else 'off'}"
            joined = ORTModelForCausalLM.from_pretrained(folder, use_io_binding=io_binding)
            found = [optimum_tokens(joined, ids) for ids in prompts]
            expected = [plain_tokens(embed, model, ids) for ids in prompts]
            if found == expected:
                print(f"{how}: generate() chooses a plain loop's {NEW_TOKENS} tokens after {lengths} tokens")
            else:
                problems.append(f"{how}: generate() chooses {found}, a plain loop {expected}")
    for problem in problems:
        print(problem, file=sys.stderr)
    return int(bool(problems))


if __name__ == "__main__":
    sys.exit(main())
