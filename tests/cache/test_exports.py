"""Exports from the cache: the same bytes, nothing made twice, nothing shared that differs."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from cache_harness import Exports
from safetensors.torch import load_file, save_file
from shared_exports import tree

from mobile_o_export.cache import store
from mobile_o_export.cache.check import check_entries, recompute
from mobile_o_export.cache.entry import Entry
from mobile_o_export.cache.exports import FILES
from mobile_o_export.checkpoint import Checkpoint
from mobile_o_export.errors import CheckpointError
from mobile_o_export.export import ParityError
from mobile_o_export.exporting import lowering
from mobile_o_export.golden import Golden, requests
from mobile_o_export.parity.gates import Gate
from mobile_o_export.targets import load_targets

EVERYTHING = ["lowered mcp", "lowered vae_decoder", "judged mcp", "judged vae_decoder", "judged chains"]
NO_CHAINS = ["judged chains"]
"""Two components have no chains: that there are none is not kept."""


def test_a_second_export_makes_nothing_and_the_same_bytes(exports: Exports) -> None:
    fresh = exports(cached=False)
    first = exports()
    assert exports.made == EVERYTHING
    assert exports.kinds() == {"lowered": 2, "verdict": 2}
    second = exports()
    assert exports.made == NO_CHAINS
    assert tree(fresh.bundle) == tree(first.bundle) == tree(second.bundle)
    assert [cost.lower_cached for cost in (*first.costs, *second.costs)] == [False, False, True, True]
    assert [cost.verify_cached for cost in (*first.costs, *second.costs)] == [False, False, True, True]
    assert exports.said == []
    # What is in the cache is a copy: an edited bundle spoils nothing.
    for path in second.bundle.rglob("*.onnx*"):
        path.write_bytes(b"edited")
    assert tree(exports().bundle) == tree(fresh.bundle)


def test_a_whole_export_with_its_golden_and_its_chains(
    exports: Exports,
    brief_checkpoint: Checkpoint,
    small_prompts: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "golden").mkdir()
    (tmp_path / "golden" / "prompts.toml").write_text(small_prompts)
    monkeypatch.setattr(requests, "shipped", lambda name: tmp_path / name)
    exports.components = ()
    exports.checkpoint = brief_checkpoint
    exports.golden = None
    first = exports()
    assert {"golden", "judged chains", "lowered llm", "judged llm"} <= set(exports.made)
    assert exports.kinds() == {"chains": 1, "golden": 1, "lowered": 5, "verdict": 5}
    second = exports()
    assert exports.made == []
    assert second.rows == first.rows
    assert tree(first.bundle) == tree(second.bundle)
    # Another prompt is another golden, and other verdicts; the files are the same.
    (tmp_path / "golden" / "prompts.toml").write_text(small_prompts.replace("a house", "a barn"))
    exports()
    assert "golden" in exports.made
    assert "judged vae_decoder" in exports.made
    assert not [made for made in exports.made if made.startswith("lowered")]


def with_another_weight(checkpoint: Checkpoint, out: Path, part: str) -> Checkpoint:
    """A copy that differs in the last bit of one weight of ``part``."""
    shutil.copytree(checkpoint.path, out)
    name = checkpoint.component_tensors(part)[0].name
    tensors = load_file(out / "model.safetensors")
    flat = tensors[name].flatten()
    flat[0] = flat[0] * (1 + 2.0**-7) + 1e-6
    save_file(tensors, out / "model.safetensors")
    return Checkpoint.open(out)


def test_one_other_weight_is_lowered_and_judged_again_alone(
    exports: Exports, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The golden is of the first checkpoint, and near enough to the second's.
    monkeypatch.setattr(Golden, "require_checkpoint", lambda *_: None)
    exports()
    other = with_another_weight(exports.checkpoint, tmp_path / "other", "mcp")
    cached = exports(checkpoint=other)
    assert exports.made == ["lowered mcp", "judged mcp", *NO_CHAINS]
    assert tree(cached.bundle) == tree(exports(checkpoint=other, cached=False).bundle)
    exports()
    assert exports.made == NO_CHAINS


def test_a_gate_is_judged_again_and_lowered_no_more(exports: Exports) -> None:
    exports()
    (target,) = exports.targets
    mcp = target.components["mcp"].model_copy(update={"gate": Gate(snr_db=41.0)})
    changed = target.model_copy(update={"components": {**target.components, "mcp": mcp}})
    exports(targets=[changed])
    assert exports.made == ["judged mcp", *NO_CHAINS]


def test_another_length_is_lowered_again(exports: Exports) -> None:
    exports.components = ("mcp",)
    exports()
    (target,) = exports.targets
    longer = target.sequence.model_copy(update={"context": target.sequence.context + 8})
    exports(targets=[target.model_copy(update={"sequence": longer})])
    assert exports.made == ["lowered mcp", "judged mcp", *NO_CHAINS]


def test_targets_that_differ_in_their_names_share_the_files(exports: Exports) -> None:
    exports.components = ("mcp",)
    exports()
    (target,) = exports.targets
    cached = exports(targets=[target.model_copy(update={"name": "mine"})])
    assert exports.made == ["judged mcp", *NO_CHAINS]
    assert {row.target for row in cached.rows} == {"mine"}


def test_a_missed_gate_leaves_no_verdict(exports: Exports) -> None:
    exports.components = ("mcp",)
    (target,) = exports.targets
    mcp = target.components["mcp"].model_copy(update={"gate": Gate(snr_db=300.0)})
    changed = [target.model_copy(update={"components": {**target.components, "mcp": mcp}})]
    for made in (["lowered mcp", "judged mcp", *NO_CHAINS], ["judged mcp", *NO_CHAINS]):
        with pytest.raises(ParityError):
            exports(targets=changed)
        assert exports.made == made
        assert exports.kinds() == {"lowered": 1}


def test_a_lowering_that_fails_leaves_nothing(exports: Exports, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(request: Any, vendor: Any, checkpoint: Any, calibration: Any, place: Path, say: Any) -> Any:
        place.mkdir()
        (place / "half.onnx").write_bytes(b"half")
        raise CheckpointError("far enough")

    with monkeypatch.context() as patch:
        patch.setattr(lowering, "lower_component", failing)
        with pytest.raises(CheckpointError):
            exports()
    assert exports.kinds() == {}
    exports()
    assert exports.made == EVERYTHING


@pytest.mark.parametrize("kind", ["lowered", "verdict"])
@pytest.mark.parametrize("damage", ["flipped", "truncated", "missing"])
def test_damage_is_told_and_mended(exports: Exports, kind: str, damage: str) -> None:
    exports.components = ("mcp",)
    first = exports()
    (entry,) = [kept.folder for kept in exports.store.kept() if kept.kind == kind]
    path = max((path for path in entry.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    if path.name == "entry.json":
        path = entry / "rows.json"
    content = path.read_bytes()
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(content[:-1] if damage == "truncated" else bytes([content[0] ^ 1]) + content[1:])
    again = exports()
    assert exports.made == [f"{'lowered' if kind == 'lowered' else 'judged'} mcp", *NO_CHAINS]
    assert len(exports.said) == 1
    assert "removed, and made again" in exports.said[0]
    assert tree(again.bundle) == tree(first.bundle)
    exports()
    assert (exports.made, exports.said) == (NO_CHAINS, [])


def test_a_checkpoint_that_changes_is_kept_under_no_key(
    exports: Exports, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As it is lowered, and back before the export ends: what was read belongs to neither digest."""
    exports.components = ("mcp",)
    folder = tmp_path / "checkpoint"
    shutil.copytree(exports.checkpoint.path, folder)
    checkpoint = Checkpoint.open(folder)
    lower, weights = lowering.lower_component, folder / "model.safetensors"

    def changing(*given: Any) -> Any:
        before = weights.stat()
        info = checkpoint.component_tensors("mcp")[0]
        with weights.open("r+b") as file:
            file.seek(info.offset_bytes)
            byte = file.read(1)[0]
            file.seek(info.offset_bytes)
            file.write(bytes([byte ^ 1]))
            file.flush()
            made = lower(*given)
            file.seek(info.offset_bytes)
            file.write(bytes([byte]))
        os.utime(weights, ns=(before.st_atime_ns, before.st_mtime_ns))
        return made

    with monkeypatch.context() as patch:
        patch.setattr(lowering, "lower_component", changing)
        with pytest.raises(CheckpointError, match=r"changed while it was read: .*model\.safetensors"):
            exports(checkpoint=checkpoint)
    assert exports.kinds() == {}
    assert not list(tmp_path.glob("bundle*"))


