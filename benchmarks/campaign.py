"""The corruptions that a bundle is put through: for every file and every claim, by what the bundle holds."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import corruptions as c
import numpy as np
from corruptions import Corruption

from mobile_o_export.bundle.manifest import Manifest, read_manifest
from mobile_o_export.golden import Golden

WEIGHTS = "Data/com.apple.CoreML/weights/weight.bin"
SPEC = "Data/com.apple.CoreML/model.mlmodel"

FP16, PALETTES, INTEGERS = (1,), (10, 11, 12, 13, 9, 3), (4, 8)
"""Type codes of blobs in weight.bin."""

FREE_TEXT = "free text for people, which nothing computes with; the bundle's identity covers it"


def campaign(bundle: Path) -> list[Corruption]:
    """Every corruption of ``bundle``, a bundle of any targets."""
    manifest = read_manifest(bundle)
    found = [
        *of_graphs(manifest),
        *of_manifest(manifest),
        *of_records(bundle, manifest),
        *of_settings(bundle),
        *of_beside(manifest),
    ]
    names = [corruption.name for corruption in found]
    assert len(names) == len(set(names)), sorted(name for name in names if names.count(name) > 1)
    return found


def of_graphs(manifest: Manifest) -> Iterator[Corruption]:
    """Numbers, operators and interfaces of every component on every target."""
    for target, entry in manifest.targets.items():
        for component, part in entry.components.items():
            if part.skipped is not None:
                continue
            for file in dict.fromkeys(graph.file for graph in part.graphs):
                place = f"{part.folder}/{file}"
                if not any(name.startswith(place) for name in part.files):
                    # Another component's, which this one takes a part of.
                    continue
                for what, edit in edits_of(place):
                    yield Corruption(f"{place}: {what}", edit, target, component)


def edits_of(place: str) -> Iterator[tuple[str, c.Edit]]:
    """What is done to one file of a graph, by its format."""
    if place.endswith(".onnx"):
        for what, change in c.NUMBERS.items():
            yield what, c.of_onnx(place, c.large_onnx, change)
        yield "a norm's epsilon x 100", c.of_onnx_graph(place, epsilon)
        yield "an operator is another", c.of_onnx_graph(place, operator)
        yield "an output renamed", c.of_onnx_graph(place, output)
    elif place.endswith(".tflite"):
        for what, change in c.NUMBERS.items():
            yield what, c.of_tflite(place, c.buffer_changed(change, ("FLOAT32", "FLOAT16", "INT8")))
        yield "a signature renamed", c.of_tflite(place, c.signature_renamed)
        yield "a constant of a norm", c.of_tflite(place, small_constant)
    elif place.endswith(".mlpackage"):
        blobs = f"{place}/{WEIGHTS}"
        yield "fp16 zeroed", c.of_weight_bin(blobs, c.blob_zeroed, FP16)
        yield "fp16, one bit", c.of_weight_bin(blobs, c.blob_bit, FP16)
        yield "fp16 shifted", c.of_weight_bin(blobs, c.blob_rotated, FP16)
        yield "indices shifted", c.of_weight_bin(blobs, c.blob_rotated, (*FP16, *PALETTES, *INTEGERS))
        yield "a scalar x 1.1", c.of_mlmodel(f"{place}/{SPEC}", c.scalar_changed)
        yield "a norm's epsilon x 100", c.of_mlmodel(f"{place}/{SPEC}", c.epsilon_louder)
        manifest = f"{place}/Manifest.json"
        yield "its manifest's root", c.of_json(manifest, lambda value: value.update(rootModelIdentifier="?"))
    elif place.endswith(".safetensors"):
        folder = place.rpartition("/")[0]
        for what, change in c.NUMBERS.items():
            yield what, c.of_safetensors(place, first_large, change)
        yield (
            "its configuration's epsilon",
            c.of_json(f"{folder}/config.json", lambda value: value.update(rms_norm_eps=1e-3)),
        )
        yield (
            "its configuration's theta",
            c.of_json(f"{folder}/config.json", lambda value: value.update(rope_theta=1e4)),
        )
        yield (
            "its configuration's image token",
            c.of_json(f"{folder}/config.json", lambda value: value.update(image_token_index=7)),
        )
        yield (
            "its index",
            c.of_json(f"{folder}/model.safetensors.index.json", lambda value: value["weight_map"].popitem()),
        )


def first_large(tensors: dict[str, Any]) -> str:
    return max(sorted(tensors), key=lambda name: tensors[name].size)


def epsilon(model: Any) -> bool:
    """The epsilon of a norm, as an attribute or a small constant."""
    from onnx import numpy_helper

    for node in model.graph.node:
        for attribute in node.attribute:
            if attribute.name == "epsilon":
                attribute.f *= 100
                return True
    for tensor in model.graph.initializer:
        if not tensor.dims and tensor.data_type in (1, 10) and not tensor.external_data:
            value = numpy_helper.to_array(tensor)
            if 0 < value < 1e-3:
                tensor.CopyFrom(numpy_helper.from_array((value * 100).astype(value.dtype), tensor.name))
                return True
    return operator(model)


def operator(model: Any) -> bool:
    others = {"Add": "Sub", "Mul": "Div", "Sigmoid": "Tanh", "Softmax": "LogSoftmax"}
    for node in model.graph.node:
        if node.op_type in others:
            node.op_type = others[node.op_type]
            return True
    return False


def output(model: Any) -> bool:
    old = model.graph.output[0].name
    model.graph.output[0].name = "other"
    for node in model.graph.node:
        node.output[:] = ["other" if name == old else name for name in node.output]
    return True


def small_constant(model: Any, rng: np.random.Generator) -> bool:
    """The first scalar constant of a graph, a hundred times as large."""
    from ai_edge_litert.schema_py_generated import TensorType

    for graph in model.subgraphs:
        for tensor in graph.tensors:
            buffer = model.buffers[tensor.buffer]
            if tensor.type == TensorType.FLOAT32 and buffer.data is not None and len(buffer.data) == 4:
                value = np.frombuffer(bytes(buffer.data), np.float32)
                if np.isfinite(value).all() and value.any():
                    buffer.data = (value * 100).view(np.uint8)
                    return True
    return c.signature_renamed(model, rng)


LIES: dict[str, tuple[str, Callable[[Any], object]]] = {
    "a gate of -200 dB": ("component", lambda part: part["gate"].update(snr_db=-200.0)),
    "chain gates of -200 dB": ("target", lambda entry: entry["chain_gate"].update(latent_db=-200.0)),
    "ties of 90 %": ("target", lambda entry: entry["chain_gate"].update(tie=0.9)),
    "size_bytes": ("component", lambda part: part.update(size_bytes=1, lying=True)),
    "a file fewer": ("component", lambda part: part.update(files=part["files"][1:])),
    "an input's shape": ("graph", lambda graph: lengthened(graph["spec"]["inputs"][0])),
    "an output's dtype": ("graph", lambda graph: graph["spec"]["outputs"][0].update(dtype="int64")),
    "an output's name": ("graph", lambda graph: graph["spec"]["outputs"][0].update(name="x")),
    "an entry": ("graph", lambda graph: graph.update(entry="other")),
    "another least runtime": ("target", lambda t: t.update(least_runtimes={"ai-edge-litert": "1.0.0"})),
    "its description": ("target", lambda entry: entry.update(description="the best")),
}
"""What a manifest may say of a target, of a component or of its first graph."""


def of_manifest(manifest: Manifest) -> Iterator[Corruption]:
    """Lies in the manifest itself."""

    def lie(name: str, change: Callable[[Any], object], **details: Any) -> Corruption:
        return Corruption(f"manifest: {name}", c.of_manifest(change), **details)

    yield lie("another bundle_version", lambda m: m.update(bundle_version="9.9"), harmless=FREE_TEXT)
    yield lie("a function fewer", lambda m: m["functions"].popitem())
    yield lie("the checkpoint's digest", lambda m: m["checkpoint"].update(digest="sha256:" + "0" * 64))
    yield lie("no sources", lambda m: m["checkpoint"].update(sources={}))
    for target, entry in manifest.targets.items():
        component = next(name for name, part in entry.components.items() if part.skipped is None)
        for name, (level, change) in LIES.items():
            yield lie(
                f"{target}: {name}",
                partial(lie_to, target, component, level, change),
                target=target,
                component=component,
                harmless=FREE_TEXT if name == "its description" else "",
            )


def lie_to(target: str, component: str, level: str, change: Callable[[Any], object], manifest: Any) -> None:
    """``change`` of a target, of one of its components, or of that one's first graph."""
    found = manifest["targets"][target]
    if level != "target":
        found = found["components"][component]
    change(found["graphs"][0] if level == "graph" else found)


