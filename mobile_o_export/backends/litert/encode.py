"""Compressed weights in .tflite files: integers for a kernel that takes them, or behind ``DEQUANTIZE``.

What LiteRT 2.3 takes was found by running it. ``DEQUANTIZE`` restores int8 and int4 with a scale for each
index of one axis; with scales of blocks it is silently wrong, or crashes. int4 in blocks is taken by
``FULLY_CONNECTED`` and ``EMBEDDING_LOOKUP`` alone, int8 in blocks by nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from mobile_o_export.backends.litert import flatbuffer, static
from mobile_o_export.backends.litert.contents import place_of
from mobile_o_export.backends.litert.operators import NEEDS
from mobile_o_export.backends.litert.restore import restored
from mobile_o_export.compression.half import within_half
from mobile_o_export.compression.placeholders import Kept
from mobile_o_export.digests import array_digest
from mobile_o_export.errors import LoweringError
from mobile_o_export.precision import Activations, Integer

if TYPE_CHECKING:
    from pathlib import Path

    from mobile_o_export.backends.litert.convert import Converted
    from mobile_o_export.compression.placed import Placed
    from mobile_o_export.compression.placeholders import Placeholders
    from mobile_o_export.parity.metrics import Array

WEIGHTED = ("FULLY_CONNECTED", "CONV_2D", "DEPTHWISE_CONV_2D", "TRANSPOSE_CONV", "EMBEDDING_LOOKUP")
"""Operators whose second operand is a weight; those are stored as fp16, as in LiteRT's own fp16 files."""

CONVOLUTIONS = ("CONV_2D", "DEPTHWISE_CONV_2D")
"""Operators whose bias, the third operand, is fp16 where their filter is, as in LiteRT's own fp16 files.

XNNPACK in LiteRT 1.1 to 1.3 takes it for that: one of fp32 gives garbage there, or the file does not load."""

PARAMETER_AXES = {"CONV_2D": (0, 3, 1, 2), "DEPTHWISE_CONV_2D": (3, 0, 1, 2)}
"""Where such a weight, [O, H, W, I] and [1, H, W, O], has the axes of PyTorch's parameter."""

DYNAMIC = ("FULLY_CONNECTED", "CONV_2D")
"""Kernels that take integer weights, and scale activations to int8. ``DEPTHWISE_CONV_2D`` takes int8 outside
XNNPACK only, four times as slow as fp32 within."""

DYNAMIC_BLOCKS = ("FULLY_CONNECTED",)
"""… with scales of blocks."""

FENCE = np.float32(-3.0e38)
"""Less than any number: a MAXIMUM with it around a layer only keeps the converter from changing weights."""


class Use(NamedTuple):
    """An operator that reads a tensor."""

    operator: Any
    kind: str
    slot: int


@dataclass(frozen=True)
class Found:
    """A compressed weight as a constant of a graph.

    Attributes:
        placed: as the constant would be with its axes in the order of the parameter's.
        axes: of the constant, in that order.
    """

    placed: Placed
    axes: tuple[int, ...]

    @property
    def block(self) -> int | None:
        """How many weights share a scale, where not all of an output channel do."""
        weights = self.placed.weight.form.precision.weights
        assert isinstance(weights, Integer)
        return weights.block

    def numbers(self) -> Array:
        """The integers, int8, of the constant's shape."""
        return self.placed.numbers().transpose(np.argsort(self.axes))

    def scales(self) -> Array:
        """Their scales, float16, with an axis for each of the constant's."""
        return self.placed.tables().transpose(np.argsort(self.axes))

    def is_taken_by(self, use: Use) -> bool:
        """Whether the operator takes the integers themselves."""
        if use.slot != 1 or self.scales().shape[self.axes[0]] != self.placed.weight.form.shape[0]:
            return False
        # A lookup restores the rows that it finds: no activation is scaled.
        if use.kind == "EMBEDDING_LOOKUP":
            return True
        if self.placed.weight.form.precision.activations is Activations.DYNAMIC:
            return use.kind in (DYNAMIC if self.block is None else DYNAMIC_BLOCKS)
        return self.is_static_for(use)

    def is_static_for(self, use: Use) -> bool:
        """Whether the operator's activations become integers at calibrated scales."""
        return self.placed.weight.input_scale is not None and use.kind in static.KERNELS


@dataclass(frozen=True)
class Turned:
    """A weight that is not compressed as a constant of a graph; attributes as those of ``Found``."""

    kept: Kept
    axes: tuple[int, ...]

    def numbers(self, dtype: type[np.floating]) -> Array:
        """The constant."""
        return self.kept.numbers(dtype).transpose(np.argsort(self.axes))


