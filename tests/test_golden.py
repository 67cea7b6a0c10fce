"""Goldens: what is in one, that recording it twice gives the same bytes, and what a damaged one says."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mobile_o_export.bundle.manifest import file_entries
from mobile_o_export.bundle.verify import GOLDEN_FOLDER
from mobile_o_export.checkpoint import Checkpoint
from mobile_o_export.components.registry import COMPONENT_NAMES, component
from mobile_o_export.errors import GoldenError
from mobile_o_export.golden import Golden
from mobile_o_export.golden.encoding import Encoding, decode, encode, key_of
from mobile_o_export.golden.record import record_golden
from mobile_o_export.golden.requests import load_requests
from mobile_o_export.golden.store import INDEX, TENSORS, Recorder
from mobile_o_export.parity.metrics import Array
from mobile_o_export.reference import TorchRunner
from mobile_o_export.tensors import Role

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="session")
def golden(bundle: Path) -> Golden:
    return Golden.open(bundle / GOLDEN_FOLDER)


@pytest.fixture
def copy(bundle: Path, tmp_path: Path) -> Path:
    """A copy of the golden, to be damaged."""
    return Path(shutil.copytree(bundle / GOLDEN_FOLDER, tmp_path / "golden"))


def test_recording_again_gives_the_same_bytes(
    bundle: Path, reference_checkpoint: Checkpoint, tmp_path: Path
) -> None:
    record_golden(reference_checkpoint, None, tmp_path, lambda *_: None)
    assert {path.name for path in tmp_path.iterdir()} == {INDEX, TENSORS}
    assert file_entries(tmp_path) == file_entries(bundle / GOLDEN_FOLDER)


@pytest.mark.parametrize("name", COMPONENT_NAMES)
def test_every_function_has_a_case_that_compares_every_output(
    name: str, golden: Golden, reference_checkpoint: Checkpoint
) -> None:
    functions = component(name).functions(reference_checkpoint)
    assert golden.functions(name) == functions
    for function in functions:
        compared = {
            output
            for case in golden.cases(name)
            for step in case.steps
            if step.function == function.name
            for output in step.outputs
        }
        assert compared == {spec.name for spec in function.outputs}


@pytest.mark.parametrize("name", COMPONENT_NAMES)
def test_every_stored_tensor_fits_its_contract(name: str, golden: Golden) -> None:
    contracts = {function.name: function for function in golden.functions(name)}
    for case in golden.cases(name):
        for step in case.steps:
            contract = contracts[step.function]
            assert step.inputs.keys() == {spec.name for spec in contract.inputs}
            for spec in (*contract.inputs, *contract.outputs):
                key = (step.inputs if spec in contract.inputs else step.outputs).get(spec.name)
                if key is None:
                    continue
                value = golden.tensor(key)
                assert value.dtype == np.dtype(str(spec.dtype))
                sizes = [
                    dim if isinstance(dim, int) else size
                    for dim, size in zip(spec.shape, value.shape, strict=True)
                ]
                assert list(value.shape) == sizes
                if spec.range is not None:
                    assert spec.range[0] <= value.min() <= value.max() <= spec.range[1]


def test_the_first_request_is_denoised_at_its_first_middle_and_last_step_in_both_branches(
    golden: Golden, reference_checkpoint: Checkpoint
) -> None:
    request = load_requests(None)[0].generate[0]
    assert request.steps == 20
    names = {case.name for case in golden.cases("dit") if case.name.startswith(request.name)}
    branches = ("conditional", "unconditional")
    assert names == {
        f"{request.name}-step{step}-{branch}" for step in ("01", "11", "20") for branch in branches
    }
    timesteps = {
        float(golden.tensor(case.steps[0].inputs["timestep"])[0])
        for case in golden.cases("dit")
        if case.name in names
    }
    assert len(timesteps) == 3


def test_the_unconditional_branch_is_the_mcp_s_result_for_zeros_and_not_zeros(golden: Golden) -> None:
    for case in golden.cases("mcp"):
        (step,) = case.steps
        hidden = golden.tensor(step.inputs["hidden_states"])
        assert hidden.any() == case.name.endswith("-conditional")
        assert golden.tensor(step.outputs["conditioning"]).any()


def test_an_answer_is_compared_early_in_the_middle_and_at_its_end(golden: Golden) -> None:
    requests = load_requests(None)[0].describe
    assert requests
    for request in requests:
        (case,) = (case for case in golden.cases("llm") if case.name == f"{request.name}-answer")
        assert [step.function for step in case.steps] == ["prefill", *["decode"] * (request.tokens - 1)]
        compared = {index for index, step in enumerate(case.steps) if step.outputs}
        assert compared == {0, 1, request.tokens // 2, request.tokens - 1}
    assert max(request.tokens for request in requests) >= 16


def test_one_token_and_prompts_on_both_sides_of_a_bucket_are_embedded(golden: Golden) -> None:
    lengths = {
        golden.tensor(step.inputs["input_ids"]).shape[1]
        for case in golden.cases("llm")
        for step in case.steps
        if step.function == "embed"
    }
    # The shipped targets' buckets are 64 and 384.
    assert 1 in lengths
    assert any(1 < length <= 64 for length in lengths)
    assert any(64 < length <= 384 for length in lengths)


def test_outputs_are_what_pytorch_gives_now(golden: Golden, reference_checkpoint: Checkpoint) -> None:
    for name in ("mcp", "vision_encoder"):
        runner = TorchRunner.of(reference_checkpoint, name)
        step = golden.cases(name)[0].steps[0]
        found = runner.run(step.function, {key: golden.tensor(value) for key, value in step.inputs.items()})
        for output, key in step.outputs.items():
            np.testing.assert_array_equal(found[output], golden.tensor(key))


def test_what_one_component_gives_is_what_the_next_one_gets(golden: Golden) -> None:
    """The same key, so that a pipeline of verified parts is a verified pipeline."""
    given = {
        key
        for name in COMPONENT_NAMES
        for case in golden.cases(name)
        for step in case.steps
        for key in step.outputs.values()
    }
    for name, spec in (("mcp", "hidden_states"), ("dit", "conditioning")):
        for case in golden.cases(name):
            key = case.steps[0].inputs[spec]
            assert key in given or not golden.tensor(key).any()


@pytest.mark.parametrize(
    ("value", "encoding"),
    [
        (np.zeros((2, 3), np.float32), Encoding.ZEROS),
        (np.arange(256, dtype=np.float32).reshape(4, 64) / np.float32(255), Encoding.PIXELS),
        (np.ones((1, 2), np.float32), Encoding.PIXELS),
        (np.array([[0.1, 0.2]], np.float32), Encoding.RAW),
        (np.array([[-0.5, 2.0]], np.float32), Encoding.RAW),
        (np.array([[3, 5]], np.int32), Encoding.RAW),
        (np.zeros((1, 2), np.int32), Encoding.RAW),
        (np.zeros((0, 2), np.float32), Encoding.RAW),
        (-np.zeros((1, 2), np.float32), Encoding.RAW),
        (np.array([[1.0, -0.0]], np.float32), Encoding.RAW),
    ],
)
def test_an_array_comes_back_bit_for_bit_from_how_it_is_stored(value: Array, encoding: Encoding) -> None:
    stored, array = encode(value)
    assert stored.encoding is encoding
    found = decode(stored, array)
    assert (found.dtype, found.shape, found.tobytes()) == (value.dtype, value.shape, value.tobytes())


def test_keys_tell_arrays_apart_by_content_shape_and_dtype() -> None:
    zeros = np.zeros(4, np.float32)
    others = [zeros.reshape(2, 2), zeros.astype(np.int32), zeros + 1]
    assert len({key_of(value) for value in (zeros, *others)}) == 4
    assert key_of(zeros) == key_of(zeros.copy())


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_model_that_computes_nonsense_is_not_recorded(value: float) -> None:
    calls = [("project", {"x": np.ones(2, np.float32)}, {"y": np.array([1.0, value], np.float32)})]
    with pytest.raises(GoldenError, match="mcp: the PyTorch model itself computes NaN or infinity"):
        Recorder().add("mcp", "case", calls)


Index = dict[str, Any]


def edited(change: Callable[[Index], object]) -> Callable[[Path], object]:
    """Damage to the index: its JSON after ``change``."""

    def damage(folder: Path) -> None:
        index = json.loads((folder / INDEX).read_text())
        change(index)
        (folder / INDEX).write_text(json.dumps(index))

    return damage


def flip_byte(folder: Path) -> None:
    content = bytearray((folder / TENSORS).read_bytes())
    content[-1] ^= 1
    (folder / TENSORS).write_bytes(content)


def cut_short(folder: Path) -> None:
    content = (folder / TENSORS).read_bytes()
    (folder / TENSORS).write_bytes(content[:-7])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / INDEX).unlink(), "no golden here .* Make one with"),
        (lambda folder: shutil.rmtree(folder), "no golden here"),
        (lambda folder: (folder / INDEX).write_text("{"), "not valid JSON"),
        (lambda folder: (folder / INDEX).write_text("[]"), INDEX),
        (lambda folder: (folder / INDEX).write_bytes(b"\xff\xfe\x00"), "not valid JSON"),
        (edited(lambda index: index.update(schema_version=99)), "schema 99, and this version reads 3"),
        (edited(lambda index: index.update(comment="mine")), "unknown key 'comment'"),
        (edited(lambda index: index.pop("checkpoint")), "checkpoint: is missing"),
        (edited(lambda index: index.update(sha256="0" * 64)), rf"{TENSORS}: missing or changed"),
        (lambda folder: (folder / TENSORS).unlink(), rf"{TENSORS}: missing or changed"),
        (flip_byte, rf"{TENSORS}: missing or changed"),
        (cut_short, rf"{TENSORS}: missing or changed"),
    ],
)
def test_a_damaged_golden_says_what_is_wrong(
    damage: Callable[[Path], object], message: str, copy: Path
) -> None:
    damage(copy)
    with pytest.raises(GoldenError, match=message):
        Golden.open(copy)


def test_a_component_without_cases_is_named(copy: Path) -> None:
    edited(lambda index: index["components"].pop("mcp"))(copy)
    with pytest.raises(GoldenError, match="holds nothing of mcp"):
        Golden.open(copy).cases("mcp")


@pytest.mark.parametrize("listed", [True, False])
def test_a_tensor_that_is_not_there_is_named(copy: Path, listed: bool) -> None:
    def forget(index: Index) -> None:
        key = next(key for key, stored in index["tensors"].items() if stored["encoding"] == "zeros")
        if listed:
            index["tensors"][key]["encoding"] = "raw"
        else:
            index["tensors"].pop(key)
        keys.append(key)

    keys: list[str] = []
    edited(forget)(copy)
    with pytest.raises(GoldenError) as caught:
        Golden.open(copy)
    assert keys[0] in str(caught.value)


def test_a_golden_of_another_checkpoint_is_refused(golden: Golden) -> None:
    golden.require_checkpoint(golden.index.checkpoint)
    with pytest.raises(GoldenError, match="recorded from another checkpoint"):
        golden.require_checkpoint("sha256:" + "0" * 64)


def without_torch(code: str, *arguments: str) -> str:
    """What ``code`` prints in an interpreter where importing torch fails."""
    start = "import sys; sys.modules['torch'] = None\n"
    result = subprocess.run(
        [sys.executable, "-c", start + code, *arguments],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_a_golden_is_read_without_torch(bundle: Path) -> None:
    code = """