def lengthened(tensor: dict[str, Any]) -> None:
    """A fixed size one larger."""
    index = max(i for i, size in enumerate(tensor["shape"]) if isinstance(size, int))
    tensor["shape"][index] += 1


def of_records(bundle: Path, manifest: Manifest) -> Iterator[Corruption]:
    """The records that levels and weights are held to, and the golden."""

    def level(by: float, chain: bool) -> Callable[[Any], object]:
        def change(report: Any) -> None:
            row = next(
                row
                for row in report["rows"]
                if row["snr_db"] is not None
                and (row["component"] == "pipeline") == chain
                and row["step"] is None
            )
            row["snr_db"] = round(row["snr_db"] + by, 2)

        return change

    parity = "parity.json"
    yield Corruption(f"{parity}: a level lowered", c.of_json(parity, level(-9.0, False)))
    yield Corruption(f"{parity}: a level raised", c.of_json(parity, level(9.0, False)))
    if any(row["component"] == "pipeline" for row in json.loads((bundle / parity).read_text())["rows"]):
        yield Corruption(f"{parity}: a stage's level", c.of_json(parity, level(-9.0, True)), pipeline=True)
    yield Corruption(f"{parity}: a row dropped", c.of_json(parity, lambda r: r["rows"].pop(0)))
    yield Corruption(f"{parity}: no rows", c.of_json(parity, lambda r: r.update(rows=[], drift=[])))
    yield Corruption(f"{parity}: another runtime", c.of_json(parity, other_runtime))
    yield Corruption(f"{parity}: removed", c.removed(parity))
    for target, entry in manifest.targets.items():
        component, part = next((n, p) for n, p in entry.components.items() if p.skipped is None)
        name = next(name for name in part.files if name.endswith("weights.json"))
        own = {"target": target, "component": component}
        yield Corruption(f"{name}: emptied", c.of_json(name, emptied), **own)
        yield Corruption(
            f"{name}: a digest", c.of_json(name, lambda r: first(r["constants"], "0" * 64)), **own
        )
        yield Corruption(
            f"{name}: a program", c.of_json(name, lambda r: first(r["programs"], "0" * 64)), **own
        )
    index, tensors = "golden/golden.json", "golden/tensors.safetensors"
    yield Corruption(f"{tensors}: a number", c.of_safetensors(tensors, float_tensor, c.one_number))
    yield Corruption(
        f"{index}: a case dropped", c.of_json(index, lambda g: g["components"]["mcp"]["cases"].pop())
    )
    yield Corruption(
        f"{index}: no cases", c.of_json(index, lambda g: g["components"]["mcp"].update(cases=[]))
    )
    yield Corruption(f"{index}: settings", c.of_json(index, lambda g: first(g["settings"], "0" * 64)))
    if Golden.open(bundle / "golden").index.answers:
        yield Corruption(
            f"{index}: a question", c.of_json(index, lambda g: g["answers"][0].update(question="Why?"))
        )
        yield Corruption(f"{index}: a token", c.of_json(index, other_token))


