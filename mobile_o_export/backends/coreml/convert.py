"""PyTorch graph → ML Program, several of them → one multifunction package, and what Xcode shows of it."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from mobile_o_export.backends.coreml import rewrites
from mobile_o_export.backends.tracing import dynamic_shapes, unprinted
from mobile_o_export.components import building

if TYPE_CHECKING:
    from torch import nn

    from mobile_o_export.backends.coreml.encode import Encoder
    from mobile_o_export.components.base import GraphSpec

SKIPPED_PASSES = frozenset(
    {
        # It only reorders, and crashes where several states are written at a function's end.
        "common::canonicalize_inplace_pattern",
        # Token ids above 32767 do not fit the int16 that it narrows gather's indices to.
        "common::add_int16_cast",
    }
)

DEBUG_MAP = "executorch_debug_handle_mapping.json"
"""What coremltools leaves in a package for ExecuTorch's debugger, and its manifest does not list."""


def convert(spec: GraphSpec, graph: nn.Module, package: Path, *, half: bool, encoder: Encoder) -> None:
    """Writes one graph as a package of one function; mutated buffers become states, letters ranges."""
    import coremltools as ct

    extents = {letter: extent for profile in spec.profiles for letter, extent in profile.extents.items()}
    dims = {name: torch.export.Dim(name, min=e.minimum, max=e.maximum) for name, e in extents.items()}
    ranges = {name: ct.RangeDim(e.minimum, e.maximum, default=e.typical) for name, e in extents.items()}
    typical = {name: extent.typical for name, extent in extents.items()}
    # Traced in fp32, also where the file declares fp16: coremltools does the casting.
    given = [building.example(tensor.bind(typical)) for tensor in spec.inputs]
    examples = tuple(value.float() if value.is_floating_point() else value for value in given)
    with torch.no_grad(), unprinted():
        # Bare, not wrapped as other converters get it: a buffer's path is the name that its state gets.
        program = torch.export.export(
            graph.eval(),
            examples,
            dynamic_shapes=dynamic_shapes(spec, dims) if extents else None,
        ).run_decompositions(dict(rewrites.DECOMPOSITIONS))
    rewrites.refuse_misread(program.graph_module.graph, spec.name, half=half)
    pipeline = ct.PassPipeline.DEFAULT
    pipeline.remove_passes(SKIPPED_PASSES)
    if encoder.weights.compressed:
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
    with fewer_checks():
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
    (package / DEBUG_MAP).unlink(missing_ok=True)


@contextmanager
def fewer_checks() -> Iterator[None]:
    """Has coremltools check a program a few times on its way, not after each of a hundred passes.

    Its checks go over every use of every value and took a quarter of a conversion (9.0). Those that stay
    follow each removal of dead code and precede the writing. Nor is the program printed for a silent log.
    And each pass notes for every value which compressed weights it comes from: another sixth, for nothing
    while there are none, as there are not before a conversion's last pass.
    """
    from coremltools.converters.mil.mil import Block, Program

    whole, printed, noted = Program.validate, Block.indented_str, Block._propagate_nonreplaceable_vars

    def validate(self: Any, check_essential_scope: bool = False) -> None:
        if check_essential_scope:
            whole(self, check_essential_scope)

    def note(self: Any) -> None:
        if _compressed(self):
            noted(self)

    Program.validate = validate
    Block.indented_str = lambda *_, **__: ""
    Block._propagate_nonreplaceable_vars = note
    try:
        yield
    finally:
        Program.validate, Block.indented_str = whole, printed
        Block._propagate_nonreplaceable_vars = noted


def _compressed(block: Any) -> bool:
    """Whether a weight of ``block`` or of one within is compressed."""
    return any(
        operation.op_type.startswith("constexpr_") or any(_compressed(inner) for inner in operation.blocks)
        for operation in block.operations
    )


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


def merge(parts: Mapping[str, Path], package: Path) -> None:
    """One package whose functions are the ``main`` of each part; equal weights are stored once."""
    import coremltools as ct

    descriptor = ct.utils.MultiFunctionDescriptor()
    for name, part in parts.items():
        descriptor.add_function(str(part), src_function_name="main", target_function_name=name)
    descriptor.default_function_name = next(iter(parts))
    with fewer_checks():
        ct.utils.save_multifunction(descriptor, str(package))


def describe(package: Path, functions: Mapping[str, GraphSpec], component: str) -> None:
    """Writes the contract into the package, and takes out what differs from run to run.

    Descriptions appear in Xcode. Conversion dates and random identifiers would make equal packages
    unequal: the protobuf is written in its deterministic order and identifiers are derived from content.
    """
    from coremltools.proto import Model_pb2

    manifest_path = package / "Manifest.json"
    manifest = json.loads(manifest_path.read_text())
    entries = manifest["itemInfoEntries"]
    model_path = package / "Data" / entries[manifest["rootModelIdentifier"]]["path"]
    spec = Model_pb2.Model()
    spec.ParseFromString(model_path.read_bytes())
    description = spec.description
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
    content = spec.SerializeToString(deterministic=True)
    model_path.write_bytes(content)

    seed = uuid.UUID(bytes=sha256(content).digest()[:16])
    renamed = {old: str(uuid.uuid5(seed, entry["path"])).upper() for old, entry in sorted(entries.items())}
    manifest["itemInfoEntries"] = {
        renamed[old]: entry for old, entry in sorted(entries.items(), key=lambda item: renamed[item[0]])
    }
    manifest["rootModelIdentifier"] = renamed[manifest["rootModelIdentifier"]]
    manifest_path.write_text(json.dumps(manifest, indent=4, sort_keys=True) + "\n")
