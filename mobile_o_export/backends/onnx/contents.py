"""What saved ONNX graphs hold: their constants as operators restore them, their nodes, their interface."""

from __future__ import annotations

from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mobile_o_export.backends.contents import Contents, Interface, Port
from mobile_o_export.backends.onnx.external import Stored
from mobile_o_export.backends.onnx.readback import compressed, restored
from mobile_o_export.digests import array_digest
from mobile_o_export.errors import GateError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mobile_o_export.parity.metrics import Array


def graph_contents(files: Mapping[str, Path]) -> Contents:
    """The contents of the ``files`` of a component's graphs."""
    constants: dict[str, str] = {}
    programs: dict[str, str] = {}
    interfaces: dict[str, Interface] = {}
    for graph, path in files.items():
        stored = Stored(path)
        model = stored.model
        constants |= {place: array_digest(values) for place, values in _constants(graph, stored)}
        interfaces[graph] = Interface(_ports(model.graph.input), _ports(model.graph.output))
        programs[path.name] = _code(model)
    return Contents(constants, programs, interfaces)


def graph_constants(files: Mapping[str, Path]) -> Iterator[tuple[str, Array]]:
    """Every constant of the ``files``, by graph and name."""
    for graph, path in files.items():
        yield from _constants(graph, Stored(path))


def _constants(graph: str, stored: Stored) -> Iterator[tuple[str, Array]]:
    """Each initializer: integers of weights as they are restored, for each use; all others as stored."""
    from onnx import numpy_helper

    uses: dict[str, int] = {}
    model = stored.model
    for name, values in restored(stored, compressed(model)):
        uses[name] = uses.get(name, 0) + 1
        yield f"{graph}/{name}" if uses[name] == 1 else f"{graph}/{name}#{uses[name]}", values
    for tensor in model.graph.initializer:
        if tensor.name not in uses:
            yield f"{graph}/{tensor.name}", np.asarray(numpy_helper.to_array(stored.whole(tensor)))
    for tensor in model.graph.sparse_initializer:
        raise GateError(f"{graph}: the initializer {tensor.values.name} is sparse, and none of ours is.")


def _ports(values: Any) -> tuple[Port, ...]:
    from onnx import helper

    return tuple(
        Port(
            value.name,
            helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type).name,
            tuple(
                dim.dim_value if dim.WhichOneof("value") == "dim_value" else None
                for dim in value.type.tensor_type.shape.dim
            ),
        )
        for value in values
    )


def _code(model: Any) -> str:
    """A digest of everything but the initializers' numbers, which it takes out of ``model``."""
    for tensor in model.graph.initializer:
        for field in ("raw_data", "float_data", "int32_data", "int64_data", "double_data", "uint64_data"):
            tensor.ClearField(field)
        tensor.ClearField("external_data")
        tensor.ClearField("data_location")
    return sha256(model.SerializeToString(deterministic=True)).hexdigest()