def other_runtime(report: Any) -> None:
    """As if another version had computed every level: nothing could be held to it."""
    for row in report["rows"]:
        row["runtime"] += " of another version"


def emptied(record: Any) -> None:
    record.update(weights=[], constants={})


def first(table: dict[str, Any], value: object) -> None:
    table[next(iter(table))] = value


def other_token(index: Any) -> None:
    index["answers"][0]["tokens"][0] += 1


def float_tensor(tensors: dict[str, Any]) -> str:
    return max(
        (name for name in sorted(tensors) if tensors[name].dtype == np.float32), key=lambda n: tensors[n].size
    )


def of_settings(bundle: Path) -> Iterator[Corruption]:
    """Tokenizer, scheduler, preprocessing, templates, numbers: what no golden need touch."""
    scheduler, numbers = "config/scheduler.json", "config/pipeline.json"
    templates, preprocessing = "config/prompts.json", "config/preprocessing.json"
    for steps in json.loads((bundle / scheduler).read_text())["schedules"]:
        yield Corruption(f"{scheduler}: a sign, {steps} steps", c.of_json(scheduler, sign_of(steps)))
    yield Corruption(f"{scheduler}: a last bit", c.of_json(scheduler, last_bit))
    yield Corruption(f"{scheduler}: shift and tables", c.of_json(scheduler, other_shift))
    yield Corruption(f"{scheduler}: its text", c.of_json(scheduler, lambda s: s["update"].pop()))
    changes: dict[str, dict[str, object]] = {
        numbers: {
            "guidance": 1.3,
            "steps": 12,
            "stop_token_ids": [1],
            "pad_token_id": 3,
            "vae_scaling_factor": 0.5,
            "guided_velocity": "conditional",
        },
        preprocessing: {
            "mean": [0.5, 0.0, 0.0],
            "std": [0.5, 1.0, 1.0],
            "square_first": True,
            "crop": "none",
        },
        templates: {"chat": "{text}", "next_turn": "{text}", "generate": "draw {text}"},
    }
    for file, values in changes.items():
        for key, value in values.items():
            yield Corruption(f"{file}: {key}", c.of_json(file, lambda v, k=key, x=value: v.update({k: x})))
    tokenizer = "tokenizer/tokenizer.json"
    yield Corruption(f"{tokenizer}: two ids swapped", c.of_json(tokenizer, swapped_ids))
    yield Corruption(f"{tokenizer}: a late merge", c.of_json(tokenizer, lambda t: t["model"]["merges"].pop()))
    yield Corruption(
        f"{tokenizer}: a normalizer",
        c.of_json(tokenizer, lambda t: t.update(normalizer={"type": "Lowercase"})),
    )
    for name in ("merges.txt", "vocab.json", "tokenizer_config.json"):
        if (bundle / "tokenizer" / name).is_file():
            yield Corruption(
                f"tokenizer/{name}: spaces", c.of_text(f"tokenizer/{name}", lambda text: text + "\n ")
            )


