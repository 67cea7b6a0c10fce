"""Fixtures that many tests share; the one export of the fixture checkpoint takes minutes and is made once."""

from __future__ import annotations

import gc
import importlib
import json
import os
import re
import shutil
import signal
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import pytest
from recipes import short_sequence
from safetensors.numpy import load_file, save_file
from shared_exports import SharedExports

# Before anything imports a vendor's package: no hub, no banners.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
# Nor what earlier exports left: a test that exports says where it keeps what.
os.environ["MOBILE_O_EXPORT_CACHE"] = "off"
# Nor threads that wait for each other: where workers are as many as cores, each has one.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

from mobile_o_export.checkpoint import Checkpoint
from mobile_o_export.export import ExportResult
from mobile_o_export.golden import Golden
from mobile_o_export.resources import shipped
from mobile_o_export.targets import load_targets

# A shell starts what it puts in the background with Ctrl-C ignored, and so would be what tests interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

SLOW_FIXTURES = frozenset({"shared", "lower_anew", "wheel"})
"""Tests that use one, directly or through others, are slow: goldens, exports, lowered components, the wheel.

A test that is slow without them says so itself: ``@pytest.mark.slow``.
"""

ROOT = Path(__file__).parent.parent
DATA = ROOT / "tests" / "data"
EXPORTED = ["coreml-ane", "litert-cpu", "tensorrt-orin"]
CAMPAIGN = [*EXPORTED, "onnx-cpu", "mobile-o-app"]

SMALL_PROMPTS = """
[[generate]]
name = "short"
prompt = "a house"
steps = 1

[[generate]]
name = "long"
prompt = "{long}"
steps = 1

[[describe]]
name = "what"
image = "{images}/still-life.png"
question = "What?"
tokens = 2
"""

