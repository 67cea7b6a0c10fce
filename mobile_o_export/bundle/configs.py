"""What an app needs beside the graphs: tokenizer, scheduler, preprocessing, prompts, numbers, vectors.

And the checkpoint's own tasks, for ``evaluate``.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from mobile_o_export import reference
from mobile_o_export.bundle.layout import LICENCE_NOTICE, TOKENIZER_FILE
from mobile_o_export.bundle.manifest import (
    CONFIG_FOLDER,
    EVALUATION_FOLDER,
    TOKENIZER_FOLDER,
    VECTORS_FOLDER,
    file_digest,
)
from mobile_o_export.bundle.vectors import write_vectors
from mobile_o_export.errors import BundleError, CheckpointError
from mobile_o_export.evaluation.tasks import PROMPTS, QUESTIONS
from mobile_o_export.members import LINK, Members, entries
from mobile_o_export.tokenizer import Tokenizer

if TYPE_CHECKING:
    from mobile_o_export.checkpoint import Checkpoint


def write_configs(checkpoint: Checkpoint, folder: Path) -> dict[str, str]:
    """Writes ``tokenizer/``, ``config/``, ``vectors/`` and the weights' licence notice into ``folder``.

    And ``evaluation/``, where the checkpoint has tasks.

    Returns:
        SHA-256 of the files that came from the checkpoint's folder as they are, by their paths in ``folder``.

    Raises:
        ConfigError: the checkpoint's scheduler cannot be written as numbers.
    """
    for name in (TOKENIZER_FOLDER, CONFIG_FOLDER, VECTORS_FOLDER):
        (folder / name).mkdir()
    copied = [LICENCE_NOTICE]
    for path in checkpoint.tokenizer_files:
        shutil.copyfile(path, folder / TOKENIZER_FOLDER / path.name)
        copied.append(f"{TOKENIZER_FOLDER}/{path.name}")
    tokenizer = Tokenizer(folder / TOKENIZER_FOLDER)
    if not (folder / TOKENIZER_FOLDER / TOKENIZER_FILE).is_file():
        # What every tokenizers library of the platforms reads.
        tokenizer.save(folder / TOKENIZER_FOLDER / TOKENIZER_FILE)
    settings = reference.settings(checkpoint, tokenizer)
    settings.write(folder / CONFIG_FOLDER)
    write_vectors(settings, tokenizer, folder / VECTORS_FOLDER)
    tasks = checkpoint.path / EVALUATION_FOLDER
    if any((tasks / name).is_file() for name in (PROMPTS, QUESTIONS)):
        copy_tasks(tasks, folder / EVALUATION_FOLDER)
        copied += [f"{EVALUATION_FOLDER}/{name}" for name, _ in entries(folder / EVALUATION_FOLDER)]
    (folder / LICENCE_NOTICE).write_text(checkpoint.licence, encoding="utf-8")
    members = Members(folder, BundleError)
    return {name: file_digest(members, name).sha256 for name in sorted(copied)}


def copy_tasks(source: Path, folder: Path) -> None:
    """Copies a checkpoint's tasks; of links only those within it, as Hugging Face's cache has.

    Raises:
        CheckpointError: something else lies there: what it leads to may be anything.
    """
    members = Members(source, CheckpointError, "Put the file itself there.", links=True)
    # In a cache, the files of snapshots/<revision>/ are links into blobs/.
    home = source.parent.resolve()
    homes = (home, home.parents[1]) if home.parent.name == "snapshots" else (home,)
    for name, kind in entries(source):
        if kind == LINK and not any(map((source / name).resolve().is_relative_to, homes)):
            raise CheckpointError(
                f"{source / name}: is a link out of the checkpoint. Put the file itself there, or remove it."
            )
        place = folder / name
        place.parent.mkdir(parents=True, exist_ok=True)
        with members.open(name) as given, place.open("wb") as copy:
            shutil.copyfileobj(given, copy)
