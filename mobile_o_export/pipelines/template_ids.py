"""Whether a checkpoint's tokenizer gives the templates the ids that the model was trained on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mobile_o_export.errors import CheckpointError
from mobile_o_export.pipelines.prompts import END_OF_TURN, START_OF_TURN, STOPS, Task, Templates
from mobile_o_export.quiet import is_failure, quiet_vendor, without_stderr
from mobile_o_export.tokenizer import Tokenizer

if TYPE_CHECKING:
    from pathlib import Path

    from mobile_o_export.checkpoint import Checkpoint

WORDS = "a photo of a cat"
"""What templates are filled with: versions of transformers differ in how they cut numbers and accents."""


def require_control_tokens(tokenizer: Tokenizer, folder: Path) -> None:
    """Raises CheckpointError where a token of the chat template falls apart into the ids of its letters."""
    stops = (stop for stop in STOPS if tokenizer.id_of(stop) is not None)
    for token in dict.fromkeys((START_OF_TURN, END_OF_TURN, *stops)):
        if not tokenizer.is_whole(token):
            raise CheckpointError(
                f"{folder}: the tokenizer does not read {token} as one token. vocab.json and merges.txt do "
                "not say which tokens are special: copy tokenizer.json and tokenizer_config.json, too, from "
                "the published checkpoint."
            )


def require_template_ids(checkpoint: Checkpoint) -> None:
    """Compares each template's ids with those that transformers gives it.

    Training tokenized with transformers, which reads more than ``tokenizer.json`` and obeys less of it.

    Raises:
        CheckpointError: there is no tokenizer, or one that differs from transformers' or lacks the control
            tokens.
    """
    _ = checkpoint.tokenizer_files
    own = Tokenizer(checkpoint.path)
    require_control_tokens(own, checkpoint.path)
    other = _of_transformers(checkpoint.path)
    if other is None:
        return
    for task in Task:
        text = Templates().fill(task, WORDS)
        found = own.encode(text)[0].tolist()
        wanted = other(text, add_special_tokens=False)["input_ids"]
        if found != wanted:
            raise CheckpointError(
                f"{checkpoint.path}: tokenizer.json gives the template {task.value!r} other ids than "
                f"transformers does ({len(found)} against {len(wanted)}, apart from place "
                f"{_first_difference(found, wanted)} on). Load it with the transformers that the model was "
                "trained with, and save it again: AutoTokenizer.from_pretrained(CKPT).save_pretrained(CKPT)."
            )


def _of_transformers(folder: Path) -> Any | None:
    """The tokenizer that transformers makes of ``folder``, or None; code that lies there is never run."""
    try:
        with quiet_vendor(), without_stderr():
            from transformers import AutoTokenizer

            return AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    except BaseException as error:
        # It says OSError, ValueError, KeyError or what its Rust half raises, by the file that it dislikes.
        if not is_failure(error):
            raise
        return None


def _first_difference(found: list[int], wanted: list[int]) -> int:
    pairs = zip(found, wanted, strict=False)
    same = next((place for place, (one, other) in enumerate(pairs) if one != other), None)
    return min(len(found), len(wanted)) if same is None else same
