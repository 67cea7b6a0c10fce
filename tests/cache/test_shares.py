"""Shares of an export: everything is in one of them, and the export that follows has nothing left to make."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from cache_harness import Exports
from shared_exports import tree

from mobile_o_export.cache.layout import CacheError
from mobile_o_export.checkpoint import Checkpoint
from mobile_o_export.errors import OutOfSpaceError, UnsupportedError
from mobile_o_export.exporting import nodes, shares
from mobile_o_export.exporting.nodes import export_on_nodes
from mobile_o_export.exporting.shares import Share, ShareError, ShareResult, divided, export_share, units
from mobile_o_export.jobs import Pool
from mobile_o_export.parity.gates import Gate
from mobile_o_export.plan import PlanItem, plan
from mobile_o_export.targets import Target, load_targets


@pytest.fixture(scope="module")
def targets() -> list[Target]:
    """Three, of which one puts all components into one folder, and one skips some."""
    return load_targets(["coreml-ane", "mobile-o-app", "litert-npu"])


@pytest.fixture(scope="module")
def items(reference_checkpoint: Checkpoint, targets: list[Target]) -> tuple[PlanItem, ...]:
    return plan(reference_checkpoint, targets)


def exported(items: Sequence[PlanItem]) -> set[tuple[str, str]]:
    return {item.key for item in items if item.request is not None}


def test_units_are_components_but_where_they_share_a_folder(
    items: tuple[PlanItem, ...], targets: list[Target]
) -> None:
    found = units(items, targets)
    assert sorted(item.key for unit in found for item in unit) == sorted(exported(items))
    sizes = Counter((unit[0].target, len(unit)) for unit in found)
    assert sizes["mobile-o-app", len([key for key in exported(items) if key[0] == "mobile-o-app"])] == 1
    assert {size for target, size in sizes if target != "mobile-o-app"} == {1}


@pytest.mark.parametrize("count", [1, 2, 3, 4, 7, 30])
def test_everything_is_in_one_share(items: tuple[PlanItem, ...], targets: list[Target], count: int) -> None:
    found = divided(items, targets, count)
    assert len(found) == count
    together = [item.key for share in found for item in share if item.request is not None]
    assert sorted(together) == sorted(exported(items))
    # In the plan's order, and the same on every machine.
    order = [item.key for item in items]
    for share in found:
        keys = [item.key for item in share]
        assert keys == sorted(keys, key=order.index)
    assert divided(items, targets, count) == found
    if count > len(targets):
        loads = [sum(item.memory_bytes for item in share) for share in found]
        largest = max(sum(item.memory_bytes for item in unit) for unit in units(items, targets))
        assert max(loads) <= sum(loads) / count + largest
        return
    # Whole targets, with what they skip: their chains are made with them.
    assert sorted(item.key for share in found for item in share) == sorted(order)
    for target in targets:
        assert sum(any(item.target == target.name for item in share) for share in found) == 1


NO_CHAINS = ["judged chains"]
"""One component has no chains: that there are none is not kept."""

MADE = ["lowered mcp", "judged mcp", *NO_CHAINS]


def share_of(exports: Exports, share: Share, **changes: Any) -> ShareResult:
    exports.made.clear()
    given = {"store": exports.store, "golden": exports.golden, **changes}
    return export_share(
        exports.checkpoint,
        exports.targets,
        exports.components,
        share=share,
        progress=lambda *_: None,
        **given,
    )


@pytest.fixture
def two(exports: Exports) -> Exports:
    """One component on two targets."""
    exports.components = ("mcp",)
    exports.targets = load_targets(["tensorrt-orin", "onnx-cpu"])
    return exports


@pytest.mark.slow
def test_an_export_finds_what_its_shares_made(two: Exports) -> None:
    fresh = two(cached=False)
    for index, target in ((1, "tensorrt-orin"), (2, "onnx-cpu"), (3, None)):
        result = share_of(two, Share(index, 3))
        assert [cost.target for cost in result.costs] == ([target] if target else [])
        assert two.made == (MADE if target else [])
        assert (result.components, result.chained) == (2, () if target is None else (target,))
    # By whole targets now, and all of it is there.
    whole = share_of(two, Share(1, 1))
    assert two.made == 2 * NO_CHAINS
    assert whole.chained == ("tensorrt-orin", "onnx-cpu")
    assert tree(two().bundle) == tree(fresh.bundle)
    assert two.made == 2 * NO_CHAINS
    assert sorted(path.name for path in two.store.root.iterdir()) == ["cache.json", "lowered", "verdict"]


@pytest.mark.slow
def test_a_share_that_misses_its_gate_says_so(two: Exports) -> None:
    demanding = {"gate": Gate(snr_db=300.0)}
    first = two.targets[0]
    components = {name: own.model_copy(update=demanding) for name, own in first.components.items()}
    two.targets = [first.model_copy(update={"components": components})]
    with pytest.raises(
        ShareError, match=r"of \d+ outputs missed their gate, the first on tensorrt-orin, mcp"
    ):
        share_of(two, Share(1, 1))
    assert two.kinds() == {"lowered": 1}


@pytest.mark.slow
def test_a_share_that_cannot_be_kept_is_no_success(two: Exports, monkeypatch: pytest.MonkeyPatch) -> None:
    store = two.store
    (store.root).mkdir(parents=True)

    def full(*_: Any, **__: Any) -> None:
        raise OutOfSpaceError("the disk is full")

    monkeypatch.setattr("mobile_o_export.cache.store.staged_folder", full)
    with pytest.raises(CacheError, match="not all of the share could be kept there"):
        share_of(two, Share(1, 2), store=store)


# --- nodes ---


def on_nodes(exports: Exports, pool: Pool) -> None:
    exports.made.clear()
    export_on_nodes(
        exports.checkpoint,
        exports.targets,
        exports.components,
        exports.golden,
        exports.store,
        pool,
        lambda *_: None,
    )


@pytest.fixture
def one_at_a_time() -> Pool:
    """Nodes that are this process."""
    return Pool(1, 0, lambda _: None)


@pytest.mark.slow
def test_an_export_finds_what_nodes_made(two: Exports, one_at_a_time: Pool) -> None:
    fresh = two(cached=False)
    on_nodes(two, one_at_a_time)
    # A target of one component is whole with it; else its chains come last.
    assert two.made == 2 * MADE
    assert tree(two().bundle) == tree(fresh.bundle)
    assert two.made == 2 * NO_CHAINS


@pytest.mark.slow
def test_what_misses_its_gate_on_a_node_is_left_to_the_export(
    two: Exports, one_at_a_time: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = shares.make_share

    def missing(*given: Any) -> ShareResult:
        result = made(*given)
        raise ShareError(
            ShareResult(
                tuple(row.model_copy(update={"status": "failed", "reason": "-"}) for row in result.rows),
                result.costs,
                (),
                result.components,
                result.cache,
            )
        )

    monkeypatch.setattr(nodes, "make_share", missing)
    on_nodes(two, one_at_a_time)
    # Not once more for the chains.
    assert two.made == 2 * MADE


@pytest.mark.slow
def test_nodes_that_keep_it_elsewhere_are_found_out(
    two: Exports, one_at_a_time: Pool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    make = nodes.make_unit

    def elsewhere(task: Any, say: Any) -> Any:
        result = make(task, say)
        two.store.root.rename(tmp_path / f"of-{task.targets[0].name}-{len(list(tmp_path.iterdir()))}")
        return result

    monkeypatch.setattr(nodes, "make_unit", elsewhere)
    with pytest.raises(CacheError, match="was stored by a node and is not here"):
        on_nodes(two, one_at_a_time)


@pytest.mark.slow
def test_a_node_of_another_kind_is_refused(
    two: Exports, one_at_a_time: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = dict(nodes.surroundings())
    machine = {**here["machine"], "processor": "another"}
    answers = iter([here, {**here, "machine": machine}])
    monkeypatch.setattr(nodes, "surroundings", lambda: next(answers))
    with pytest.raises(UnsupportedError, match=r"differs in machine, processor \(.* and another\)"):
        on_nodes(two, one_at_a_time)
    assert two.made == []