class Encoder:
    """Encodes the weights of one component in its .tflite.

    Args:
        weights: what goes into the file.
        half: store those that are not compressed as fp16.
    """

    def __init__(self, weights: Placeholders, *, half: bool) -> None:
        self.weights = weights
        self._half = half
        self._found: dict[tuple[int, int], Found] = {}

    def encode(self, converted: Converted, path: Path) -> None:
        """Writes ``path`` with every weight in its place; what signatures share is stored once.

        Raises:
            ExportError: a weight that is to be fp16 is beyond its range.
            LoweringError: nothing restores a weight's scales of blocks where a graph has it.
        """
        model = converted.model
        work = Pass(model, self.weights, half=self._half)
        encoded = []
        for graph, names in zip(model.subgraphs, converted.weights, strict=True):
            work.remove_fences(graph)
            encoded.append(work.encode(graph, names))
        flatbuffer.drop_unused(model)
        for index, graph in enumerate(model.subgraphs):
            for number, tensor in enumerate(graph.tensors):
                if id(tensor) in encoded[index]:
                    self._found[index, number] = encoded[index][id(tensor)]
        with path.open("wb") as file:
            flatbuffer.write_model(model, file)

    def stored(self, path: Path) -> Iterator[tuple[str, str, Array]]:
        """What LiteRT restores of the weights in a saved ``path``: name, place, numbers in parameters' axes.

        What several signatures share, integers and scales alike, comes once.
        """
        model = flatbuffer.read_model(path)
        seen = set()
        for (index, number), found in self._found.items():
            tensors, name = model.subgraphs[index].tensors, found.placed.weight.name
            tensor, quantization = tensors[number], tensors[number].quantization
            scales = None if quantization.details is None else tensors[quantization.details.scales]
            same = [name, *_identity(tensor), quantization.quantizedDimension]
            same += [np.asarray(quantization.scale).tobytes()] if scales is None else _identity(scales)
            if tuple(same) not in seen:
                seen.add(tuple(same))
                place = place_of(model, index, number)
                # In no variable, which would keep it while the next is restored.
                yield (
                    name,
                    place,
                    found.placed.returned(restored(tensor, scales, model.buffers).transpose(found.axes)),
                )


