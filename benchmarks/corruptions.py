"""Corruptions of a bundle, seeded: every kind of file, every kind of lie.

Each changes a copy of a bundle and recomputes what follows from it: sizes, hashes of files, the golden's own
digest, the manifest's; and, where the copy is *sealed*, the digest in the verdict as well. What is left to
notice it is what ``verify`` derives, restores, runs and compares.
"""

from __future__ import annotations

import io
import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from mobile_o_export.backends.onnx.external import load_whole
from mobile_o_export.bundle.manifest import (
    MANIFEST,
    MANIFEST_DIGEST,
    PARITY_REPORT,
    Manifest,
    file_entries,
)
from mobile_o_export.bundle.verdicts import judged_digest

Edit = Callable[[Path, np.random.Generator], None]


class NothingToChange(Exception):  # noqa: N818 - it is no error
    """A file that holds nothing of what a corruption changes."""


@dataclass(frozen=True)
class Corruption:
    """One way to be wrong.

    Attributes:
        name: what is done to which file.
        edit: does it to a bundle's folder.
        target, component: where it shows, if it is a component's.
        pipeline: only whole chains can tell.
        harmless: why nothing has to notice it, where that is so.
    """

    name: str
    edit: Edit
    target: str = ""
    component: str = ""
    pipeline: bool = False
    harmless: str = ""


def copied(bundle: Path, folder: Path) -> Path:
    """A copy of ``bundle`` that shares its files until they are written anew."""
    return Path(shutil.copytree(bundle, folder, copy_function=os.link))


