"""A test for each gate that makes it fail: files that are wrong fail, and say how."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import faults
import numpy as np
import pytest

from mobile_o_export.bundle.verify import Wish, verify_bundle
from mobile_o_export.checkpoint import Checkpoint
from mobile_o_export.errors import BundleError, GateError, GoldenError
from mobile_o_export.export import export_bundle
from mobile_o_export.parity.judge import Row, Status, verdict
from mobile_o_export.parity.metrics import Array
from mobile_o_export.targets import load_target

MISSED = "it is in the export's record, and was not computed now"
UNKNOWN = "the export's record does not have it"
"""Of a row whose case was taken out of the golden, or has another name in it now."""


@pytest.fixture
def copy(bundle: Path, tmp_path: Path) -> Path:
    return faults.linked_copy(bundle, tmp_path / "bundle")


def verify(bundle: Path, target: str, component: str) -> list[Row]:
    """The verdicts on outputs; checks of files and records are for tests of their own."""
    rows = verify_bundle(bundle, Wish([target], [component]), lambda *_: None)
    return [row for row in rows if row.function or not row.output]


def failed_itself(row: Row) -> bool:
    """Whether the output is wrong, and not only the golden another one than export had."""
    return row.status is Status.FAILED and row.reason not in (MISSED, UNKNOWN)


def assert_fails(rows: list[Row], reason: str) -> None:
    failed = [row for row in rows if row.status is Status.FAILED]
    assert failed
    assert verdict(rows) is Status.FAILED
    assert any(re.search(reason, row.reason) for row in failed), {row.reason for row in failed}
    assert all(row.reason for row in failed)


def perturbed(weight: Array) -> Array:
    """10 % of noise: about 20 dB in this one of some twenty layers."""
    noise = np.random.default_rng(5).standard_normal(weight.shape)
    return (weight + 0.1 * weight.std() * noise).astype(np.float16)


def with_nan(weight: Array) -> Array:
    weight[3, 5, 0] = np.nan
    return weight


def with_infinity(weight: Array) -> Array:
    weight[3, 5, 0] = -np.inf
    return weight


def transposed(weight: Array) -> Array:
    return weight.swapaxes(0, 1)


def zeroed(weight: Array) -> Array:
    return np.zeros_like(weight)


def shifted(weight: Array) -> Array:
    """As an offset that is one element off would read it."""
    return np.roll(weight.reshape(-1), 1)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (perturbed, r"\d dB is below the gate; largest difference .* at \["),
        (with_nan, r"values are NaN or infinite, the first at \["),
        (with_infinity, r"values are NaN or infinite, the first at \["),
        (transposed, "dB is below the gate"),
        (zeroed, "dB is below the gate"),
        (shifted, "dB is below the gate"),
    ],
)
@pytest.mark.parametrize("target", faults.TARGETS)
def test_a_wrong_weight_fails(
    target: str,
    change: Callable[[Array], Array],
    reason: str,
    copy: Path,
    reference_checkpoint: Checkpoint,
) -> None:
    faults.edit_weight(copy, target, reference_checkpoint, change)
    faults.reseal(copy)
    assert_fails(verify(copy, target, "mcp"), reason)


@pytest.mark.parametrize("target", faults.TARGETS)
def test_what_is_sealed_again_unchanged_passes(target: str, copy: Path) -> None:
    """So that the tests above fail for what they change, and not for how."""
    path = faults.weight_file(copy, target)
    faults.replace(path, path.read_bytes())
    faults.reseal(copy)
    assert verdict(verify(copy, target, "mcp")) is Status.PASSED


PATHS = {
    "coreml-ane": "{0}.mlpackage",
    "litert-cpu": "{0}.tflite",
    "tensorrt-orin": "{1}.onnx",
}


def edit(
    bundle: Path,
    target: str,
    component: str,
    graph: str,
    coreml: Callable[[Any], object],
    litert: Callable[[Any], object],
    onnx: Callable[[Any], object],
) -> None:
    """Edits one component's file in its own format, and seals the bundle."""
    path = bundle / target / component / PATHS[target].format(component, graph)
    match target:
        case "coreml-ane":
            faults.edit_coreml(path, coreml)
        case "litert-cpu":
            faults.edit_litert(path, litert)
        case _:
            faults.edit_onnx(path, onnx)
    faults.reseal(bundle)


@pytest.fixture
def brief(copy: Path) -> Path:
    """The copy with one prompt and a short answer for the LLM: enough to fail on."""

    def shorten(index: dict[str, Any]) -> None:
        llm = index["components"]["llm"]
        kept = [case for case in llm["cases"] if case["name"] in ("cube-prompt", "houses-answer")]
        assert len(kept) == 2
        llm["cases"] = [{**case, "steps": case["steps"][:3]} for case in kept]

    edit_golden(copy, shorten)
    return copy


