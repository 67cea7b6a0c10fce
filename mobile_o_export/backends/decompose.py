"""Decompositions of a program's operations, each kind traced once.

``ExportedProgram.run_decompositions`` traces all of a program, two to five milliseconds an operation, and
converters call it: litert-torch (0.10) three times on its way, for two thirds of its time. But the layers of
a model are alike: operations that take tensors of the same dtype, shape and strides, and the same other
arguments, become the same operations. So those of each kind are decomposed once, side by side in one small
program and by the same function, and its pieces put where the operations were.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FunctionType
from typing import Any
from unittest.mock import patch

import torch
from torch._export import utils
from torch._export.verifier import Verifier
from torch._guards import detect_fake_mode
from torch._subclasses import FakeTensor
from torch.export import ExportedProgram
from torch.export.exported_program import ModuleCallEntry, ModuleCallSignature
from torch.export.graph_signature import (
    ExportGraphSignature,
    InputKind,
    InputSpec,
    OutputKind,
    OutputSpec,
    TensorArgument,
)
from torch.fx import Graph, Node
from torch.fx.node import map_arg
from torch.utils import _pytree as pytree

Table = Mapping[Any, Callable[..., Any]]
Whole = Callable[..., Any]

SOURCE = ("stack_trace", "nn_module_stack", "source_fn_stack", "from_node")
"""What a node's ``meta`` says of where it came from."""

MARK = "litert_torch.mark_tensor.default"
"""The operator at both ends of what becomes a composite operation; its fourth argument says of which."""

ASSERTION = torch.ops.aten._assert_tensor_metadata.default
"""What a decomposition leaves as it is: it returns nothing."""


@contextmanager
def each_kind_once() -> Iterator[None]:
    """Has programs decomposed by :func:`decompose`, those that it cannot do as before."""
    whole: Whole = ExportedProgram.run_decompositions

    def run(program: ExportedProgram, decomp_table: Table | None = None, **options: Any) -> Any:
        if decomp_table is None or options:
            return whole(program, decomp_table, **options)
        try:
            return decompose(program, decomp_table, whole)
        except _UnlikeError:
            return whole(program, decomp_table)

    # Which looks all operators up for each of 37 namespaces, in each decomposition.
    look_up = functools.cache(utils._materialize_cpp_cia_ops)
    with (
        patch.object(ExportedProgram, "run_decompositions", run),
        patch.object(utils, "_materialize_cpp_cia_ops", look_up),
    ):
        yield


class _UnlikeError(Exception):
    """A program in which operations cannot be taken apart from one another."""


@dataclass
class _Kind:
    """Operations that become the same.

    Attributes:
        target: what is called, with ``arguments``.
        inputs: the tensors among them, fake, in order.
        value: what it returns, fake: a tensor or several.
        placeholders: what stands for ``inputs`` in what it becomes; none before it is decomposed.
        piece: the operations that it becomes, in order.
        results: which nodes are what it returns.
        copies: how many operations it was put in the place of.
    """

    target: Any
    arguments: tuple[Any, Any]
    inputs: list[torch.Tensor]
    value: Any
    placeholders: list[Node] = field(default_factory=list)
    piece: list[Node] = field(default_factory=list)
    results: list[Node] = field(default_factory=list)
    copies: int = 0

    @property
    def several(self) -> bool:
        return isinstance(self.value, tuple | list)

    @property
    def values(self) -> list[Any]:
        return list(self.value) if self.several else [self.value]


def decompose(program: ExportedProgram, table: Table, whole: Whole) -> ExportedProgram:
    """The program that ``whole(program, table)`` would give.

    Args:
        program: functional, of static shapes.
        table: what is decomposed how.
        whole: ``ExportedProgram.run_decompositions``.

    Raises:
        _UnlikeError: this cannot be done by kinds.
    """
    known: dict[Any, _Kind] = {}
    while True:
        kinds = _kinds_of(program, known)
        new = [kind for kind in known.values() if not kind.results]
        if not new:
            return _put_together(program, kinds)
        # What they return may then have other strides, and those that take it be of other kinds.
        _decompose_kinds(new, table, whole)


