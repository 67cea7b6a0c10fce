"""Where an .onnx file says that its tensors lie is looked at before a runtime opens it."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from mobile_o_export.backends.onnx.external import load_whole, require_own_data
from mobile_o_export.errors import GateError


def external(place: str) -> TensorProto:
    tensor = onnx.numpy_helper.from_array(np.zeros(4, np.float32), "weight")
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=place)
    return tensor


def model(place: str, where: str) -> onnx.ModelProto:
    """A model with a tensor at ``place``, in one of the places where a model can have one."""
    tensor = external(place)
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, [4])
    constant = helper.make_node("Constant", [], ["y"], value=tensor)
    if where == "initializer":
        node = helper.make_node("Identity", ["weight"], ["y"])
        return helper.make_model(helper.make_graph([node], "g", [], [output], [tensor]))
    if where == "attribute":
        return helper.make_model(helper.make_graph([constant], "g", [], [output]))
    if where == "subgraph":
        branch = helper.make_graph([constant], "b", [], [output])
        node = helper.make_node("If", ["c"], ["y"], then_branch=branch, else_branch=branch)
        return helper.make_model(helper.make_graph([node], "g", [], [output]))
    function = helper.make_function("d", "F", [], ["y"], [constant], [helper.make_opsetid("", 20)])
    node = helper.make_node("F", [], ["y"], domain="d")
    return helper.make_model(helper.make_graph([node], "g", [], [output]), functions=[function])


@pytest.mark.parametrize("where", ["initializer", "attribute", "subgraph", "function"])
@pytest.mark.parametrize(
    ("place", "said"),
    [
        ("../escape.data", "it leads out of it"),
        ("/escape.data", "it is absolute"),
        ("link.data", "link.data: is a link"),
        ("pipe.data", "pipe.data: is not a regular file"),
        ("none.data", "none.data: is missing"),
    ],
)
def test_a_tensor_elsewhere_is_refused(tmp_path: Path, where: str, place: str, said: str) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (tmp_path / "escape.data").write_bytes(bytes(16))
    (folder / "link.data").symlink_to("../escape.data")
    os.mkfifo(folder / "pipe.data")
    (folder / "m.onnx").write_bytes(model(place, where).SerializeToString())
    with pytest.raises(GateError) as raised:
        require_own_data(folder / "m.onnx")
    assert said in str(raised.value)
    (folder / "own.data").write_bytes(bytes(16))
    (folder / "m.onnx").write_bytes(model("own.data", where).SerializeToString())
    require_own_data(folder / "m.onnx")


def test_what_is_no_model_is_said(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(b"\xff" * 20)
    with pytest.raises(GateError, match=r"m\.onnx: is no ONNX model"):
        require_own_data(tmp_path / "m.onnx")


def stored(folder: Path, offset: int = 4, length: int = 16) -> Path:
    """A model whose one tensor is in a file beside it, after four bytes of something else."""
    tensor = external("own.data")
    tensor.external_data.add(key="offset", value=str(offset))
    tensor.external_data.add(key="length", value=str(length))
    node = helper.make_node("Identity", ["weight"], ["y"])
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, [4])
    made = helper.make_model(helper.make_graph([node], "g", [], [output], [tensor]))
    (folder / "own.data").write_bytes(b"head" + np.arange(4, dtype=np.float32).tobytes())
    path = folder / "model.onnx"
    path.write_bytes(made.SerializeToString())
    return path


def test_tensors_in_a_file_of_several_hard_links_are_read(tmp_path: Path) -> None:
    """As a backup or a cache keeps files; onnx.load refuses them."""
    path = stored(tmp_path)
    os.link(tmp_path / "own.data", tmp_path / "another.data")
    with pytest.raises(onnx.checker.ValidationError, match="multiple hard links"):
        onnx.load(path)
    (tensor,) = load_whole(path).graph.initializer
    assert onnx.numpy_helper.to_array(tensor).tolist() == [0.0, 1.0, 2.0, 3.0]


@pytest.mark.parametrize(("offset", "length"), [(5, 16), (4, 17), (-4, 16), (400, 16)])
def test_a_tensor_beyond_the_end_of_its_file_is_refused(tmp_path: Path, offset: int, length: int) -> None:
    with pytest.raises(GateError, match="weight lies beyond the end of its file"):
        load_whole(stored(tmp_path, offset, length))