@pytest.mark.parametrize("target", faults.TARGETS)
def test_a_missing_output_fails(target: str, brief: Path) -> None:
    def coreml(function: Any) -> None:
        for block in faults.blocks(function):
            if "hidden_states" in block.outputs:
                block.outputs.remove("hidden_states")

    def litert(signature: Any) -> None:
        signature.outputs = [entry for entry in signature.outputs if entry.name != b"hidden_states"]

    def onnx(graph: Any) -> None:
        (found,) = (output for output in graph.output if output.name == "hidden_states")
        graph.output.remove(found)

    edit(brief, target, "llm", "model", coreml, litert, onnx)
    assert_fails(verify(brief, target, "llm"), "hidden_states")


@pytest.mark.parametrize("target", faults.TARGETS)
def test_a_renamed_output_fails(target: str, copy: Path) -> None:
    edit(
        copy,
        target,
        "mcp",
        "project",
        lambda function: faults.rename_coreml(function, {"conditioning": "other"}),
        lambda signature: faults.rename_litert(signature.outputs, {b"conditioning": b"other"}),
        lambda graph: faults.rename_onnx(graph, {"conditioning": "other"}),
    )
    assert_fails(verify(copy, target, "mcp"), "the output 'conditioning' is missing")


@pytest.mark.parametrize("target", faults.TARGETS)
def test_swapped_outputs_fail(target: str, brief: Path) -> None:
    names = {"logits": "hidden_states", "hidden_states": "logits"}
    edit(
        brief,
        target,
        "llm",
        "model",
        lambda function: faults.rename_coreml(function, names),
        lambda signature: faults.rename_litert(
            signature.outputs, {old.encode(): new.encode() for old, new in names.items()}
        ),
        lambda graph: faults.rename_onnx(graph, names),
    )
    assert_fails(
        verify(brief, target, "llm"), r"logits has shape \[1, 4, \d+, 128\] instead of \[1, 1, 576\]"
    )


@pytest.mark.parametrize("target", ["litert-cpu", "tensorrt-orin"])
def test_swapped_outputs_of_one_shape_fail(target: str, brief: Path) -> None:
    """Keys for values: no shape tells, the steps that follow do."""
    names = {"present.0.key": "present.0.value", "present.0.value": "present.0.key"}

    def litert(signature: Any) -> None:
        faults.rename_litert(signature.outputs, {b"k_cache": b"v_cache", b"v_cache": b"k_cache"})

    edit(
        brief,
        target,
        "llm",
        "model",
        lambda _function: None,
        litert,
        lambda graph: faults.rename_onnx(graph, names),
    )
    rows = verify(brief, target, "llm")
    assert_fails(rows, "dB is below the gate")
    assert {row.function for row in rows if failed_itself(row) and row.case} == {"decode"}


def test_a_state_that_forgets_what_prefill_wrote_fails(brief: Path) -> None:
    """Core ML's own: every function names its states, and their sharing is by name."""

    def forget(function: Any) -> None:
        for block in faults.blocks(function):
            kept = [op for op in block.operations if op.type != "write_state"]
            del block.operations[:]
            block.operations.extend(kept)

    faults.edit_coreml(brief / "coreml-ane/llm/llm.mlpackage", forget)
    faults.reseal(brief)
    rows = verify(brief, "coreml-ane", "llm")
    assert_fails(rows, "below the gate|most likely token")
    assert {row.function for row in rows if failed_itself(row) and row.case} == {"decode"}


@pytest.mark.parametrize("target", faults.TARGETS)
def test_a_renamed_input_fails(target: str, copy: Path) -> None:
    edit(
        copy,
        target,
        "mcp",
        "project",
        lambda function: faults.rename_coreml(function, {"hidden_states": "states"}),
        lambda signature: faults.rename_litert(signature.inputs, {b"hidden_states": b"states"}),
        lambda graph: faults.rename_onnx(graph, {"hidden_states": "states"}),
    )
    assert_fails(verify(copy, target, "mcp"), "states")


@pytest.mark.parametrize("target", ["coreml-ane", "litert-cpu"])
def test_a_function_that_is_not_in_the_file_fails(target: str, copy: Path) -> None:
    if target == "coreml-ane":
        from coremltools.proto import Model_pb2

        path = copy / target / "mcp/mcp.mlpackage" / faults.SPEC
        model = Model_pb2.Model()
        model.ParseFromString(path.read_bytes())
        del model.mlProgram.functions["project_384"]
        faults.replace(path, model.SerializeToString())
    else:

        def rename(signature: Any) -> None:
            if signature.signatureKey == b"project_384":
                signature.signatureKey = b"project_385"

        faults.edit_litert(copy / target / "mcp/mcp.tflite", rename)
    faults.reseal(copy)
    assert_fails(verify(copy, target, "mcp"), "project_384")


