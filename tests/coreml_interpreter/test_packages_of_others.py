"""Packages that this project does not write: other versions' blobs, pictures for inputs, other modes."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mobile_o_export.backends.coreml.interpreter import (
    DamagedPackageError,
    EvaluationError,
    InputError,
    Interpreter,
    Rounding,
    load_mlpackage,
)
from mobile_o_export.backends.coreml.interpreter.description import ImagePort

mb = pytest.importorskip("coremltools.converters.mil").Builder

X = {"x": np.arange(24, dtype=np.float32).reshape(1, 3, 2, 4)}


# --- operators ---


@pytest.mark.parametrize(
    ("mode", "size", "target", "places"),
    [
        ("DEFAULT", 2, 3, [0, 1, 1]),  # coremltools' own test of resize, in its wheel
        ("DEFAULT", 2, 4, [0, 0, 1, 1]),
        ("DEFAULT", 4, 3, [0, 2, 3]),
        ("UNALIGN_CORNERS", 2, 3, [0, 1, 1]),
        ("STRICT_ALIGN_CORNERS", 4, 7, [0, 1, 1, 2, 2, 3, 3]),
        ("ALIGN_CORNERS", 4, 2, [0, 3]),
        ("OFFSET_CORNERS", 4, 2, [1, 2]),
    ],
)
def test_nearest_neighbours_in_every_mode(
    evaluated: Any, mode: str, size: int, target: int, places: list[int]
) -> None:
    x = np.arange(size, dtype=np.float32).reshape(1, 1, size, 1)
    found = evaluated(
        lambda x: mb.resize(
            x=x,
            shape=[target, 1],
            resized_dims=np.uint32(2),
            interpolation_mode="NEAREST_NEIGHBOR",
            sampling_mode=mode,
        ),
        {"x": x},
    )
    assert found.reshape(-1).astype(int).tolist() == places


@pytest.mark.parametrize("operator", ["gather", "gather_along_axis", "gather_nd", "scatter"])
def test_a_negative_index_is_one_of_ios_15_and_16_alone(evaluated: Any, operator: str) -> None:
    x, index = np.arange(6, dtype=np.float32).reshape(2, 3), np.array([[-1, 0, -2]], np.int32)
    calls = {
        "gather": lambda x, i: mb.gather(x=x, indices=mb.reshape(x=i, shape=[3]), axis=1),
        "gather_along_axis": lambda x, i: mb.gather_along_axis(x=x, indices=i, axis=0),
        "gather_nd": lambda x, i: mb.gather_nd(x=x, indices=mb.reshape(x=i, shape=[3, 1])),
        "scatter": lambda x, i: mb.scatter(
            data=x, indices=mb.reshape(x=i, shape=[3]), updates=np.ones((2, 3), np.float32), axis=1
        ),
    }
    given = index if operator in ("gather", "scatter") else np.array([[-1, 0, -2]], np.int32)
    with pytest.raises(EvaluationError, match=r"outside of \[0, "):
        evaluated(calls[operator], {"x": x, "i": given})


@pytest.mark.parametrize("operator", ["matmul", "linear"])
def test_a_product_of_integers_and_floats(evaluated: Any, operator: str) -> None:
    """coremltools' frontends let through what differs in type; Core ML multiplies floats."""
    from mobile_o_export.backends.coreml.interpreter.ops import OPS
    from mobile_o_export.backends.coreml.interpreter.registry import Call
    from mobile_o_export.backends.coreml.interpreter.tensor_type import TensorType

    torch = pytest.importorskip("torch")
    x, y = torch.tensor([[0.5, 2.0]]), torch.tensor([[3, 4], [5, 6]], dtype=torch.int32)
    second = "weight" if operator == "linear" else "y"
    call = Call(operator, "it", {"x": (x,), second: (y,)}, (TensorType("float32", (1, 2)),))
    wanted = x @ (y.float().T if operator == "linear" else y.float())
    assert OPS[operator].evaluate(call).tolist() == wanted.tolist()


