"""The session: which graph runs, what it is fed, what is kept, what is cut off and what is refused."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Self

import numpy as np
import pytest

from mobile_o_export.components.base import Continuity, Extent, FunctionSpec, GraphSpec, Profile
from mobile_o_export.errors import GateError, UsageError
from mobile_o_export.parity.metrics import Array
from mobile_o_export.session import Session
from mobile_o_export.tensors import Dim, DType, Role, TensorSpec

CAPACITY = 10


def spec(
    name: str, shape: tuple[Dim, ...], layout: str, role: Role, dtype: DType = DType.FLOAT32
) -> TensorSpec:
    return TensorSpec(name, shape, dtype, layout, role)


IDS = spec("ids", (1, "S"), "B S", Role.TOKENS, DType.INT32)
X = spec("x", (1, "S", 2), "B S D", Role.FEATURES)
Y = spec("y", (1, "S", 2), "B S D", Role.FEATURES)
LAST = spec("last", (1, 1, 2), "B 1 D", Role.LOGITS)
LENGTH = spec("length", (1,), "B", Role.LENGTH, DType.INT32)
POSITION = spec("position", (1,), "B", Role.POSITION, DType.INT32)
CACHE = spec("cache", (1, CAPACITY), "L T", Role.CACHE)
ONE = {"S": 1}

MAP = FunctionSpec("map", (X,), (Y,))
START = FunctionSpec("start", (X,), (LAST, Y), Continuity.STARTS)
STEP = FunctionSpec("step", (X.bind(ONE),), (LAST, Y.bind(ONE)), Continuity.CONTINUES)
PLAIN = FunctionSpec(
    "plain", (spec("image", (1, 3), "B R", Role.IMAGE),), (spec("out", (1, 3), "B R", Role.IMAGE),)
)


def bucket(length: int) -> GraphSpec:
    """``map`` at one length, masked."""
    mask = spec("mask", (1, length), "B S", Role.MASK)
    sizes = {"S": length}
    return GraphSpec(f"map_{length}", ("map",), (X.bind(sizes), mask), (Y.bind(sizes),))


def start_graph(length: int) -> GraphSpec:
    """``start`` at one length over a cache that goes out."""
    sizes = {"S": length}
    return GraphSpec(
        f"start_{length}",
        ("start",),
        (X.bind(sizes), LENGTH),
        (LAST, Y.bind(sizes), CACHE),
        feeds={"cache": "cache"},
    )


STEP_GRAPH = GraphSpec(
    "step", ("step",), (X.bind(ONE), POSITION, CACHE), (LAST, Y.bind(ONE), CACHE), feeds={"cache": "cache"}
)

GROWING = GraphSpec(
    "model",
    ("start", "step"),
    (
        X,
        spec("mask", (1, "M"), "B M", Role.MASK, DType.INT64),
        spec("positions", (1, "S"), "B S", Role.POSITION, DType.INT64),
        spec("past", (1, "P", 2), "B P E", Role.CACHE),
    ),
    (LAST, Y, spec("present", (1, "M", 2), "B M E", Role.CACHE)),
    feeds={"present": "past"},
    profiles=(
        Profile("start", {"S": Extent(1, 4, 6), "P": Extent(0, 0, 0), "M": Extent(1, 4, 6)}),
        Profile("step", {"S": Extent(1, 1, 1), "P": Extent(1, 4, 7), "M": Extent(2, 5, 8)}),
    ),
)


class FakeExecutor:
    """Remembers what it was fed; gives arrays of the declared shapes that count the calls."""

    runtime = "fake"

    def __init__(
        self, *graphs: GraphSpec, change: Callable[[dict[str, Array]], None] = lambda _outputs: None
    ) -> None:
        self.graphs = {graph.name: graph for graph in graphs}
        self.change = change
        self.calls: list[tuple[str, dict[str, Array]]] = []
        self.resets = 0

    def run(self, graph: str, inputs: Mapping[str, Array]) -> dict[str, Array]:
        self.calls.append((graph, dict(inputs)))
        found = self.graphs[graph]
        sizes = {
            axis: size
            for tensor in found.inputs
            for axis, size in zip(tensor.layout.split(), inputs[tensor.name].shape, strict=True)
        }
        outputs = {
            tensor.name: np.full(
                [sizes[dim] if isinstance(dim, str) else dim for dim in tensor.shape],
                len(self.calls),
                np.dtype(str(tensor.dtype)),
            )
            for tensor in found.outputs
        }
        self.change(outputs)
        return outputs

    def reset(self) -> None:
        self.resets += 1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.calls.clear()


def features(length: int) -> Array:
    """[1, length, 2], no value of which is 0."""
    return np.arange(1, 2 * length + 1, dtype=np.float32).reshape(1, length, 2)


@pytest.mark.parametrize(("length", "graph"), [(1, "map_4"), (4, "map_4"), (5, "map_8"), (8, "map_8")])
def test_the_smallest_bucket_that_fits_runs(length: int, graph: str) -> None:
    executor = FakeExecutor(bucket(8), bucket(4))
    session = Session([MAP], [bucket(8), bucket(4)], executor)
    assert session.run("map", {"x": features(length)})["y"].shape == (1, length, 2)
    assert [name for name, _ in executor.calls] == [graph]
    assert session.graphs_run == {graph}


def test_a_named_graph_runs_though_a_smaller_one_fits() -> None:
    executor = FakeExecutor(bucket(4), bucket(8))
    session = Session([MAP], [bucket(4), bucket(8)], executor)
    session.run("map", {"x": features(2)}, "map_8")
    assert executor.calls[0][0] == "map_8"


def test_a_function_that_no_contract_has() -> None:
    session = Session([MAP], [bucket(4)], FakeExecutor(bucket(4)))
    with pytest.raises(UsageError, match="there is no function 'paint' here, only map"):
        session.run("paint", {"x": features(2)})
    with pytest.raises(UsageError, match="there is no function 'paint' here"):
        session.length_of("paint", {})


def test_graphs_are_listed_from_the_smallest_that_fits() -> None:
    session = Session([MAP], [bucket(8), bucket(2), bucket(4)], FakeExecutor())
    assert [graph.name for graph in session.graphs_for("map", 3)] == ["map_4", "map_8"]
    assert session.graphs_for("map", 9) == ()


def test_inputs_are_followed_by_zeros_and_the_mask_says_where() -> None:
    executor = FakeExecutor(bucket(5))
    Session([MAP], [bucket(5)], executor).run("map", {"x": features(3)})
    fed = executor.calls[0][1]
    np.testing.assert_array_equal(fed["x"][:, :3], features(3))
    np.testing.assert_array_equal(fed["x"][:, 3:], np.zeros((1, 2, 2)))
    np.testing.assert_array_equal(fed["mask"], [[1, 1, 1, 0, 0]])
    assert {name: value.dtype for name, value in fed.items()} == {"x": np.float32, "mask": np.float32}


def test_inputs_are_given_in_the_graph_s_dtype_and_order() -> None:
    wide = GraphSpec(
        "wide", ("embed",), (spec("ids", (1, 4), "B S", Role.TOKENS, DType.INT64),), (Y.bind({"S": 4}),)
    )
    executor = FakeExecutor(wide)
    Session([FunctionSpec("embed", (IDS,), (Y,))], [wide], executor).run(
        "embed", {"ids": np.array([[7, 8]], np.int32)}
    )
    assert executor.calls[0][1]["ids"].dtype == np.int64
    assert executor.calls[0][1]["ids"].tolist() == [[7, 8, 0, 0]]


def test_a_function_without_a_sequence_runs_its_one_graph_as_it_is() -> None:
    graph = GraphSpec("plain", ("plain",), PLAIN.inputs, PLAIN.outputs)
    executor = FakeExecutor(graph)
    session = Session([PLAIN], [graph], executor)
    assert session.length_of("plain", {"image": np.ones((1, 3), np.float32)}) is None
    outputs = session.run("plain", {"image": np.ones((1, 3), np.float32)})
    assert outputs["out"].shape == (1, 3)


def test_length_and_positions_follow_the_sequence() -> None:
    executor = FakeExecutor(start_graph(4), STEP_GRAPH)
    session = Session([START, STEP], [start_graph(4), STEP_GRAPH], executor)
    session.run("start", {"x": features(3)})
    session.run("step", {"x": features(1)})
    session.run("step", {"x": features(1)})
    (_, start), (_, first), (_, second) = executor.calls
    assert start["length"].tolist() == [3]
    assert start["length"].dtype == np.int32
    assert [first["position"].tolist(), second["position"].tolist()] == [[3], [4]]


def test_the_cache_goes_from_each_call_into_the_next_and_to_no_caller() -> None:
    executor = FakeExecutor(start_graph(4), STEP_GRAPH)
    session = Session([START, STEP], [start_graph(4), STEP_GRAPH], executor)
    outputs = session.run("start", {"x": features(3)})
    assert list(outputs) == ["last", "y"]
    for call in (1, 2, 3):
        session.run("step", {"x": features(1)})
        fed = executor.calls[call][1]["cache"]
        assert fed.shape == (1, CAPACITY)
        assert (fed == call).all()


def test_a_start_resets_states_cache_and_position() -> None:
    executor = FakeExecutor(start_graph(4), STEP_GRAPH)
    session = Session([START, STEP], [start_graph(4), STEP_GRAPH], executor)
    for _ in range(2):
        session.run("start", {"x": features(2)})
        session.run("step", {"x": features(1)})
    assert executor.resets == 2
    assert executor.calls[3][1]["position"].tolist() == [2]
    assert (executor.calls[3][1]["cache"] == 3).all()


def test_a_stateless_call_between_two_steps_moves_nothing() -> None:
    executor = FakeExecutor(start_graph(4), STEP_GRAPH, bucket(4))
    session = Session([START, STEP, MAP], [start_graph(4), STEP_GRAPH, bucket(4)], executor)
    session.run("start", {"x": features(2)})
    session.run("map", {"x": features(4)})
    session.run("step", {"x": features(1)})
    assert executor.calls[2][1]["position"].tolist() == [2]
    assert (executor.calls[2][1]["cache"] == 1).all()
    assert executor.resets == 1


def test_a_growing_cache_starts_empty_and_masks_every_position_so_far() -> None:
    executor = FakeExecutor(GROWING)
    session = Session([START, STEP], [GROWING], executor)
    executor.change = lambda outputs: outputs.update(
        present=np.ones((1, executor.calls[-1][1]["mask"].shape[1], 2), np.float32)
    )
    session.run("start", {"x": features(3)})
    session.run("step", {"x": features(1)})
    (_, start), (_, step) = executor.calls
    assert start["past"].shape == (1, 0, 2)
    assert start["mask"].tolist() == [[1, 1, 1]]
    assert start["positions"].tolist() == [[0, 1, 2]]
    assert step["past"].shape == (1, 3, 2)
    assert step["mask"].tolist() == [[1, 1, 1, 1]]
    assert step["positions"].tolist() == [[3]]
    assert step["positions"].dtype == np.int64


def test_a_prompt_beyond_the_longest_bucket_is_refused_with_both_numbers() -> None:
    session = Session([MAP], [bucket(4), bucket(8)], FakeExecutor())
    with pytest.raises(UsageError, match=r"map over 9 positions fits no exported length; the longest is 8"):
        session.run("map", {"x": features(9)})


def test_a_prompt_beyond_a_dynamic_graph_s_profile_is_refused_with_both_numbers() -> None:
    session = Session([START, STEP], [GROWING], FakeExecutor())
    with pytest.raises(UsageError, match=r"start over 7 positions .* the longest is 6"):
        session.run("start", {"x": features(7)})


def test_an_empty_sequence_is_refused() -> None:
    with pytest.raises(UsageError, match="map needs at least one position"):
        Session([MAP], [bucket(4)], FakeExecutor()).run("map", {"x": features(0)})


@pytest.mark.parametrize(
    ("function", "shape"),
    [("start", (1, 3, 4)), ("start", (3, 2)), ("start", (2, 3, 2)), ("step", (1, 2, 2)), ("step", (1, 0, 2))],
)
def test_an_input_of_another_shape_is_refused_before_anything_runs(
    function: str, shape: tuple[int, ...]
) -> None:
    executor = FakeExecutor(start_graph(4), STEP_GRAPH)
    session = Session([START, STEP], [start_graph(4), STEP_GRAPH], executor)
    with pytest.raises(UsageError, match=rf"{function} takes x as .* not \[{', '.join(map(str, shape))}\]"):
        session.run(function, {"x": np.ones(shape, np.float32)})
    assert executor.calls == []


@pytest.mark.parametrize(
    ("graphs", "limit"), [((start_graph(6), STEP_GRAPH), CAPACITY), ((GROWING,), 8)], ids=["fixed", "growing"]
)
def test_a_step_beyond_the_cache_is_refused_before_it_runs(graphs: tuple[GraphSpec, ...], limit: int) -> None:
    executor = FakeExecutor(*graphs)
    if graphs == (GROWING,):
        executor.change = lambda outputs: outputs.update(
            present=np.ones((1, executor.calls[-1][1]["mask"].shape[1], 2), np.float32)
        )
    session = Session([START, STEP], graphs, executor)
    session.run("start", {"x": features(6)})
    for _ in range(limit - 6):
        session.run("step", {"x": features(1)})
    ran = len(executor.calls)
    with pytest.raises(UsageError, match=rf"step: position {limit + 1} is beyond the {limit} that"):
        session.run("step", {"x": features(1)})
    assert len(executor.calls) == ran


def test_a_missing_input_is_refused_by_name() -> None:
    with pytest.raises(UsageError, match="map needs the input 'x'"):
        Session([MAP], [bucket(4)], FakeExecutor()).run("map", {})


def drop(outputs: dict[str, Array]) -> None:
    del outputs["y"]


def rename(outputs: dict[str, Array]) -> None:
    outputs["z"] = outputs.pop("y")


def add(outputs: dict[str, Array]) -> None:
    outputs["z"] = outputs["y"]


def transpose(outputs: dict[str, Array]) -> None:
    outputs["y"] = outputs["y"].swapaxes(1, 2)


def squeeze(outputs: dict[str, Array]) -> None:
    outputs["y"] = outputs["y"][0]


def widen(outputs: dict[str, Array]) -> None:
    outputs["y"] = outputs["y"].astype(np.float64)


def halve(outputs: dict[str, Array]) -> None:
    outputs["y"] = outputs["y"].astype(np.float16)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (drop, "map_4: the output 'y' is missing"),
        (rename, "map_4: the output 'y' is missing"),
        (add, "map_4: the output 'z' is not in the contract"),
        (transpose, r"map_4: y has shape \[1, 2, 4\] instead of \[1, 4, 2\]"),
        (squeeze, r"map_4: y has shape \[4, 2\] instead of \[1, 4, 2\]"),
        (widen, "map_4: y has dtype float64 instead of float32"),
        (halve, "map_4: y has dtype float16 instead of float32"),
    ],
)
def test_a_file_that_breaks_its_contract_fails_the_gate(
    change: Callable[[dict[str, Array]], None], message: str
) -> None:
    executor = FakeExecutor(bucket(4), change=change)
    with pytest.raises(GateError, match=message):
        Session([MAP], [bucket(4)], executor).run("map", {"x": features(3)})


def test_a_cache_that_is_not_given_back_fails_the_gate() -> None:
    executor = FakeExecutor(start_graph(4), change=lambda outputs: outputs.__delitem__("cache"))
    with pytest.raises(GateError, match="start_4: the output 'cache' is missing"):
        Session([START], [start_graph(4)], executor).run("start", {"x": features(2)})
