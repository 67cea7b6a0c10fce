"""PyTorch graph → ML Program, several of them → one multifunction package, and what Xcode shows of it."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterable, Mapping
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from mobile_o_export.backends.coreml import rewrites
from mobile_o_export.backends.coreml.spared import spared
from mobile_o_export.backends.tracing import dynamic_shapes, quickly, used_parameters
from mobile_o_export.components import building

if TYPE_CHECKING:
    from torch import nn

    from mobile_o_export.backends.coreml.encode import Encoder
    from mobile_o_export.backends.coreml.weightfile import WeightFile
    from mobile_o_export.components.base import GraphSpec

SKIPPED_PASSES = frozenset(
    {
        # It only reorders, and crashes where several states are written at a function's end.
        "common::canonicalize_inplace_pattern",
        # Token ids above 32767 do not fit the int16 that it narrows gather's indices to.
        "common::add_int16_cast",
    }
)

AUTHOR, MODEL = "com.apple.CoreML", "model.mlmodel"
"""What coremltools names in a package."""


def convert(
    spec: GraphSpec, graph: nn.Module, work: Path, *, half: bool, encoder: Encoder, weights: WeightFile
) -> Any:
    """The ``Model`` message of one graph, of one function; mutated buffers become states, letters ranges.

    Args:
        spec: what the graph takes and gives.
        graph: its weights may be placeholders.
        work: a folder for coremltools' own files.
        half: whether the program computes in fp16.
        encoder: knows the weights.
        weights: where large constants go.

    Raises:
        ExportError: a weight of the graph is not in the program.
    """
    import coremltools as ct

    extents = {letter: extent for profile in spec.profiles for letter, extent in profile.extents.items()}
    dims = {name: torch.export.Dim(name, min=e.minimum, max=e.maximum) for name, e in extents.items()}
    ranges = {name: ct.RangeDim(e.minimum, e.maximum, default=e.typical) for name, e in extents.items()}
    typical = {name: extent.typical for name, extent in extents.items()}
    # Traced in fp32, also where the file declares fp16: coremltools does the casting.
    given = [building.example(tensor.bind(typical)) for tensor in spec.inputs]
    examples = tuple(value.float() if value.is_floating_point() else value for value in given)
    with torch.no_grad(), quickly():
        # Bare, not wrapped as other converters get it: a buffer's path is the name that its state gets.
        program = torch.export.export(
            graph.eval(),
            examples,
            dynamic_shapes=dynamic_shapes(spec, dims) if extents else None,
        ).run_decompositions(dict(rewrites.DECOMPOSITIONS))
    rewrites.refuse_misread(program.graph_module.graph, spec.name, half=half)
    pipeline = ct.PassPipeline.DEFAULT
    pipeline.remove_passes(SKIPPED_PASSES)
    encoder.encode_last(pipeline)
    precision = ct.transform.FP16ComputePrecision(op_selector=Fp32Islands()) if half else ct.precision.FLOAT32
    inputs = [
        ct.TensorType(
            name=tensor.name,
            shape=tuple(ranges[dim] if isinstance(dim, str) else dim for dim in tensor.shape),
            dtype=np.dtype(str(tensor.dtype)).type,
        )
        for tensor in spec.inputs
    ]
    outputs = [
        ct.TensorType(name=tensor.name, dtype=np.dtype(str(tensor.dtype)).type) for tensor in spec.outputs
    ]
    package = work / f"{spec.name}.mlpackage"
    with spared(), weights.taking_constants(encoder):
        ct.convert(
            program,
            convert_to="mlprogram",
            minimum_deployment_target=ct.target.iOS18,
            compute_precision=precision,
            inputs=inputs,
            outputs=outputs,
            pass_pipeline=pipeline,
            skip_model_load=True,
            # Else it writes a copy among the temporary files, and leaves it there until the process ends.
            package_dir=str(package),
        )
    encoder.require(used_parameters(program), spec.name)
    return read_model(package)


class Fp32Islands:
    """Says which operations coremltools may cast to fp16: all but sinusoids and what they are computed from.

    A timestep near 1000 has a spacing of 0.5 in fp16, which is no angle to take a sine of. The island is
    a handful of scalars at the head of the DiT.
    """

    def __init__(self) -> None:
        self._kept: dict[int, frozenset[str]] = {}

    def __call__(self, operation: Any) -> bool:
        """Whether ``operation`` may be cast."""
        block = operation.enclosing_block
        if id(block) not in self._kept:
            self._kept[id(block)] = frozenset(
                _ancestors(op for op in block.operations if op.op_type in ("sin", "cos"))
            )
        return operation.name not in self._kept[id(block)]


def _ancestors(operations: Iterable[Any]) -> set[str]:
    """Names of ``operations`` and of all operations that their inputs come from."""
    names: set[str] = set()
    waiting = list(operations)
    while waiting:
        operation = waiting.pop()
        if operation.name in names:
            continue
        names.add(operation.name)
        for value in operation.inputs.values():
            variables = value if isinstance(value, list | tuple) else [value]
            waiting.extend(v.op for v in variables if v is not None and v.op is not None)
    return names


def read_model(package: Path) -> Any:
    """The ``Model`` message in a package of coremltools'; what ``convert`` gives back has other metadata."""
    from coremltools.proto import Model_pb2

    from mobile_o_export.backends.coreml.interpreter.package import root_model_path

    model = Model_pb2.Model()
    model.ParseFromString(root_model_path(package).read_bytes())
    return model