def write(path: Path, content: bytes) -> None:
    """Writes a file anew; what shared its content keeps it."""
    path.unlink(missing_ok=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def seal(bundle: Path, *, verdict: bool) -> None:
    """Recomputes sizes and hashes; with ``verdict`` also what the verdict says that it was given on."""
    golden = bundle / "golden" / "golden.json"
    if golden.is_file():
        index = json.loads(golden.read_text())
        digest = sha256((bundle / "golden" / "tensors.safetensors").read_bytes()).hexdigest()
        if index.get("sha256") != digest:
            write(golden, json.dumps({**index, "sha256": digest}, indent=1).encode())
    content = json.loads((bundle / MANIFEST).read_text())
    content["files"] = listed(bundle)
    for target in content["targets"].values():
        for part in target["components"].values():
            lying = part.get("lying")
            part.pop("lying", None)
            if not lying:
                sizes = [
                    content["files"][name]["size_bytes"] for name in part["files"] if name in content["files"]
                ]
                part["size_bytes"] = sum(sizes)
    if verdict:
        report = json.loads((bundle / PARITY_REPORT).read_text())
        report["judged"] = judged_digest(Manifest.model_validate(content))
        write(bundle / PARITY_REPORT, json.dumps(report, indent=1).encode())
        content["files"] = listed(bundle)
    text = (json.dumps(content, indent=1) + "\n").encode()
    write(bundle / MANIFEST, text)
    write(bundle / MANIFEST_DIGEST, f"{sha256(text).hexdigest()}  {MANIFEST}\n".encode())


def listed(bundle: Path) -> dict[str, dict[str, Any]]:
    return {name: entry.model_dump(mode="json") for name, entry in file_entries(bundle).items()}


# Edits of files by their format


def of_json(name: str, change: Callable[[Any], object]) -> Edit:
    def edit(bundle: Path, _: np.random.Generator) -> None:
        value = json.loads((bundle / name).read_text())
        change(value)
        write(bundle / name, json.dumps(value, indent=1, ensure_ascii=False).encode())

    return edit


def of_manifest(change: Callable[[Any], object]) -> Edit:
    return of_json(MANIFEST, change)


def of_text(name: str, change: Callable[[str], str]) -> Edit:
    def edit(bundle: Path, _: np.random.Generator) -> None:
        before = (bundle / name).read_text()
        after = change(before)
        assert after != before, name
        write(bundle / name, after.encode())

    return edit


def of_picture(name: str) -> Edit:
    """A black square in the middle, saved in the same format."""

    def edit(bundle: Path, _: np.random.Generator) -> None:
        from PIL import Image

        with Image.open(bundle / name) as opened:
            kind, picture = opened.format, opened.copy()
        width, height = picture.size
        box = (width // 3, height // 3, 2 * width // 3 + 1, 2 * height // 3 + 1)
        picture.paste(0 if picture.mode != "RGB" else (0, 0, 0), box)
        stream = io.BytesIO()
        picture.save(stream, kind)
        write(bundle / name, stream.getvalue())

    return edit


def removed(name: str) -> Edit:
    def edit(bundle: Path, _: np.random.Generator) -> None:
        (bundle / name).unlink()

    return edit


def added(name: str, content: bytes) -> Edit:
    return lambda bundle, _: write(bundle / name, content)


def of_safetensors(name: str, choose: Callable[[dict[str, Any]], str], change: Callable[[Any], Any]) -> Edit:
    def edit(bundle: Path, _: np.random.Generator) -> None:
        from safetensors import safe_open
        from safetensors.numpy import load_file, save

        with safe_open(bundle / name, framework="numpy") as file:
            metadata = file.metadata()
        tensors = load_file(bundle / name)
        key = choose(tensors)
        tensors[key] = np.ascontiguousarray(change(tensors[key]))
        write(bundle / name, save(tensors, metadata=metadata))

    return edit


Numbers = Callable[[np.ndarray[Any, Any]], np.ndarray[Any, Any]]


def one_number(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """A number in the middle by 5 %, or by one."""
    found = values.copy().reshape(-1)
    place = len(found) // 2
    if np.issubdtype(found.dtype, np.floating):
        found[place] = found[place] * 1.05 + np.asarray(1e-3, found.dtype)
    else:
        found[place] ^= 1
    return found.reshape(values.shape)


def zeroed(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return np.zeros_like(values)


def first_channel_louder(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    found = values.copy()
    found[0] = found[0] * 1.05 if np.issubdtype(found.dtype, np.floating) else np.roll(found[0], 1)
    return found


def rolled(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """As an offset of one group would read it."""
    return np.roll(values, 1, axis=0)


def mirrored(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The last two axes swapped, where a kernel is square."""
    return (
        values.swapaxes(-1, -2) if values.ndim > 1 and values.shape[-1] == values.shape[-2] else values[::-1]
    )


def first_two_swapped(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    found = values.copy()
    found[[0, 1]] = found[[1, 0]]
    return found


NUMBERS: dict[str, Numbers] = {
    "one number": one_number,
    "all zero": zeroed,
    "a channel x 1.05": first_channel_louder,
    "shifted by a group": rolled,
    "transposed": mirrored,
    "two rows swapped": first_two_swapped,
}


def large_onnx(tensor: Any) -> bool:
    """An initializer of several rows of floating-point numbers or bytes."""
    rows = len(tensor.dims) > 1 and tensor.dims[0] > 1
    return bool(rows and np.prod(tensor.dims) >= 64 and tensor.data_type in (1, 3, 10))


def of_onnx(name: str, wanted: Callable[[Any], bool], change: Numbers) -> Edit:
    """``change`` of a random initializer among those that are ``wanted``, external or not."""

    def edit(bundle: Path, rng: np.random.Generator) -> None:
        import onnx
        from onnx import numpy_helper

        path = bundle / name
        model = load_whole(path)
        found = [tensor for tensor in model.graph.initializer if wanted(tensor)]
        if not found:
            raise NothingToChange(name)
        tensor = found[int(rng.integers(len(found)))]
        values = numpy_helper.to_array(tensor)
        after = np.ascontiguousarray(change(values)).astype(values.dtype)
        if np.array_equal(after, values):
            after = one_number(values)
        tensor.CopyFrom(numpy_helper.from_array(after, tensor.name))
        data = f"{path.name}.data"
        for place in (path, path.with_name(data)):
            place.unlink(missing_ok=True)
        # As export does: shapes and axes stay in the graph, where shape inference looks for them.
        onnx.save(model, path, save_as_external_data=True, location=data, size_threshold=1024)

    return edit


def of_onnx_graph(name: str, change: Callable[[Any], bool]) -> Edit:
    """A change of the graph alone; ``change`` says whether it found something to change."""

    def edit(bundle: Path, _: np.random.Generator) -> None:
        import onnx

        model = onnx.load(bundle / name, load_external_data=False)
        if not change(model):
            raise NothingToChange(name)
        write(bundle / name, model.SerializeToString())

    return edit


def of_weight_bin(
    name: str, change: Callable[[bytearray, int, int, int], None], codes: tuple[int, ...]
) -> Edit:
    """``change(content, type code, start, size)`` of a random blob of one of the type ``codes``."""

    def edit(bundle: Path, rng: np.random.Generator) -> None:
        import struct

        content = bytearray((bundle / name).read_bytes())
        blobs, offset = [], 64
        for _ in range(struct.unpack_from("<I", content)[0]):
            code, size, start = struct.unpack_from("<4xIQQ", content, offset)
            if code in codes and size >= 32:
                blobs.append((code, start, size))
            offset = (start + size + 63) // 64 * 64
        if not blobs:
            raise NothingToChange(name)
        code, start, size = blobs[int(rng.integers(len(blobs)))]
        before = bytes(content[start : start + size])
        change(content, code, start, size)
        assert bytes(content[start : start + size]) != before, name
        write(bundle / name, bytes(content))

    return edit


def blob_zeroed(content: bytearray, _code: int, start: int, size: int) -> None:
    content[start : start + size] = bytes(size)


def blob_rotated(content: bytearray, _code: int, start: int, size: int) -> None:
    part = bytes(content[start : start + size])
    content[start : start + size] = part[16:] + part[:16]


def blob_bit(content: bytearray, _code: int, start: int, size: int) -> None:
    content[start + size // 4 * 2] ^= 4


def of_mlmodel(name: str, change: Callable[[Any], bool]) -> Edit:
    def edit(bundle: Path, _: np.random.Generator) -> None:
        from coremltools.proto import Model_pb2

        model = Model_pb2.Model()
        model.ParseFromString((bundle / name).read_bytes())
        if not change(model):
            raise NothingToChange(name)
        write(bundle / name, model.SerializeToString(deterministic=True))

    return edit


def mil_operations(model: Any) -> Iterator[Any]:
    """Every operation of a specification."""
    for name in sorted(model.mlProgram.functions):
        for block in model.mlProgram.functions[name].block_specializations.values():
            yield from block.operations


def mil_constants(model: Any) -> Iterator[Any]:
    """Every immediate value of a specification: of constants, and of operands."""
    for operation in mil_operations(model):
        if operation.type == "const":
            yield operation.attributes["val"].immediateValue.tensor
        for argument in operation.inputs.values():
            for binding in argument.arguments:
                if binding.WhichOneof("binding") == "value":
                    yield binding.value.immediateValue.tensor


def operation_changed(model: Any) -> bool:
    """An operation that takes the operands of another."""
    others = {"add": "sub", "mul": "real_div", "sigmoid": "tanh", "gelu": "relu", "reduce_mean": "reduce_sum"}
    for operation in mil_operations(model):
        if operation.type in others:
            operation.type = others[operation.type]
            return True
    return False


def epsilon_louder(model: Any) -> bool:
    """The first small positive scalar a hundred times as large: a norm's epsilon."""
    for tensor in mil_constants(model):
        kind = tensor.WhichOneof("value")
        if kind == "floats" and len(tensor.floats.values) == 1 and 0 < tensor.floats.values[0] < 1e-3:
            tensor.floats.values[0] *= 100
            return True
        if kind == "bytes" and len(tensor.bytes.values) == 2:
            value = np.frombuffer(tensor.bytes.values, np.float16)[0]
            if 0 < value < 1e-3:
                tensor.bytes.values = np.float16(float(value) * 100).tobytes()
                return True
    return operation_changed(model)


def scalar_changed(model: Any) -> bool:
    """The first fp16 scalar that is no small number, by 10 %."""
    for tensor in mil_constants(model):
        if tensor.WhichOneof("value") == "bytes" and len(tensor.bytes.values) == 2:
            value = np.frombuffer(tensor.bytes.values, np.float16)[0]
            if np.isfinite(value) and abs(value) > 1e-3:
                tensor.bytes.values = np.float16(float(value) * 1.1).tobytes()
                return True
    return operation_changed(model)


def of_tflite(name: str, change: Callable[[Any, np.random.Generator], bool]) -> Edit:
    def edit(bundle: Path, rng: np.random.Generator) -> None:
        from mobile_o_export.backends.litert import flatbuffer

        path = bundle / name
        scratch = path.with_suffix(".scratch")
        shutil.copyfile(path, scratch)
        model = flatbuffer.read_model(scratch)
        if not change(model, rng):
            raise NothingToChange(name)
        stream = io.BytesIO()
        flatbuffer.write_model(model, stream)
        scratch.unlink()
        write(path, stream.getvalue())

    return edit


def buffer_changed(change: Numbers, kinds: tuple[str, ...]) -> Callable[[Any, np.random.Generator], bool]:
    """``change`` of a random constant of one of the types ``kinds``."""

    def edit(model: Any, rng: np.random.Generator) -> bool:
        from ai_edge_litert.schema_py_generated import TensorType

        dtypes = {TensorType.FLOAT32: np.float32, TensorType.FLOAT16: np.float16, TensorType.INT8: np.int8}
        wanted = {getattr(TensorType, kind) for kind in kinds}
        found = [
            tensor
            for graph in model.subgraphs
            for tensor in graph.tensors
            if tensor.type in wanted
            and (data := model.buffers[tensor.buffer].data) is not None
            and len(data) >= 64
            and tensor.shape[0] > 1
        ]
        if not found:
            return False
        tensor = found[int(rng.integers(len(found)))]
        buffer = model.buffers[tensor.buffer]
        values = np.frombuffer(bytes(buffer.data), dtypes[tensor.type]).reshape(tensor.shape)
        after = np.ascontiguousarray(change(values))
        if np.array_equal(after, values):
            after = one_number(values)
        buffer.data = after.reshape(-1).view(np.uint8)
        return True

    return edit


def scale_louder(model: Any, rng: np.random.Generator) -> bool:
    """A scale of a weight's channel by 5 %."""
    found = [
        tensor.quantization
        for graph in model.subgraphs
        for tensor in graph.tensors
        if tensor.quantization is not None
        and tensor.quantization.scale is not None
        and len(tensor.quantization.scale) > 1
    ]
    if not found:
        return False
    quantization = found[int(rng.integers(len(found)))]
    scale = np.array(quantization.scale, np.float32)
    scale[len(scale) // 2] *= 1.05
    quantization.scale = scale
    return True


def signature_renamed(model: Any, _: np.random.Generator) -> bool:
    model.signatureDefs[0].signatureKey = b"other"
    return True


def activation_dropped(model: Any, _: np.random.Generator) -> bool:
    """The first two operands of an operator that subtracts or divides, swapped."""
    from mobile_o_export.backends.litert.flatbuffer import operator_name

    for graph in model.subgraphs:
        for operator in graph.operators:
            if operator_name(model, operator.opcodeIndex) in ("SUB", "DIV", "MUL"):
                operator.inputs = np.array(operator.inputs)[::-1].copy()
                return True
    return False