@pytest.mark.parametrize(("axis", "batch"), [(1, 1), (2, 1), (3, 1), (2, 2), (3, 2)])
def test_gathers_in_batches(evaluated: Any, axis: int, batch: int) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 3, 4, 5)).astype(np.float32)
    shape = (*x.shape[:batch], 2, 3)
    index = rng.integers(0, x.shape[axis], shape).astype(np.int32)
    found = evaluated(
        lambda x, i: mb.gather(x=x, indices=i, axis=axis, batch_dims=batch), {"x": x, "i": index}
    )
    for place in np.ndindex(*x.shape[:batch]):
        wanted = np.take(x[place], index[place], axis=axis - batch)
        np.testing.assert_array_equal(found[place], wanted)


# --- files ---


def test_bytes_that_coremltools_7_left_uninitialised(
    build_program: Any, save_program: Any, tmp_path: Path
) -> None:
    table = np.random.default_rng(0).normal(size=(64, 4)).astype(np.float32)
    path = tmp_path / "one.mlpackage"
    save_program(build_program(X, {"it": lambda x: mb.matmul(x=x, y=table[:4])}), path)
    save_program(build_program(X, {"it": lambda x: mb.add(x=mb.matmul(x=x, y=table[:4]), y=table[:1])}), path)
    (weights,) = path.rglob("weight.bin")
    data, noise = bytearray(weights.read_bytes()), np.random.default_rng(1)
    offset = 64
    for _ in range(struct.unpack_from("<I", data)[0]):
        size, start = struct.unpack_from("<8xQQ", data, offset)
        data[offset + 24 : offset + 64] = noise.integers(1, 256, 40, dtype=np.uint8).tobytes()
        offset = (start + size + 63) // 64 * 64
    weights.write_bytes(data)
    function = load_mlpackage(path).functions["main"]
    found = Interpreter(function, component="one", rounding=Rounding.FP32).run(X)["out_it_0"]
    np.testing.assert_allclose(found, X["x"] @ table[:4] + table[:1], rtol=1e-5)


def declared_as_picture(path: Path, width: int, height: int, colours: str) -> None:
    from coremltools.proto import FeatureTypes_pb2, Model_pb2

    (model,) = path.rglob("*.mlmodel")
    spec = Model_pb2.Model()
    spec.ParseFromString(model.read_bytes())
    image = spec.description.input[0].type.imageType
    image.width, image.height = width, height
    image.colorSpace = getattr(FeatureTypes_pb2.ImageFeatureType, colours)
    model.write_bytes(spec.SerializeToString())


@pytest.mark.parametrize("colours", ["RGB", "BGR"])
def test_an_input_may_be_declared_as_a_picture(
    build_program: Any, save_program: Any, tmp_path: Path, colours: str
) -> None:
    path = tmp_path / "one.mlpackage"
    save_program(build_program(X, {"it": lambda x: mb.relu(x=x)}), path)
    declared_as_picture(path, 4, 2, colours)
    function = load_mlpackage(path).functions["main"]
    found = Interpreter(function, component="one", rounding=Rounding.FP32).run(X)["out_it_0"]
    np.testing.assert_array_equal(found, X["x"])


@pytest.mark.parametrize(("width", "height", "colours"), [(2, 4, "RGB"), (4, 3, "RGB"), (4, 2, "GRAYSCALE")])
def test_a_picture_of_another_shape_is_damage(
    build_program: Any, save_program: Any, tmp_path: Path, width: int, height: int, colours: str
) -> None:
    path = tmp_path / "one.mlpackage"
    save_program(build_program(X, {"it": lambda x: mb.relu(x=x)}), path)
    declared_as_picture(path, width, height, colours)
    with pytest.raises(DamagedPackageError, match=r"declares x as a picture of \d channels, "):
        load_mlpackage(path)