from pathlib import Path
from mobile_o_export.golden import Golden
golden = Golden.open(Path(sys.argv[1]))
cases = golden.cases("mcp")
print(len(cases), golden.tensor(cases[0].steps[0].inputs["hidden_states"]).dtype)
"""
    cases = len(Golden.open(bundle / GOLDEN_FOLDER).cases("mcp"))
    assert without_torch(code, str(bundle / GOLDEN_FOLDER)).split() == [str(cases), "float32"]


@pytest.mark.parametrize("target", ["litert-cpu", "tensorrt-orin"])
def test_a_bundle_is_verified_without_torch(target: str, bundle: Path) -> None:
    """Only the interpreter that stands in for Core ML computes with it."""
    code = """
from pathlib import Path
from mobile_o_export.bundle.verify import Wish, verify_bundle
rows = verify_bundle(Path(sys.argv[1]), Wish([sys.argv[2]], ["llm", "mcp"]), lambda *_: None)
print(len(rows) > 8, *{str(row.status) for row in rows})
"""
    assert without_torch(code, str(bundle), target).split() == ["True", "passed"]


def test_images_are_recorded_as_pixels_in_range(golden: Golden) -> None:
    (encode_function,) = golden.functions("vision_encoder")
    assert encode_function.inputs[0].role is Role.IMAGE
    for case in golden.cases("vision_encoder"):
        key = case.steps[0].inputs["image"]
        assert golden.index.tensors[key].encoding is Encoding.PIXELS
        assert golden.tensor(key).std() > 0.05