def merge(parts: Mapping[str, Any]) -> Any:
    """One ``Model`` message whose functions are the ``main`` of each part; the first is the default."""
    from coremltools.proto import Model_pb2

    first = next(iter(parts.values()))
    whole = Model_pb2.Model()
    whole.specificationVersion = max(part.specificationVersion for part in parts.values())
    whole.mlProgram.version = first.mlProgram.version
    for key in first.mlProgram.attributes:
        whole.mlProgram.attributes[key].CopyFrom(first.mlProgram.attributes[key])
    whole.description.metadata.CopyFrom(first.description.metadata)
    whole.description.defaultFunctionName = next(iter(parts))
    for name, part in parts.items():
        whole.mlProgram.functions[name].CopyFrom(part.mlProgram.functions["main"])
        described = part.description
        whole.description.functions.add(
            name=name, input=described.input, output=described.output, state=described.state
        )
    return whole


def write(
    model: Any, weights: WeightFile, package: Path, functions: Mapping[str, GraphSpec], component: str
) -> None:
    """Writes ``package`` of a ``Model`` message and its weights, with the contract that Xcode shows.

    Conversion dates and random identifiers would make equal packages unequal: the protobuf is written in its
    deterministic order and identifiers are derived from content.
    """
    description = model.description
    description.metadata.shortDescription = f"Mobile-O {component}, made by mobile-o-export"
    for key in list(description.metadata.userDefined):
        if "date" in key:
            del description.metadata.userDefined[key]
    for name, graph in functions.items():
        owner = next((function for function in description.functions if function.name == name), description)
        notes = {tensor.name: tensor for tensor in (*graph.inputs, *graph.outputs, *graph.states)}
        for feature in (*owner.input, *owner.output, *owner.state):
            if feature.name in notes:
                tensor = notes[feature.name]
                feature.shortDescription = f"{tensor.layout}: {tensor.description or tensor.role}"
    content = model.SerializeToString(deterministic=True)
    data = package / "Data" / AUTHOR
    data.mkdir(parents=True)
    (data / MODEL).write_bytes(content)
    parts = {MODEL: "Specification"}
    if weights.move(data / "weights"):
        parts["weights"] = "Weights"

    seed = uuid.UUID(bytes=sha256(content).digest()[:16])
    entries = {
        str(uuid.uuid5(seed, name)).upper(): {
            "author": AUTHOR,
            "description": f"CoreML Model {kind}",
            "name": name,
            "path": f"{AUTHOR}/{name}",
        }
        for name, kind in parts.items()
    }
    root = next(key for key, entry in entries.items() if entry["name"] == MODEL)
    manifest = {"fileFormatVersion": "1.0.0", "itemInfoEntries": entries, "rootModelIdentifier": root}
    (package / "Manifest.json").write_text(json.dumps(manifest, indent=4, sort_keys=True) + "\n")