def _kinds_of(program: ExportedProgram, known: dict[Any, _Kind]) -> dict[Node, _Kind]:
    """The kind of every operation but those that only choose an output of another."""
    inputs = [node for node in program.graph.nodes if node.op == "placeholder"]
    values: dict[Any, Any] = {node: node.meta["val"] for node in inputs}
    mode = detect_fake_mode(list(values.values()))
    if mode is None or not all(_is_static(value) for value in values.values()):
        raise _UnlikeError
    found: dict[Node, _Kind] = {}
    with mode, torch.no_grad():
        for node in program.graph.nodes:
            if node.op == "call_function" and node.target is operator.getitem:
                values[node] = values[node.args[0]][node.args[1]]
            elif node.op == "call_function" and node.target is not ASSERTION:
                found[node] = _kind_of(node, values, known)
                values[node] = found[node].value
            elif node.op not in ("placeholder", "call_function", "output"):
                raise _UnlikeError
    return found


def _is_static(value: Any) -> bool:
    """Whether an input is a tensor of one size."""
    return isinstance(value, FakeTensor) and all(isinstance(size, int) for size in value.shape)


def _kind_of(node: Node, values: Mapping[Any, Any], known: dict[Any, _Kind]) -> _Kind:
    target: Any = node.target
    inputs = [values[one] for one in _nodes_in(node)]
    # A tensor whose numbers tracing knows may decide by these.
    if not all(isinstance(one, FakeTensor) and one.constant is None for one in inputs):
        raise _UnlikeError
    key = _named(target), repr(map_arg((node.args, node.kwargs), lambda one: _described(values[one])))
    if key not in known:
        args, kwargs = map_arg((node.args, node.kwargs), values.__getitem__)
        known[key] = _Kind(target, (node.args, node.kwargs), inputs, target(*args, **kwargs))
        if not all(isinstance(one, torch.Tensor) for one in known[key].values):
            raise _UnlikeError
    return known[key]


def _named(target: Any) -> Any:
    """What is the same for functions that do the same: passes make one anew for every node."""
    if isinstance(target, torch._ops.OpOverload) and not target._schema.is_mutable:
        return target
    if not isinstance(target, FunctionType):
        raise _UnlikeError
    made_with = tuple(cell.cell_contents for cell in target.__closure__ or ())
    if not all(isinstance(one, torch._ops.OpOverload) for one in made_with):
        return target
    return target.__code__, made_with, repr(target.__defaults__), repr(target.__kwdefaults__)


def _nodes_in(node: Node) -> list[Node]:
    """The nodes among a node's arguments, in order, each as often as it is there."""
    found: list[Node] = []
    map_arg((node.args, node.kwargs), found.append)
    return found


def _described(tensor: torch.Tensor) -> tuple[torch.dtype, list[tuple[int, int]]]:
    """What decides what an operation on a tensor becomes. One step of one number is any step."""
    steps = zip(tensor.shape, tensor.stride(), strict=True)
    return tensor.dtype, [(size, step if size > 1 else 1) for size, step in steps]


class _Calls(Verifier):
    """Of a program that is to be traced: it may call Python functions too."""

    dialect = "PIECES"

    def allowed_op_types(self) -> tuple[type[Any], ...]:
        return (*super().allowed_op_types(), FunctionType)


def _decompose_kinds(kinds: list[_Kind], table: Table, whole: Whole) -> None:
    """Decomposes one operation of each kind, in one program of which they are the outputs."""
    graph = Graph()
    inputs = _Inputs(graph)
    given = [inputs.take(kind.inputs) for kind in kinds]
    outputs: list[Node] = []
    for kind, nodes in zip(kinds, given, strict=True):
        called = graph.call_function(kind.target, *_taking(nodes, kind.arguments))
        called.meta["val"] = kind.value
        returned = [called]
        if kind.several:
            returned = [graph.call_function(operator.getitem, (called, at)) for at in range(len(kind.value))]
            for node, value in zip(returned, kind.values, strict=True):
                node.meta["val"] = value
        outputs += returned
    graph.output(tuple(outputs))
    result = whole(_program(graph, inputs.all, outputs), table).graph
    taken = [node for node in result.nodes if node.op == "placeholder"]
    made = list(result.output_node().args[0])
    if len(taken) != len(inputs.all) or len(made) != len(outputs):
        raise _UnlikeError
    now = dict(zip(inputs.all, taken, strict=True))
    order = {node: number for number, node in enumerate(result.nodes)}
    for kind, nodes in zip(kinds, given, strict=True):
        kind.placeholders = [now[node] for node in nodes]
        kind.results, made = made[: len(kind.values)], made[len(kind.values) :]
        kind.piece = sorted(_behind(kind.results), key=order.__getitem__)
        values = [node.meta["val"] for node in kind.results]
        if [(one.shape, one.dtype) for one in values] != [(one.shape, one.dtype) for one in kind.values]:
            raise _UnlikeError
        kind.value = values if kind.several else values[0]