class Pass:
    """One rewriting of a model; it knows what became of each buffer, for other graphs that use it."""

    def __init__(self, model: Any, weights: Placeholders, *, half: bool) -> None:
        from ai_edge_litert import schema_py_generated

        self.schema: Any = schema_py_generated
        self.model = model
        self.weights = weights
        self.half = half
        self.buffers: dict[tuple[Any, ...], int] = {}
        self._by_content: dict[str, int] = {}

    def remove_fences(self, graph: Any) -> None:
        """Removes what kept the converter from changing weights."""
        fences = []
        for operator in graph.operators:
            if flatbuffer.operator_name(self.model, operator.opcodeIndex) == "MAXIMUM":
                bound = graph.tensors[operator.inputs[1]]
                if self._is_constant(bound) and (self.content(bound) == FENCE).all():
                    fences.append(operator)
        flatbuffer.bypass(self.model, graph, fences)

    def encode(self, graph: Any, names: Mapping[int, str]) -> dict[int, Found]:
        """Encodes the weights of ``graph``; those that are compressed, by their tensors' ids.

        Args:
            graph: a subgraph.
            names: the parameters that belong in its tensors, by these tensors' numbers.
        """
        before: dict[int, list[Any]] = {}
        after: dict[int, list[Any]] = {}
        encoded: dict[int, Found] = {}
        constants = self._constants(graph, names)
        halved: set[int] = set()
        for number, uses in constants.items():
            tensor = graph.tensors[number]
            weight = self._weight(tensor, names[number], uses[0]) if number in names else None
            found = weight if isinstance(weight, Found) else None
            if isinstance(weight, Found):
                encoded[id(tensor)] = weight
                self._store_integers(graph, tensor, weight)
            elif self.half and any(use.kind in WEIGHTED and use.slot == 1 for use in uses):
                if weight is None:
                    self._store_half(tensor)
                else:
                    self._store(tensor, weight, np.float16)
                halved |= {id(use.operator) for use in uses if use.slot == 1}
            elif weight is not None:
                self._store(tensor, weight, np.float32)
                continue
            else:
                continue
            rest = []
            for use in uses:
                if found is None or not found.is_taken_by(use):
                    rest.append(use)
                    continue
                there, back = self._take(graph, tensor, use, found)
                before.setdefault(id(use.operator), []).extend(there)
                after.setdefault(id(use.operator), []).extend(back)
            if rest:
                before.setdefault(id(rest[0].operator), []).append(
                    self._restoring(graph, number, rest, found)
                )
        for number, uses in constants.items():
            biased = [
                use
                for use in uses
                if use.slot == 2 and use.kind in CONVOLUTIONS and id(use.operator) in halved
            ]
            if biased:
                half = self._half_copy(graph, graph.tensors[number])
                before.setdefault(id(biased[0].operator), []).append(
                    self._restoring(graph, half, biased, None)
                )
        graph.operators = [
            operator
            for user in graph.operators
            for operator in (*before.get(id(user), ()), user, *after.get(id(user), ()))
        ]
        return encoded

    def _constants(self, graph: Any, names: Mapping[int, str]) -> dict[int, list[Use]]:
        """The float32 constants of ``graph`` by the tensors' numbers, with what uses them; of weights all."""
        uses: dict[int, list[Use]] = {}
        for operator in graph.operators:
            kind = flatbuffer.operator_name(self.model, operator.opcodeIndex)
            for slot, number in enumerate(() if operator.inputs is None else operator.inputs):
                if number >= 0 and (number in names or self._is_constant(graph.tensors[number])):
                    uses.setdefault(int(number), []).append(Use(operator, kind, slot))
        return uses

    def _is_constant(self, tensor: Any) -> bool:
        """Whether it is a float32 constant."""
        float32 = tensor.type == self.schema.TensorType.FLOAT32
        return float32 and self.model.buffers[tensor.buffer].data is not None

    def content(self, tensor: Any) -> Array:
        """The numbers of a float32 constant."""
        content: Array = np.frombuffer(self.model.buffers[tensor.buffer].data, np.float32)
        return content.reshape([] if tensor.shape is None else tensor.shape)

    def _weight(self, tensor: Any, name: str, use: Use) -> Found | Turned:
        """The weight ``name`` as the constant that an operator takes: this says in what order its axes are.

        Raises:
            LoweringError: it does not.
        """
        shape = tuple(map(int, tensor.shape))
        axes: tuple[int, ...] = tuple(range(len(shape)))
        if use.slot == 1:
            axes = PARAMETER_AXES.get(use.kind, axes)
        turned = tuple(shape[axis] for axis in axes)
        dense = [size for size in self.weights.shape_of(name) if size > 1]
        if [size for size in turned if size > 1] != dense or (use.slot != 1 or use.kind not in WEIGHTED):
            raise LoweringError(
                f"{name} of {self.weights.shape_of(name)} is a constant of {shape} of {use.kind}: in what "
                "order its axes are is not known. Report this."
            )
        placed = self.weights.at(name, tuple(range(len(dense))), turned)
        return Turned(placed, axes) if isinstance(placed, Kept) else Found(placed, axes)

    def _half_copy(self, graph: Any, tensor: Any) -> int:
        """The number of a new fp16 tensor of a float32 constant's numbers."""
        number = self.add_tensor(graph, tensor.name + b".half", tensor.shape, "FLOAT32", tensor.buffer)
        self._store_half(graph.tensors[number])
        return number

    def _store_half(self, tensor: Any) -> None:
        """Makes a float32 constant an fp16 one."""
        key = (int(tensor.buffer), "FLOAT16")
        if key not in self.buffers:
            content = within_half(self.content(tensor), "stored as fp16").astype(np.float16)
            self.buffers[key] = flatbuffer.add_buffer(self.model, content)
        tensor.buffer, tensor.type = self.buffers[key], self.schema.TensorType.FLOAT16

    def _store(self, tensor: Any, weight: Turned, dtype: type[np.floating]) -> None:
        """Gives a tensor the numbers of a weight that is not compressed."""
        tensor.buffer = self._held(
            (weight.kept.name, weight.axes, dtype.__name__), lambda: weight.numbers(dtype)
        )
        tensor.type = getattr(self.schema.TensorType, dtype.__name__.upper())

    def _held(self, key: tuple[Any, ...], make: Callable[[], Array]) -> int:
        """The index of a buffer of what ``make`` gives, one for equal arrays; by ``key`` once made."""
        if key not in self.buffers:
            content = make()
            digest = array_digest(content)
            if digest not in self._by_content:
                held = flatbuffer.Held(content.nbytes, make)
                self._by_content[digest] = flatbuffer.add_buffer(self.model, held)
            self.buffers[key] = self._by_content[digest]
        return self.buffers[key]

    def _store_integers(self, graph: Any, tensor: Any, found: Found) -> None:
        """Makes a float32 constant one of integers with scales."""
        weight, schema = found.placed.weight, self.schema
        four = weight.form.precision.weight_bits == 4
        tensor.buffer = self._held(
            (weight.name, found.axes), lambda: _packed(found.numbers()) if four else found.numbers()
        )
        tensor.type = schema.TensorType.INT4 if four else schema.TensorType.INT8
        scales = found.scales()
        if found.block is None:
            tensor.quantization = self.symmetric(scales.reshape(-1), int(np.argmax(scales.shape)))
            return
        if (weight.name, "scales") not in self.buffers:
            self.buffers[weight.name, "scales"] = flatbuffer.add_buffer(self.model, scales)
        details = schema.BlockwiseQuantizationT()
        details.scales = self.add_tensor(
            graph, tensor.name + b".scales", scales.shape, "FLOAT16", self.buffers[weight.name, "scales"]
        )
        details.zeroPoints, details.blockSize = -1, found.block
        tensor.quantization = quantization = schema.QuantizationParametersT()
        quantization.detailsType = schema.QuantizationDetails.BlockwiseQuantization
        quantization.details = details

    def symmetric(self, scales: Array | list[float], axis: int = 0) -> Any:
        """Quantisation parameters with a scale for each index of ``axis``, or one for all, and zero at 0."""
        quantization = self.schema.QuantizationParametersT()
        quantization.scale = np.asarray(scales, np.float32)
        quantization.zeroPoint = np.zeros(len(scales), np.int64)
        quantization.quantizedDimension = axis
        return quantization

    def _take(self, graph: Any, tensor: Any, use: Use, found: Found) -> tuple[list[Any], list[Any]]:
        """Lets an operator take integers; new operators to come before and after it."""
        self.require(use.kind, self._type(tensor))
        if found.is_static_for(use):
            there, back = static.surround(self, graph, found, use)
            return [there], [back]
        if use.kind == "FULLY_CONNECTED":
            # XNNPACK does so in any case, and LiteRT's own kernel loses less by it.
            use.operator.builtinOptions.asymmetricQuantizeInputs = True
        return [], []

    def _restoring(self, graph: Any, number: int, uses: list[Use], found: Found | None) -> Any:
        """A new DEQUANTIZE of the tensor ``number`` for ``uses``."""
        if found is not None and found.block is not None:
            raise LoweringError(
                f"{found.placed.weight.name} is an operand of {uses[0].kind}, and nothing in LiteRT restores "
                f"its scales of blocks of {found.block} there. Give it another precision by a rule."
            )
        tensor = graph.tensors[number]
        restored = self.add_tensor(graph, tensor.name + b".restored", tensor.shape, "FLOAT32")
        for use in uses:
            use.operator.inputs[use.slot] = restored
        return self.operator("DEQUANTIZE", self._type(tensor), [number], [restored])

    def operator(self, kind: str, type_name: str, inputs: list[int], outputs: list[int]) -> Any:
        """A new operator, in a version that takes or gives the type."""
        operator = self.schema.OperatorT()
        operator.opcodeIndex = self.require(kind, type_name)
        operator.inputs, operator.outputs = inputs, outputs
        return operator

    def add_tensor(
        self, graph: Any, name: bytes, shape: Any, kind: str, buffer: int = 0, quantization: Any = None
    ) -> int:
        """The number of a new tensor of ``graph``; without a ``buffer`` it is computed."""
        tensor = self.schema.TensorT()
        tensor.name, tensor.shape, tensor.buffer = name, list(shape), buffer
        tensor.type, tensor.quantization = getattr(self.schema.TensorType, kind), quantization
        graph.tensors.append(tensor)
        return len(graph.tensors) - 1

    def require(self, kind: str, type_name: str) -> int:
        """The index of the operator code ``kind`` in a version that takes or gives the type."""
        return flatbuffer.require_operator(self.model, kind, *NEEDS[kind, type_name])

    def _type(self, tensor: Any) -> str:
        """What the schema calls the type of a constant."""
        names = ("FLOAT16", "INT8", "INT4")
        return next(name for name in names if getattr(self.schema.TensorType, name) == tensor.type)


def _packed(integers: Array) -> Array:
    """int4, two to a byte, uint8: the first in the lower bits."""
    flat = integers.reshape(-1).view(np.uint8) & 15
    flat = np.append(flat, flat[:0] if flat.size % 2 == 0 else np.zeros(1, np.uint8))
    return flat[0::2] | flat[1::2] << 4


def _identity(tensor: Any) -> list[Any]:
    """What tells tensors with other content apart."""
    return [int(tensor.buffer), tensor.type, tuple(tensor.shape)]