TRUNCATED = {
    "coreml-ane": (faults.SPEC, faults.WEIGHTS, "Manifest.json"),
    "litert-cpu": ("",),
    "tensorrt-orin": ("", ".data"),
}


@pytest.mark.parametrize("kept", [0.0, 0.5, 0.99])
@pytest.mark.parametrize(("target", "part"), [(t, part) for t, parts in TRUNCATED.items() for part in parts])
def test_a_truncated_file_fails(target: str, part: str, kept: float, copy: Path) -> None:
    path = copy / target / "mcp" / PATHS[target].format("mcp", "project")
    path = path / part if target == "coreml-ane" else path.with_name(path.name + part)
    content = path.read_bytes()
    faults.replace(path, content[: int(kept * len(content))])
    faults.reseal(copy)
    rows = verify(copy, target, "mcp")
    assert rows
    assert all(row.status is Status.FAILED and row.reason for row in rows)


@pytest.mark.parametrize("target", faults.TARGETS)
def test_a_file_of_nonsense_fails(target: str, copy: Path) -> None:
    path = copy / target / "mcp" / PATHS[target].format("mcp", "project")
    path = path / faults.SPEC if target == "coreml-ane" else path
    faults.replace(path, np.random.default_rng(6).bytes(path.stat().st_size))
    faults.reseal(copy)
    rows = verify(copy, target, "mcp")
    assert rows
    assert all(row.status is Status.FAILED and row.reason for row in rows)


