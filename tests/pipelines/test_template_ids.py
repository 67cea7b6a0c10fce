"""A checkpoint's tokenizer gives templates the ids that transformers does, or is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer as Fast

from mobile_o_export.checkpoint import Checkpoint
from mobile_o_export.errors import CheckpointError
from mobile_o_export.pipelines.prompts import Task, Templates
from mobile_o_export.pipelines.template_ids import WORDS, require_control_tokens, require_template_ids
from mobile_o_export.plan import plan
from mobile_o_export.quiet import quiet_vendor
from mobile_o_export.reference import settings
from mobile_o_export.targets import load_targets
from mobile_o_export.tokenizer import Tokenizer

Edit = Callable[[dict[str, Any]], object]


@pytest.fixture
def folder(reference_folder: Path, tmp_path: Path) -> Path:
    """The fixture checkpoint, its tokenizer to be changed."""
    return Path(shutil.copytree(reference_folder, tmp_path / "checkpoint"))


def edit(folder: Path, change: Edit) -> None:
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def test_the_fixture_s_tokenizer_is_transformers(reference_checkpoint: Checkpoint) -> None:
    require_template_ids(reference_checkpoint)


# --- what a call leaves in the file ---


@pytest.mark.parametrize("length", [4, 64])
@pytest.mark.parametrize("text", ["What is this?", "what is in the picture " * 40])
def test_padding_and_truncation_of_a_trainer_s_last_call_are_dropped(
    folder: Path, tokenizer: Tokenizer, tmp_path: Path, text: str, length: int
) -> None:
    trained = Fast.from_file(str(folder / "tokenizer.json"))
    trained.enable_padding(length=length, pad_id=553)
    trained.enable_truncation(max_length=length)
    trained.save(str(folder / "tokenizer.json"))
    found = Tokenizer(folder)
    assert found.encode(text).tolist() == tokenizer.encode(text).tolist()
    assert found.ends(text) == tokenizer.ends(text)
    require_template_ids(Checkpoint.open(folder))
    # Nor do apps get them.
    found.save(tmp_path / "saved.json")
    saved = json.loads((tmp_path / "saved.json").read_text())
    assert (saved["padding"], saved["truncation"]) == (None, None)


def test_a_tokenizer_that_transformers_saved_after_a_padded_call(folder: Path, tokenizer: Tokenizer) -> None:
    with quiet_vendor():
        from transformers import AutoTokenizer

        trained = AutoTokenizer.from_pretrained(folder)
    trained(["a red circle"], padding="max_length", max_length=64, truncation=True)
    trained.save_pretrained(folder)
    assert json.loads((folder / "tokenizer.json").read_text())["padding"] is not None
    for task in Task:
        text = Templates().fill(task, WORDS)
        assert Tokenizer(folder).encode(text).tolist() == tokenizer.encode(text).tolist()


# --- what transformers reads otherwise ---


def no_split(content: dict[str, Any]) -> None:
    """Words may now be merged with what follows them."""
    content["pre_tokenizer"] = {
        "type": "ByteLevel",
        "add_prefix_space": True,
        "trim_offsets": True,
        "use_regex": True,
    }


def lower(content: dict[str, Any]) -> None:
    content["normalizer"] = {"type": "Lowercase"}


@pytest.mark.parametrize("change", [no_split, lower])
def test_other_ids_than_transformers_are_refused(folder: Path, change: Edit) -> None:
    edit(folder, change)
    checkpoint = Checkpoint.open(folder)
    with pytest.raises(CheckpointError, match=r"other ids than transformers does \(\d+ against \d+, .*save"):
        require_template_ids(checkpoint)
    with pytest.raises(CheckpointError, match="other ids than transformers"):
        plan(checkpoint, load_targets(["onnx-cpu"]), ["mcp"])


def test_where_transformers_makes_none_there_is_nothing_to_compare(folder: Path) -> None:
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "NoSuchTokenizer"}))
    edit(folder, lower)
    require_template_ids(Checkpoint.open(folder))


# --- control tokens ---


@pytest.mark.parametrize("token", ["<|im_start|>", "<|im_end|>", "<|endoftext|>"])
def test_a_control_token_that_falls_apart_is_refused(folder: Path, token: str) -> None:
    """It is in the vocabulary all the same, where a lookup by name finds it."""
    edit(folder, lambda content: content["model"]["vocab"].update({token: 553}))
    edit(folder, lambda content: content.update(added_tokens=[]))
    with pytest.raises(CheckpointError, match=r"does not read .* as one token.*tokenizer_config\.json"):
        require_control_tokens(Tokenizer(folder), folder)
    with pytest.raises(CheckpointError, match="as one token"):
        settings(Checkpoint.open(folder), Tokenizer(folder))


def test_vocabulary_and_merges_alone_are_refused(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer_config.json").unlink()
    checkpoint = Checkpoint.open(folder)
    with pytest.raises(CheckpointError, match=r"does not read <\|im_start\|> as one token"):
        plan(checkpoint, load_targets(["onnx-cpu"]), ["mcp"])


def test_no_tokenizer_at_all_is_said_by_plan(folder: Path) -> None:
    for name in ("tokenizer.json", "vocab.json"):
        (folder / name).unlink()
    with pytest.raises(CheckpointError, match=r"neither tokenizer\.json nor vocab\.json"):
        plan(Checkpoint.open(folder), load_targets(["onnx-cpu"]), ["mcp"])
