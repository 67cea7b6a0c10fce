"""Fixtures that many tests share; the one export of the fixture checkpoint takes minutes and is made once."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path

import pytest
from safetensors.numpy import load_file, save_file

# Before anything imports a vendor's package: no hub, no banners.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

from mobile_o_export.checkpoint import Checkpoint
from mobile_o_export.export import ExportResult, export_bundle, record_golden
from mobile_o_export.golden import Golden
from mobile_o_export.targets import load_targets

# A shell starts what it puts in the background with Ctrl-C ignored, and so would be what tests interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

DATA = Path(__file__).parent / "data"
EXPORTED = ["coreml-ane", "litert-cpu", "tensorrt-orin"]


@pytest.fixture(scope="session")
def reference_folder() -> Path:
    """The interoperability fixture, or another of the same layout: MOBILE_O_REFERENCE."""
    return Path(os.environ.get("MOBILE_O_REFERENCE", DATA / "reference-tiny"))


@pytest.fixture(scope="session")
def reference_checkpoint(reference_folder: Path) -> Checkpoint:
    return Checkpoint.open(reference_folder)


@pytest.fixture(scope="session")
def tied_checkpoint(reference_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """The fixture checkpoint with its embeddings for a head, as Qwen2 of 0.5B has them."""
    folder = tmp_path_factory.mktemp("tied") / "checkpoint"
    shutil.copytree(reference_folder, folder)
    tensors = load_file(folder / "model.safetensors")
    del tensors["lm_head.weight"]
    save_file(tensors, folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": True}))
    return Checkpoint.open(folder)


@pytest.fixture(scope="session")
def reference_golden(reference_checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Golden:
    """The fixture checkpoint's golden on the shipped prompts."""
    folder = tmp_path_factory.mktemp("golden")
    record_golden(reference_checkpoint, None, folder, lambda *_: None)
    return Golden.open(folder)


@pytest.fixture(scope="session")
def exported(
    reference_checkpoint: Checkpoint, reference_golden: Golden, tmp_path_factory: pytest.TempPathFactory
) -> ExportResult:
    """The fixture checkpoint, uncompressed, on one target of each backend.

    Tests that change the bundle copy it first.
    """
    out = tmp_path_factory.mktemp("export") / "bundle"
    targets = load_targets(EXPORTED, ["uncompressed"])
    return export_bundle(
        reference_checkpoint, targets, (), reference_golden.path, out, "1.2.3", lambda *_: None
    )


@pytest.fixture(scope="session")
def bundle(exported: ExportResult) -> Path:
    return exported.bundle
