"""A golden that contradicts itself, its digests written anew: what each kind of contradiction says."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from mobile_o_export.errors import GoldenError
from mobile_o_export.golden import Golden
from mobile_o_export.golden.store import INDEX, TENSORS

DEMO = Path(__file__).parent.parent / "golden" / "demo"

Index = dict[str, Any]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the demo's golden, to be damaged."""
    return Path(shutil.copytree(DEMO, tmp_path / "golden"))


def sign(folder: Path) -> None:
    """Writes the digest of the tensors' file into the index, as whoever made the damage would."""
    index = json.loads((folder / INDEX).read_text())
    index["sha256"] = sha256((folder / TENSORS).read_bytes()).hexdigest()
    (folder / INDEX).write_text(json.dumps(index))


def refused(folder: Path, message: str) -> None:
    with pytest.raises(GoldenError, match=message) as caught:
        Golden.open(folder)
    assert caught.value.exit_code == 2


def test_the_demo_s_is_whole() -> None:
    golden = Golden.open(DEMO)
    for key in golden.index.tensors:
        golden.tensor(key)


def first(index: Index, encoding: str) -> Index:
    found: Index = next(stored for stored in index["tensors"].values() if stored["encoding"] == encoding)
    return found


def step(index: Index) -> Index:
    found: Index = index["components"]["mcp"]["cases"][0]["steps"][0]
    return found


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda index: first(index, "raw").update(dtype="complex9"), r"tensors\.\w+\.dtype: Input should be"),
        (lambda index: first(index, "raw").update(dtype="object"), r"tensors\.\w+\.dtype: Input should be"),
        (lambda index: first(index, "pixels").update(dtype="int32"), "pixels stand for float32, not for int"),
        (lambda index: first(index, "zeros").update(shape=[-4]), r"shape\.0: Input should be greater than"),
        (lambda index: first(index, "zeros").update(shape=[2**20, 2**20]), "has more than 268435456 values"),
        (lambda index: first(index, "raw").update(shape=[7]), r"is stored as \w+ \[7\], and has to be"),
        (lambda index: index["tensors"].pop(step(index)["inputs"]["hidden_states"]), "names the tensor '"),
        (lambda index: step(index).update(function="paint"), "calls 'paint', which is no function of the c"),
        (lambda index: step(index).update(inputs={}), "project takes hidden_states, and is given nothing"),
        (lambda index: step(index)["outputs"].update(conditionin="x"), "Did you mean 'conditioning'"),
        (lambda index: index["components"]["mcp"]["cases"][0].update(steps=[]), "has no call"),
        (lambda index: index["components"]["mcp"]["cases"].append(index["components"]["mcp"]["cases"][0]),
         "mcp: the case '.*' is there twice"),
        (lambda index: index["drawings"][0].update(image="0" * 16), "names the tensor '0000000000000000'"),
        (lambda index: index["drawings"][0].update(latents=[]), "give at least one"),
        (lambda index: index["drawings"][0].update(image=index["drawings"][0]["hidden_states"]),
         r"drawing circle-and-square: image is stored as float32 \[1, \d+, \d+, \d+\], and has to be float"),
        (lambda index: index["drawings"][0].update(guidance=1e9), "guidance: Input should be less than"),
        (lambda index: index["answers"][0].update(tokens=[2**40] * 12), "the token 1099511627776 is not am"),
        (lambda index: index["answers"][0].update(tokens=[-1] * 12), "Input should be greater than or eq"),
        (lambda index: index["answers"][0]["tokens"].reverse(), "the tokens of the answer what are not its"),
        (lambda index: index["answers"].append(index["answers"][0]), "the chain 'what' is there twice"),
    ],
)  # fmt: skip
def test_an_index_that_contradicts_itself(
    folder: Path, change: Callable[[Index], object], message: str
) -> None:
    index = json.loads((folder / INDEX).read_text())
    change(index)
    (folder / INDEX).write_text(json.dumps(index))
    refused(folder, message)


def test_tensors_that_are_no_safetensors(folder: Path) -> None:
    (folder / TENSORS).write_bytes(b"no tensors at all")
    sign(folder)
    refused(folder, rf"{TENSORS}: cannot be read as safetensors: .*\. Record the golden again\.")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors, key: tensors.pop(key), "is not there. Record it again"),
        (lambda tensors, key: tensors.update(stray=np.zeros(2)), "the tensor 'stray' is in the file only"),
        (lambda tensors, key: tensors.update({key: tensors[key].astype(np.float16)}), "is float16 .* in the"),
        (
            lambda tensors, key: tensors.update({key: tensors[key].reshape(-1)}),
            r"in the file, and float32 \[",
        ),
    ],
)
def test_tensors_that_are_not_the_index_s(
    folder: Path, change: Callable[[dict[str, Any], str], object], message: str
) -> None:
    tensors = load_file(folder / TENSORS)
    change(tensors, next(key for key in sorted(tensors) if tensors[key].dtype == np.float32))
    save_file(tensors, folder / TENSORS)
    sign(folder)
    refused(folder, message)


def test_a_tensor_that_was_changed_is_not_its_key_s(folder: Path) -> None:
    """The key is a digest of the array: a value that was changed is found however the file is signed."""
    tensors = load_file(folder / TENSORS)
    key = next(key for key in sorted(tensors) if tensors[key].dtype == np.float32)
    tensors[key].flat[0] += 1
    save_file(tensors, folder / TENSORS)
    sign(folder)
    golden = Golden.open(folder)
    with pytest.raises(GoldenError, match=f"the tensor {key} is not what was recorded"):
        golden.tensor(key)


def test_a_key_that_occurs_twice(folder: Path) -> None:
    text = (folder / INDEX).read_text()
    (folder / INDEX).write_text(text.replace('"schema_version"', '"schema_version": 1, "schema_version"', 1))
    refused(folder, "not valid JSON: the key 'schema_version' occurs twice")
