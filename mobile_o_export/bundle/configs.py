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
from mobile_o_export.evaluation.tasks import PROMPTS, QUESTIONS
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
        shutil.copytree(tasks, folder / EVALUATION_FOLDER)
        copied += [
            path.relative_to(folder).as_posix()
            for path in sorted((folder / EVALUATION_FOLDER).rglob("*"))
            if path.is_file()
        ]
    (folder / LICENCE_NOTICE).write_text(checkpoint.licence, encoding="utf-8")
    return {name: file_digest(folder / name) for name in copied}