def test_a_shape_whose_rank_is_known_at_run_time_alone(evaluated: Any) -> None:
    """``fill`` by a shape that is computed; how long that is is declared no more than what it holds."""
    x = np.zeros((2, 3), np.float32)
    found = evaluated(
        lambda x: mb.fill(shape=mb.concat(values=[mb.shape(x=x), mb.shape(x=x)], axis=0), value=7.0), {"x": x}
    )
    assert found.shape == (2, 3, 2, 3)
    assert (found == 7).all()


def test_any_rank_fits_a_type_without_one() -> None:
    from coremltools.proto import MIL_pb2

    from mobile_o_export.backends.coreml.interpreter.tensor_type import type_from_proto

    proto = MIL_pb2.ValueType()
    proto.tensorType.dataType, proto.tensorType.rank = MIL_pb2.FLOAT32, -1
    proto.tensorType.dimensions.add().unknown.variadic = True
    found = type_from_proto(proto)
    assert found.element_count is None
    assert all(found.fits(shape) for shape in ((), (3,), (2, 3, 4)))
    proto.tensorType.dimensions[0].unknown.variadic = False
    assert [type_from_proto(proto).fits(shape) for shape in ((), (3,), (2, 3))] == [False, True, False]


# --- shapes ---


@pytest.mark.parametrize(
    ("make", "allowed", "refused", "message"),
    [
        (lambda ct: ct.RangeDim(2, 4), [2, 4], [1, 5], "is 2 to 4 × 3 to 3, not"),
        (lambda ct: ct.EnumeratedShapes([(2, 3), (5, 3)]), [2, 5], [3, 4], r"is \(2, 3\) or \(5, 3\), not"),
    ],
)
def test_a_shape_that_the_package_does_not_declare_is_refused(
    silent: Any, tmp_path: Path, make: Any, allowed: list[int], refused: list[int], message: str
) -> None:
    path = tmp_path / "flexible.mlpackage"
    with silent():
        import coremltools as ct

        given = make(ct)
        shape = given if isinstance(given, ct.EnumeratedShapes) else (given, 3)
        model = ct.convert(
            torch.jit.trace(torch.nn.ReLU(), torch.ones(2, 3)),
            inputs=[ct.TensorType("x", shape)],
            outputs=[ct.TensorType("y")],
            minimum_deployment_target=ct.target.iOS18,
            compute_precision=ct.precision.FLOAT32,
            skip_model_load=True,
        )
        model.save(str(path))
    interpreter = Interpreter(load_mlpackage(path).functions["main"], component="flexible")
    for rows in allowed:
        x = np.full((rows, 3), -1, np.float32)
        assert interpreter.run({"x": x})["y"].shape == (rows, 3)
    for rows in refused:
        with pytest.raises(InputError, match=message):
            interpreter.run({"x": np.zeros((rows, 3), np.float32)})


def test_a_greyscale_picture_of_fp16_keeps_its_fractions() -> None:
    port = ImagePort("GRAYSCALE_FLOAT16", 1, 2, flexible=False)
    picture = Image.fromarray(np.array([[0.25, 300.5]], np.float32))
    assert port.array(picture).tolist() == [[[[0.25, 300.5]]]]
    assert ImagePort("GRAYSCALE", 1, 2, flexible=False).array(picture).tolist() == [[[[0, 255]]]]


@pytest.mark.parametrize(
    ("colours", "mode", "values"),
    [
        ("GRAYSCALE", "L", [[0, 0, 3, 255, 255]]),
        ("GRAYSCALE_FLOAT16", "F", [[0, -1, 2.599609375, 300.5, np.inf]]),
    ],
)
def test_a_picture_is_made_of_a_result(colours: str, mode: str, values: list[list[float]]) -> None:
    port = ImagePort(colours, 1, 5, flexible=False)
    picture = port.picture(np.array([[[[0, -1, 2.6, 300.5, np.inf]]]], np.float32))
    assert picture.mode == mode
    assert np.asarray(picture).tolist() == values
