"""The session over files that others fixed: their names, a least length, padding known by its zeros."""

from __future__ import annotations

import numpy as np
import pytest
from test_session import MAP, FakeExecutor, X, Y, spec

from mobile_o_export.components.base import Extent, FunctionSpec, GraphSpec, Profile
from mobile_o_export.errors import GateError, UsageError
from mobile_o_export.session import Session
from mobile_o_export.tensors import Role

PROFILES = (Profile("map", {"S": Extent(4, 4, 6)}),)
RENAMED = GraphSpec(
    "map",
    ("map",),
    (spec("theirs", (1, "S", 2), "B S D", Role.FEATURES), spec("mask", (1, "S"), "B S", Role.MASK)),
    (spec("result", (1, "S", 2), "B S D", Role.FEATURES),),
    profiles=PROFILES,
    aliases={"theirs": "x", "result": "y"},
)
BLIND = GraphSpec("map", ("map",), (X,), (Y,), profiles=PROFILES, zeros_are_padding=True)


@pytest.mark.parametrize(("length", "run_at"), [(1, 4), (3, 4), (4, 4), (5, 5), (6, 6)])
def test_short_calls_are_padded_to_the_least_length_and_cut_again(length: int, run_at: int) -> None:
    executor = FakeExecutor(RENAMED)
    x = np.ones((1, length, 2), np.float32)
    found = Session([MAP], [RENAMED], executor).run("map", {"x": x})
    ((_, fed),) = executor.calls
    assert set(fed) == {"theirs", "mask"}
    assert fed["theirs"].shape == (1, run_at, 2)
    assert fed["theirs"][0, :, 0].tolist() == [1.0] * length + [0.0] * (run_at - length)
    assert fed["mask"].tolist() == [[1.0] * length + [0.0] * (run_at - length)]
    assert {name: value.shape for name, value in found.items()} == {"y": (1, length, 2)}


def test_a_longer_call_than_the_most_is_refused() -> None:
    session = Session([MAP], [RENAMED], FakeExecutor(RENAMED))
    with pytest.raises(UsageError, match="the longest is 6"):
        session.run("map", {"x": np.ones((1, 7, 2), np.float32)})


def test_a_graph_that_knows_padding_by_its_zeros_cannot_tell_zeros_from_it() -> None:
    session = Session([MAP], [BLIND], FakeExecutor(BLIND))
    zeros, one = np.zeros((1, 3, 2), np.float32), np.zeros((1, 3, 2), np.float32)
    one[0, 2, 1] = 0.5
    assert not session.can_tell(BLIND, "map", {"x": zeros})
    assert session.can_tell(BLIND, "map", {"x": one})
    assert session.can_tell(BLIND, "map", {"x": np.zeros((1, 4, 2), np.float32)})
    assert session.can_tell(RENAMED, "map", {"x": zeros})


INNER = spec("inner", (1, 3, 5), "B N M", Role.FEATURES)
LOOK = FunctionSpec(
    "look", (spec("image", (1, 3), "B R", Role.IMAGE),), (spec("seen", (1, 3, 2), "B N D", Role.FEATURES),)
)
FIRST = GraphSpec("look", ("look",), LOOK.inputs, (INNER,), then="rest")
REST = GraphSpec("rest", (), (INNER,), LOOK.outputs)


def test_a_function_in_two_files_is_run_through_both() -> None:
    executor = FakeExecutor(FIRST, REST)
    session = Session([LOOK], [FIRST, REST], executor)
    found = session.run("look", {"image": np.zeros((1, 3), np.float32)})
    assert [name for name, _ in executor.calls] == ["look", "rest"] == sorted(session.graphs_run)
    assert set(executor.calls[1][1]) == {"inner"}
    # The second call's.
    assert {name: value.tolist() for name, value in found.items()} == {"seen": np.full((1, 3, 2), 2).tolist()}
    assert session.graphs_for("look", None) == (FIRST,)


def test_each_of_the_two_files_is_held_to_its_own_contract() -> None:
    def wrong(outputs: dict[str, np.ndarray]) -> None:
        if "inner" in outputs:
            outputs["inner"] = outputs["inner"][:, :2]

    session = Session([LOOK], [FIRST, REST], FakeExecutor(FIRST, REST, change=wrong))
    with pytest.raises(GateError, match=r"look: inner has shape \[1, 2, 5\]"):
        session.run("look", {"image": np.zeros((1, 3), np.float32)})
