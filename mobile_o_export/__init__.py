"""Mobile-O checkpoints to verified on-device bundles: Core ML, LiteRT and ONNX from one golden.

``open_bundle(folder, target)`` and ``open_checkpoint(folder)`` give the model's four tasks: generate, edit,
describe and chat.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from mobile_o_export.progress import Say, silent

if TYPE_CHECKING:
    from mobile_o_export.pipelines.pipeline import Pipeline

__version__ = "0.1.0"

__all__ = ["__version__", "open_bundle", "open_checkpoint"]


def open_bundle(
    folder: Path | str, target: str | None = None, *, keep: bool = True, say: Say = silent
) -> Pipeline:
    """The four tasks over the files of a bundle, run by whatever runtime of their format this host has.

    Args:
        folder: the bundle; the files that are used are checked against its hashes.
        target: one of its targets; may be left out where it has one only.
        keep: keep components loaded between tasks; without, each is freed after its part.
        say: told in a short phrase what happens now: a component is loaded, a step begins.

    Raises:
        BundleError: there is no bundle in ``folder``.
        GateError: a file is missing or changed.
        UsageError: the target is not in the bundle.
    """
    from mobile_o_export.bundle import runners

    return runners.open_bundle(Path(folder), target, keep=keep, say=say)


def open_checkpoint(folder: Path | str, *, keep: bool = True, say: Say = silent) -> Pipeline:
    """The four tasks over a checkpoint in PyTorch: the reference that files are compared with.

    ``keep`` and ``say`` are those of :func:`open_bundle`.

    Raises:
        CheckpointError: there is no Mobile-O checkpoint in ``folder``.
    """
    from mobile_o_export.checkpoint import Checkpoint
    from mobile_o_export.reference import torch_pipeline

    return torch_pipeline(Checkpoint.open(Path(folder)), keep=keep, say=say)