def edit_golden(bundle: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = bundle / "golden" / "golden.json"
    index = json.loads(path.read_text())
    change(index)
    faults.replace(path, json.dumps(index).encode())
    faults.reseal(bundle)


def test_a_graph_that_no_case_runs_fails(copy: Path) -> None:
    """Prompts of more than 64 positions only: nobody has seen the smaller bucket compute anything."""

    def drop_short(index: dict[str, Any]) -> None:
        mcp = index["components"]["mcp"]
        mcp["cases"] = [
            case
            for case in mcp["cases"]
            if index["tensors"][case["steps"][0]["inputs"]["hidden_states"]]["shape"][2] > 64
        ]
        assert mcp["cases"]

    edit_golden(copy, drop_short)
    rows = verify(copy, "litert-cpu", "mcp")
    failed = [row for row in rows if row.status is not Status.PASSED]
    assert [(row.function, row.reason.partition(";")[0]) for row in failed if row.reason != MISSED] == [
        ("project_64", "no golden case runs this graph")
    ]
    assert {row.case.rpartition("@")[2] for row in failed if row.reason == MISSED} == {
        "project_64",
        "project_384",
    }


def test_a_component_without_a_case_fails(copy: Path) -> None:
    edit_golden(copy, lambda index: index["components"]["mcp"].update(cases=[]))
    rows = verify(copy, "litert-cpu", "mcp")
    assert {row.function for row in rows if row.reason != MISSED} == {"project_64", "project_384"}
    assert {row.status for row in rows} == {Status.FAILED}


def test_an_output_that_is_computed_and_never_compared_fails(copy: Path) -> None:
    def forget_hidden_states(index: dict[str, Any]) -> None:
        for case in index["components"]["llm"]["cases"]:
            for step in case["steps"]:
                if step["function"] == "decode":
                    step["outputs"].pop("hidden_states", None)

    edit_golden(copy, forget_hidden_states)
    found = [row for row in verify(copy, "tensorrt-orin", "llm") if row.reason != MISSED]
    (failed,) = (row for row in found if row.status is not Status.PASSED)
    assert (failed.function, failed.output) == ("decode", "hidden_states")
    assert failed.reason.startswith("no golden case compares this output on this graph")


def test_a_prefill_that_no_decode_follows_fails(copy: Path) -> None:
    """Nothing else reads the KV cache that it writes, however good its logits are."""

    def only_long_prompts_go_on(index: dict[str, Any]) -> None:
        for case in index["components"]["llm"]["cases"]:
            first = case["steps"][0]
            if first["function"] == "prefill":
                length = index["tensors"][first["inputs"]["inputs_embeds"]]["shape"][1]
                case["steps"] = case["steps"] if length > 64 else case["steps"][:1]

    edit_golden(copy, only_long_prompts_go_on)
    found = [row for row in verify(copy, "litert-cpu", "llm") if row.reason not in (MISSED, UNKNOWN)]
    failed = [row for row in found if row.status is not Status.PASSED]
    assert {(row.function, row.case, row.output) for row in failed} == {
        ("decode", "@prefill_64", "logits"),
        ("decode", "@prefill_64", "hidden_states"),
    }


def test_a_golden_of_another_checkpoint_fails_the_bundle(copy: Path) -> None:
    edit_golden(copy, lambda index: index.update(checkpoint="sha256:" + "0" * 64))
    with pytest.raises((GateError, GoldenError), match="recorded from another checkpoint"):
        verify(copy, "litert-cpu", "mcp")


def test_a_golden_of_another_checkpoint_stops_an_export_before_it_starts(
    copy: Path, tmp_path: Path, reference_checkpoint: Checkpoint
) -> None:
    edit_golden(copy, lambda index: index.update(checkpoint="sha256:" + "0" * 64))
    out = tmp_path / "out"
    targets = [load_target("litert-cpu")]
    with pytest.raises(GoldenError, match="recorded from another checkpoint"):
        export_bundle(reference_checkpoint, targets, ("mcp",), copy / "golden", out, "1", lambda *_: None)
    assert not out.exists()


KINDS = (
    f"coreml-ane/mcp/mcp.mlpackage/{faults.WEIGHTS}",
    f"coreml-ane/mcp/mcp.mlpackage/{faults.SPEC}",
    "coreml-ane/mcp/mcp.mlpackage/Manifest.json",
    "litert-cpu/mcp/mcp.tflite",
    "tensorrt-orin/mcp/project.onnx",
    "tensorrt-orin/mcp/project.onnx.data",
    "tensorrt-orin/profiles.json",
    "tensorrt-orin/build_engines.py",
    "golden/golden.json",
    "golden/tensors.safetensors",
    "tokenizer/tokenizer.json",
    "config/pipeline.json",
    "vectors/noise.json",
    "vectors/pictures/plain.png",
    "vectors/pictures/turned.jpg",
    "LICENCE-WEIGHTS.txt",
    "parity.json",
    "manifest.schema.json",
    "manifest.json",
    "manifest.sha256",
)
"""One of each."""


def assert_refused(bundle: Path, *names: str) -> None:
    """Whatever is asked for, nothing is run, and the files are named."""
    ran: list[object] = []
    with pytest.raises(GateError) as caught:
        verify_bundle(bundle, Wish(["litert-cpu"], ["mcp"]), lambda *phrase: ran.append(phrase))
    assert ran == []
    for name in names:
        assert name in str(caught.value)


def test_every_kind_of_file_is_among_them(bundle: Path) -> None:
    assert [name for name in KINDS if not (bundle / name).is_file()] == []
    suffixes = {path.suffix for path in bundle.rglob("*") if path.is_file()}
    assert suffixes - {".txt"} <= {Path(name).suffix for name in KINDS}


@pytest.mark.parametrize("name", KINDS)
def test_one_changed_byte_is_found_in_every_kind_of_file(name: str, copy: Path) -> None:
    content = bytearray((copy / name).read_bytes())
    content[len(content) // 2] ^= 1
    faults.replace(copy / name, bytes(content))
    assert_refused(copy, name)


@pytest.mark.parametrize("name", [name for name in KINDS if name != "manifest.json"])
def test_a_file_that_is_gone_is_named(name: str, copy: Path) -> None:
    (copy / name).unlink()
    assert_refused(copy, name)


def test_a_bundle_without_its_manifest_is_refused(copy: Path) -> None:
    (copy / "manifest.json").unlink()
    with pytest.raises((BundleError, GateError), match=r"manifest\.json"):
        verify_bundle(copy, Wish(), lambda *_: None)


@pytest.mark.parametrize("name", ["notes.txt", "litert-cpu/mcp/extra.tflite", ".DS_Store"])
def test_a_file_that_was_added_is_named(name: str, copy: Path) -> None:
    (copy / name).write_bytes(b"x")
    assert_refused(copy, name)


@pytest.mark.parametrize("name", ["litert-cpu/mcp/mcp.tflite", "golden/tensors.safetensors", "parity.json"])
def test_a_link_in_place_of_a_file_is_found_though_it_leads_to_the_same_bytes(
    name: str, copy: Path, tmp_path: Path
) -> None:
    outside = tmp_path / "outside"
    (copy / name).rename(outside)
    (copy / name).symlink_to(outside)
    assert_refused(copy, name)


def test_a_link_to_a_folder_is_found(copy: Path, tmp_path: Path) -> None:
    (copy / "tokenizer").rename(tmp_path / "outside")
    (copy / "tokenizer").symlink_to(tmp_path / "outside")
    assert_refused(copy, "tokenizer")


def test_a_manifest_that_leaves_the_bundle_is_refused(copy: Path) -> None:
    """Sealed with a digest of its own, as an attacker would."""
    from hashlib import sha256

    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["files"]["../outside"] = {"size_bytes": 0, "sha256": "0" * 64}
    content = json.dumps(manifest).encode()
    faults.replace(copy / "manifest.json", content)
    faults.replace(copy / "manifest.sha256", f"{sha256(content).hexdigest()}  manifest.json\n".encode())
    assert_refused(copy, "outside")