def sign_of(steps: str) -> Callable[[Any], object]:
    def change(scheduler: Any) -> None:
        step = scheduler["schedules"][steps][1]
        step["denoised_before"] = -step["denoised_before"]

    return change


def last_bit(scheduler: Any) -> None:
    step = scheduler["schedules"]["20"][7]
    step["denoised_now"] = float(np.nextafter(step["denoised_now"], 2.0))


def other_shift(scheduler: Any) -> None:
    """Another shift, and all that follows from it."""
    from mobile_o_export.pipelines.schedule import SchedulerConfig
    from mobile_o_export.pipelines.settings import SchedulerNumbers

    scheduler["config"]["flow_shift"] += 0.5
    again = SchedulerNumbers.from_config(SchedulerConfig.model_validate(scheduler["config"]))
    scheduler.update(again.model_dump(mode="json"))


def swapped_ids(tokenizer: Any) -> None:
    vocabulary = tokenizer["model"]["vocab"]
    one, other = [word for word in vocabulary if len(word) > 2][-2:]
    vocabulary[one], vocabulary[other] = vocabulary[other], vocabulary[one]


def of_beside(manifest: Manifest) -> Iterator[Corruption]:
    """Vectors, pictures, tasks, notices, scripts; and files too many or too few."""
    for name in sorted(manifest.files):
        first_part = name.split("/")[0]
        if first_part == "vectors" and name.endswith(".json"):
            yield Corruption(f"{name}: a number", c.of_text(name, digit_changed))
            yield Corruption(f"{name}: removed", c.removed(name))
        elif name in sampled(manifest, "vectors/") or name in sampled(manifest, "chains/"):
            # A target's picture may lie further from what it draws than a square in its middle: chains tell.
            yield Corruption(f"{name}: another picture", c.of_picture(name), pipeline=first_part == "chains")
        elif name in sampled(manifest, "evaluation/images") or name in sampled(
            manifest, "evaluation/torch/pictures"
        ):
            yield Corruption(f"{name}: another picture", c.of_picture(name))
        elif first_part == "evaluation" and name.endswith((".json", ".jsonl")):
            yield Corruption(f"{name}: a digit", c.of_text(name, digit_changed))
    yield Corruption("chains/chains.json: a prompt", c.of_json("chains/chains.json", other_prompt))
    yield Corruption(
        "chains/chains.json: emptied", c.of_json("chains/chains.json", lambda v: v.update(outcomes=[]))
    )
    notice = "LICENCE-WEIGHTS.txt"
    yield Corruption(f"{notice}: another licence", c.added(notice, b"Do what you want.\n"))
    yield Corruption(f"{notice}: removed", c.removed(notice))
    yield Corruption(
        "manifest.schema.json: a type",
        c.of_text("manifest.schema.json", lambda t: t.replace('"integer"', '"number"', 1)),
    )
    yield Corruption("a stray file", c.added("config/extra.json", b"{}"))
    yield Corruption("a stray file at the top", c.added("install.sh", b"true\n"))
    for target in manifest.targets:
        yield Corruption(f"a stray file of {target}", c.added(f"{target}/run.py", b"pass\n"), target)
        for name in ("profiles.json", "build_engines.py"):
            if f"{target}/{name}" in manifest.files:
                change: Callable[[str], str] = (
                    (lambda t: t.replace("1", "2", 1)) if "json" in name else (lambda t: t + "\npass\n")
                )
                yield Corruption(f"{target}/{name}: changed", c.of_text(f"{target}/{name}", change), target)
                yield Corruption(f"{target}/{name}: removed", c.removed(f"{target}/{name}"), target)
    for name in [
        name for name in manifest.files if name.endswith(("tokenizer.json", "merges.txt")) and "llm/" in name
    ]:
        yield Corruption(f"{name}: spaces", c.of_text(name, lambda t: t + " "), name.split("/")[0], "llm")


def sampled(manifest: Manifest, prefix: str) -> set[str]:
    """Some pictures below ``prefix``: every one of the vectors', a few of the others."""
    found = [
        name for name in sorted(manifest.files) if name.startswith(prefix) and name.endswith((".png", ".jpg"))
    ]
    return set(found if prefix == "vectors/" else found[:: max(1, len(found) // 5)])


def digit_changed(text: str) -> str:
    """One digit in the middle is another."""
    place = next(i for i in range(len(text) // 2, len(text)) if text[i].isdigit())
    return text[:place] + str((int(text[place]) + 1) % 10) + text[place + 1 :]


def other_prompt(value: Any) -> None:
    value["outcomes"][-1]["prompt"] += "?"
