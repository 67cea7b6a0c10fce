"""A bundle of the demo checkpoint that no export made: all that readers read, and no runtime's files."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

from PIL import Image

from mobile_o_export import reference
from mobile_o_export.backends.base import GraphFile, LowerRequest
from mobile_o_export.backends.mobile_o_app import language, packages
from mobile_o_export.backends.registry import backend
from mobile_o_export.bundle.manifest import (
    SCHEMA,
    CheckpointEntry,
    ComponentEntry,
    Manifest,
    TargetEntry,
    file_entries,
    write_manifest,
)
from mobile_o_export.bundle.outcomes import OUTCOMES, OUTCOMES_FOLDER, Outcome, Outcomes
from mobile_o_export.bundle.vectors import write_vectors
from mobile_o_export.checkpoint import Checkpoint
from mobile_o_export.components.registry import COMPONENT_NAMES, component
from mobile_o_export.parity.chain import CHAIN
from mobile_o_export.parity.gates import shipped_gates
from mobile_o_export.parity.judge import Row
from mobile_o_export.parity.report import report_json
from mobile_o_export.targets import Target, load_target
from mobile_o_export.tokenizer import Tokenizer

ROOT = Path(__file__).resolve().parent.parent
CHECKPOINT = ROOT / "examples" / "demo_checkpoint" / "checkpoint"
GOLDEN = ROOT / "golden" / "demo"
TARGETS = ("coreml-ane", "litert-cpu", "tensorrt-orin", "mobile-o-app")


def write_bundle(folder: Path) -> None:
    """Writes it into ``folder``, which does not exist yet."""
    checkpoint = Checkpoint.open(CHECKPOINT)
    folder.mkdir()
    shutil.copytree(GOLDEN, folder / "golden")
    for name in ("config", "tokenizer", "vectors", OUTCOMES_FOLDER):
        (folder / name).mkdir()
    for path in checkpoint.tokenizer_files:
        shutil.copyfile(path, folder / "tokenizer" / path.name)
    tokenizer = Tokenizer(folder / "tokenizer")
    settings = reference.settings(checkpoint, tokenizer)
    settings.write(folder / "config")
    write_vectors(settings, tokenizer, folder / "vectors")
    shutil.copytree(CHECKPOINT / "evaluation", folder / "evaluation")
    drawn = component("vae_decoder").functions(checkpoint)[0].outputs[0].shape[-1]
    seen = component("vision_encoder").functions(checkpoint)[0].inputs[0].shape[-1]
    picture, given = f"{OUTCOMES_FOLDER}/000.png", f"{OUTCOMES_FOLDER}/given.png"
    for name, side in ((picture, drawn), (given, seen)):
        Image.new("RGB", (int(side), int(side)), (200, 30, 30)).save(folder / name)
    outcomes = [
        Outcome(target=name, task="generate", case="a", prompt="b", given=given, picture=picture)
        for name in ("torch", TARGETS[0])
    ]
    found = Outcomes(outcomes=tuple(outcomes)).model_dump(mode="json")
    (folder / OUTCOMES_FOLDER / OUTCOMES).write_text(json.dumps(found))
    (folder / "parity.json").write_text(json.dumps({**report_json(list(_rows())), "judged": ""}))
    functions = {name: component(name).functions(checkpoint) for name in COMPONENT_NAMES}
    manifest = Manifest(
        schema_version=SCHEMA,
        bundle_version="1",
        made_with={"torch": "2"},
        checkpoint=CheckpointEntry(digest=checkpoint.digest, parameters=1),
        functions=functions,
        targets={name: _target(load_target(name), checkpoint) for name in TARGETS},
        files={},
    )
    write_manifest(folder, manifest.model_copy(update={"files": file_entries(folder)}))


def _rows() -> Iterator[Row]:
    known = {"target": TARGETS[0], "function": "f", "case": "c", "runtime": "r", "status": "passed"}
    yield Row.model_validate({**known, "component": "mcp", "output": "o", "snr_db": 80.0, "gate": "≥ 40 dB"})
    yield Row.model_validate({**known, "component": CHAIN, "output": "latent_01", "snr_db": 70.0, "step": 1})


def _target(target: Target, checkpoint: Checkpoint) -> TargetEntry:
    precisions = {name: target.recipe(name) for name, plan in target.components.items() if plan.skip is None}
    gates = shipped_gates()
    judged = {name: (recipe.precisions, gates.of(recipe.precisions)) for name, recipe in precisions.items()}
    entries = {
        name: ComponentEntry(skipped=plan.skip) for name, plan in target.components.items() if plan.skip
    }
    for name, recipe in precisions.items():
        graphs = tuple(_graphs(target, name, checkpoint))
        entries[name] = ComponentEntry(
            recipe=recipe, gate=judged[name][1], folder=target.name, size_bytes=9, graphs=graphs
        )
    return TargetEntry(
        backend=target.backend,
        description=target.description,
        sequence=target.sequence,
        options=target.options,
        components=entries,
        chain_gate=gates.of_chain(judged),
    )


def _graphs(target: Target, name: str, checkpoint: Checkpoint) -> Iterator[GraphFile]:
    """The graphs as an export would list them."""
    part = component(name)
    request = LowerRequest(target.name, part, target.recipe(name), target.sequence, target.options)
    options = backend(target.backend).graph_options(request)
    if target.backend != "mobile-o-app":
        for spec in part.graphs(checkpoint, options):
            own = target.backend == "onnx"
            yield GraphFile(spec, f"{spec.name if own else name}.file", "" if own else spec.name)
    elif name == language.LANGUAGE:
        for spec in language.language_specs(part, checkpoint, options):
            yield GraphFile(spec, language.FILE, "")
    else:
        spec, *further = packages.package_specs(part, checkpoint, options)
        yield GraphFile(spec, packages.PACKAGES[name].file, "main")
        yield from (GraphFile(own, language.FILE, "") for own in further)