def test_an_export_goes_on_where_nothing_can_be_kept(
    exports: Exports, monkeypatch: pytest.MonkeyPatch
) -> None:
    exports.components = ("mcp",)
    monkeypatch.setattr(store, "SPARE_BYTES", 10**18)
    full = exports()
    assert len(exports.said) == 1
    assert exports.said[0].startswith("nothing more is kept: ")
    assert exports.kinds() == {}
    assert tree(full.bundle) == tree(exports(cached=False).bundle)


def test_what_is_lowered_again_is_compared(exports: Exports) -> None:
    exports()
    kept_here = exports.store
    assert check_entries(kept_here, lambda *_: None).wrong == ()
    found = recompute(kept_here, exports.checkpoint, 0.5, lambda *_: None)
    assert (found.candidates, found.entries, found.wrong) == (2, 1, ())
    # An entry that agrees with itself, and is not what its key says.
    folder = next(kept.folder for kept in kept_here.kept() if kept.kind == "lowered")
    entry = Entry.open(folder)
    assert entry is not None
    files: dict[str, Path | bytes] = {name: entry.read(name) for name in entry.index.files}
    name = next(name for name in files if name.startswith(f"{FILES}/") and name.endswith(".onnx"))
    content = entry.read(name)
    kept_here.remove(folder)
    kept_here.put("lowered", entry.index.parts, {**files, name: content[:-1] + bytes([content[-1] ^ 1])})
    assert check_entries(kept_here, lambda *_: None).wrong == ()
    found = recompute(kept_here, exports.checkpoint, 1.0, lambda *_: None)
    assert (found.candidates, found.entries) == (2, 2)
    (wrong,) = found.wrong
    assert f"lowered again differs in 1 files: {name}" in wrong
    assert exports.kinds() == {"lowered": 1, "verdict": 2}


def test_calibrated_components_are_made_again_from_a_cached_golden(
    exports: Exports, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Statistics follow from the golden, whose digest is in the key: a second export computes none."""
    exports.components = ("mcp",)
    exports.targets = load_targets(["onnx-cpu"], ["mcp=w8a8"])
    first = exports()
    monkeypatch.setattr(lowering.Calibration, "of", lambda *_: pytest.fail("calibrated again"))
    assert tree(exports().bundle) == tree(first.bundle)
    assert exports.made == NO_CHAINS
    # Calibrated on a golden that is not in the cache: nobody can make it again.
    assert recompute(exports.store, exports.checkpoint, 1.0, lambda *_: None).candidates == 0