def _taking(nodes: list[Node], arguments: Any) -> Any:
    """``arguments`` with ``nodes`` in the places of theirs, in order."""
    waiting = nodes[::-1]
    return map_arg(arguments, lambda _: waiting.pop())


class _Inputs:
    """Placeholders that kinds share: to each they are different, and torch compares each two of them."""

    def __init__(self, graph: Graph) -> None:
        self.all: list[Node] = []
        self._graph = graph
        self._alike: dict[str, list[Node]] = {}

    def take(self, values: list[torch.Tensor]) -> list[Node]:
        """A placeholder for each, no two the same."""
        taken: list[Node] = []
        for value in values:
            alike = self._alike.setdefault(repr(_described(value)), [])
            free = [node for node in alike if node not in taken]
            if not free:
                free = [self._graph.placeholder(f"input_{len(self.all)}")]
                free[0].meta["val"] = value
                alike += free
                self.all += free
            taken.append(free[0])
        return taken


def _behind(results: list[Node]) -> set[Node]:
    """The operations that ``results`` follow from."""
    found: set[Node] = set()
    waiting = list(results)
    while waiting:
        node = waiting.pop()
        if node.op != "placeholder" and node not in found:
            found.add(node)
            waiting += node.all_input_nodes
    return found


def _program(graph: Graph, inputs: list[Node], outputs: list[Node]) -> ExportedProgram:
    values = [node.meta["val"] for node in inputs]
    signature = ExportGraphSignature(
        [InputSpec(InputKind.USER_INPUT, TensorArgument(node.name), None) for node in inputs],
        [OutputSpec(OutputKind.USER_OUTPUT, TensorArgument(node.name), None) for node in outputs],
    )
    call = ModuleCallSignature(
        inputs=[],
        outputs=[],
        in_spec=pytree.tree_structure((tuple(values), {})),
        out_spec=pytree.tree_structure(tuple(outputs)),
        forward_arg_names=[node.name for node in inputs],
    )
    return ExportedProgram(
        root={},
        graph=graph,
        graph_signature=signature,
        state_dict={},
        range_constraints={},
        module_call_graph=[ModuleCallEntry("", call)],
        example_inputs=(tuple(values), {}),
        verifiers=[_Calls],
    )


def _put_together(program: ExportedProgram, kinds: Mapping[Node, _Kind]) -> ExportedProgram:
    """The program with the pieces of its operations' kinds in their places."""
    graph = Graph()
    now: dict[Node, Any] = {}
    for node in program.graph.nodes:
        if node.op == "call_function" and node.target is operator.getitem:
            now[node] = now[node.args[0]][node.args[1]]
        elif node in kinds:
            results = _copy(graph, kinds[node], [now[one] for one in _nodes_in(node)], node)
            now[node] = results if kinds[node].several else results[0]
        else:
            now[node] = graph.node_copy(node, now.__getitem__)
            if node.op == "placeholder":
                # They go by the names that the signature has, whatever else these mean in Python.
                now[node].name, now[node].target = node.name, node.target
    given = program.graph_signature
    # Passes before may have changed what is given out, and not told the signature.
    outputs: Any = graph.output_node().args[0]
    if not all(isinstance(node, Node) for node in outputs):
        raise _UnlikeError
    signature = ExportGraphSignature(
        list(given.input_specs),
        [
            OutputSpec(spec.kind, TensorArgument(node.name), spec.target)
            for spec, node in zip(given.output_specs, outputs, strict=True)
        ],
    )
    return ExportedProgram(
        root=program.graph_module,
        graph=graph,
        graph_signature=signature,
        state_dict=program.state_dict,
        range_constraints=program.range_constraints,
        module_call_graph=program.module_call_graph,
        example_inputs=program.example_inputs,
        constants=program.constants,
    )


def _copy(graph: Graph, kind: _Kind, inputs: list[Node], source: Node) -> list[Node]:
    """Copies what a kind has become to the end of ``graph``; its results there."""
    now = dict(zip(kind.placeholders, inputs, strict=True))
    origin = {key: source.meta[key] for key in SOURCE if key in source.meta}
    for node in kind.piece:
        now[node] = graph.node_copy(node, now.__getitem__)
        now[node].meta.update(origin)
        if str(node.target) == MARK and node.target is not kind.target:
            # Of each copy another one.
            now[node].update_arg(3, f"{node.args[3]}-{kind.copies}")
    kind.copies += 1
    return [now[node] for node in kind.results]