DEMO_PROMPTS = """
[[generate]]
name = "shapes"
prompt = "a red circle to the left of a blue square"
steps = 4
guidance = 2.0

[[describe]]
name = "what"
image = "{images}/demo-squares.png"
question = "Describe the image."
tokens = 3
"""
"""Of what the checkpoint was trained for: where a prompt means nothing to it, any rounding grows."""


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> Iterator[None]:
    """Marks what is slow, and where two processes share the work, has each begin with other slow tests.

    xdist's ``worksteal`` gives each process half of the list, and later half of what the other has left. So
    the first half begins with the tests of the one large export, the second with all other slow ones (first
    those that share nothing and those of the demo, two of which take a minute), and what is fast comes last,
    to be taken over.
    """
    alone = {item for item in items if item.get_closest_marker("slow")}
    for item in items:
        if uses(item, SLOW_FIXTURES):
            item.add_marker("slow")
    yield  # while -m and -k choose
    if "PYTEST_XDIST_WORKER" in os.environ:
        slow = [item for item in items if item.get_closest_marker("slow")]
        exporting = [item for item in slow if uses(item, {"exported"})]
        others = [item for item in slow if not uses(item, {"exported"})]
        others.sort(key=lambda item: item not in alone and "test_demo" not in item.nodeid)
        fast = [item for item in items if not item.get_closest_marker("slow")]
        room = max(len(items) // 2 - len(exporting), 0)
        items[:] = [*exporting, *fast[:room], *others, *fast[room:]]


def uses(item: pytest.Item, fixtures: Collection[str]) -> bool:
    """Whether the test has one of the ``fixtures``, directly or through others."""
    return any(name in fixtures for name in getattr(item, "fixturenames", ()))


@pytest.fixture(scope="session")
def reference_folder() -> Path:
    """The interoperability fixture, or another of the same layout: MOBILE_O_REFERENCE."""
    return Path(os.environ.get("MOBILE_O_REFERENCE", DATA / "reference-tiny"))


@pytest.fixture(scope="session")
def reference_checkpoint(reference_folder: Path) -> Checkpoint:
    return Checkpoint.open(reference_folder)


@pytest.fixture(scope="session")
def brief_checkpoint(reference_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """The fixture checkpoint with fewer of the same layers, to be lowered sooner."""
    return Checkpoint.open(shortened(reference_folder, tmp_path_factory.mktemp("brief") / "checkpoint"))


@pytest.fixture(scope="session")
def tied_checkpoint(reference_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """Likewise, of two layers, with its embeddings for a head, as Qwen2 of 0.5B has them."""
    folder = shortened(reference_folder, tmp_path_factory.mktemp("tied") / "checkpoint", layers=2)
    edit_json(folder / "config.json", tie_word_embeddings=True, vlm_num_layers=2)
    tensors = load_file(folder / "model.safetensors")
    del tensors["lm_head.weight"]
    fused = "model.diffusion_connector.fusion.layer_weights"
    tensors[fused] = tensors[fused][:2]
    save_file(tensors, folder / "model.safetensors")
    return Checkpoint.open(folder)


def shortened(folder: Path, out: Path, layers: int | None = None) -> Path:
    """A copy of a checkpoint at ``out`` with half of the LLM's layers, or so many, and one of the DiT's."""
    shutil.copytree(folder, out)
    config = json.loads((out / "config.json").read_text())
    kept = layers or config["num_hidden_layers"] // 2
    edit_json(out / "config.json", num_hidden_layers=kept, layer_types=config["layer_types"][:kept])
    edit_json(out / "diffusion" / "transformer" / "config.json", num_layers=1)
    tensors = {
        name: value
        for name, value in load_file(out / "model.safetensors").items()
        if not (found := re.match(r"model\.(layers|dit\.transformer_blocks)\.(\d+)\.", name))
        or int(found[2]) < (kept if found[1] == "layers" else 1)
    }
    save_file(tensors, out / "model.safetensors")
    return out


def edit_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> SharedExports:
    """What any process of the session has exported, for all of them."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        load_converters()
    own = tmp_path_factory.getbasetemp()
    return SharedExports((own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "shared")


def load_converters() -> None:
    """Imports what lowers, and sets the millions of objects that this leaves apart from garbage collection.

    coremltools and the product collect after every component, which took a sixth of an export's time; a
    process of tests leaves that to Python.
    """
    for name in ("coremltools", "litert_torch", "onnxruntime", "onnxscript"):
        importlib.import_module(name)
    gc.collect()
    gc.freeze()
    gc.collect = lambda generation=2: 0  # type: ignore[assignment]


@pytest.fixture(scope="session")
def reference_golden(reference_checkpoint: Checkpoint, shared: SharedExports) -> Golden:
    """The fixture checkpoint's golden on the shipped prompts."""
    return shared.golden(reference_checkpoint)


@pytest.fixture(scope="session")
def exported(
    reference_checkpoint: Checkpoint, reference_golden: Golden, shared: SharedExports
) -> ExportResult:
    """The fixture checkpoint, uncompressed, on one target of each backend.

    Tests that change the bundle copy it first.
    """
    targets = load_targets(EXPORTED, ["uncompressed"])
    return shared.export(reference_checkpoint, targets, (), reference_golden)


@pytest.fixture(scope="session")
def bundle(exported: ExportResult) -> Path:
    return exported.bundle


@pytest.fixture(scope="session")
def small_prompts() -> str:
    """As few prompts as have a case for every graph of the MCP, as a file has them."""
    return SMALL_PROMPTS.format(long="a house by the sea, " * 20, images=shipped("golden"))


@pytest.fixture(scope="session")
def small_golden(reference_checkpoint: Checkpoint, shared: SharedExports, small_prompts: str) -> Golden:
    """The fixture checkpoint's golden, as small as it can be."""
    return shared.golden(reference_checkpoint, shared.prompts(small_prompts))


@pytest.fixture(scope="session")
def demo_checkpoint() -> Checkpoint:
    return Checkpoint.open(ROOT / "examples" / "demo_checkpoint" / "checkpoint")


@pytest.fixture(scope="session")
def demo_golden(demo_checkpoint: Checkpoint, shared: SharedExports) -> Golden:
    """A small one; that of the shipped prompts is golden/demo."""
    return shared.golden(demo_checkpoint, shared.prompts(DEMO_PROMPTS.format(images=shipped("golden"))))


@pytest.fixture(scope="session")
def campaign_bundle(demo_checkpoint: Checkpoint, demo_golden: Golden, shared: SharedExports) -> Path:
    """Two components of the demo's checkpoint on five targets with their own recipes, to be corrupted.

    Not the fixture's, whose random weights miss the gates of some recipes. Static shapes are of one length,
    in which the golden's prompts fit. All components of all five would take six minutes of a processor.
    """
    targets = [
        target.model_copy(update={"sequence": short_sequence(target, 128)})
        for target in load_targets(CAMPAIGN)
    ]
    return shared.export(demo_checkpoint, targets, ("llm", "mcp"), demo_golden).bundle
