"""Sampling of images at points, boxes, classifiers and lists: what vision and loops of others bring."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch.nn import functional

from mobile_o_export.backends.coreml.interpreter import (
    DamagedPackageError,
    EvaluationError,
    InputError,
    Interpreter,
    load_mlpackage,
)

mb = pytest.importorskip("coremltools.converters.mil").Builder

Evaluated = Callable[..., NDArray[Any]]
rng = np.random.default_rng(3)
IMAGES = rng.standard_normal((2, 3, 5, 7)).astype(np.float32)
RAMP = np.arange(1, 17, dtype=np.float32).reshape(1, 1, 4, 4)


# --- resample, affine ---


@pytest.mark.parametrize("align", [True, False])
@pytest.mark.parametrize("sampling", ["bilinear", "nearest"])
@pytest.mark.parametrize(
    ("padding", "theirs"), [("constant", "zeros"), ("border", "border"), ("reflection", "reflection")]
)
def test_resample_is_grid_sample(
    evaluated: Evaluated, padding: str, theirs: str, sampling: str, align: bool
) -> None:
    grid = rng.uniform(-1.8, 1.8, (2, 4, 6, 2)).astype(np.float32)
    # PyTorch reflects at the edges of pixels where corners are not aligned: Core ML's "symmetric".
    mode = "symmetric" if padding == "reflection" and not align else padding
    found = evaluated(
        lambda x, grid: mb.resample(
            x=x,
            coordinates=grid,
            sampling_mode=sampling,
            padding_mode=mode,
            padding_value=0.0,
            coordinates_mode="normalized_minus_one_to_one",
            align_corners=align,
        ),
        {"x": IMAGES, "grid": grid},
    )
    wanted = functional.grid_sample(
        torch.from_numpy(IMAGES), torch.from_numpy(grid), sampling, theirs, align_corners=align
    )
    np.testing.assert_allclose(found, wanted.numpy(), atol=2e-5)


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        # The values of coremltools' own test, in its wheel.
        (("bilinear", "constant", 6.17, "normalized_minus_one_to_one", True), [8.585, 6.17, 27.5, 6.17]),
        (("nearest", "border", -1.0, "unnormalized", False), [11, 11, 11, 44]),
        (("bilinear", "reflection", -1.0, "normalized_zero_to_one", True), [22, 36.3, 11, 34.1]),
        (("nearest", "symmetric", -1.0, "normalized_zero_to_one", False), [22, 33, 11, 33]),
    ],
)
def test_resample_of_points_outside(
    evaluated: Evaluated, options: tuple[Any, ...], wanted: list[float]
) -> None:
    names = ("sampling_mode", "padding_mode", "padding_value", "coordinates_mode", "align_corners")
    points = np.array([-1, -2, -3.7, -1, 0, 0, 3.5, 1.2], np.float32).reshape(1, 2, 2, 2)
    found = evaluated(
        lambda x, points: mb.resample(x=x, coordinates=points, **dict(zip(names, options, strict=True))),
        {"x": np.array([11, 22, 33, 44], np.float32).reshape(1, 1, 2, 2), "points": points},
    )
    np.testing.assert_allclose(found.ravel(), wanted, atol=1e-5)


@pytest.mark.parametrize("matrices", [1, 2])
def test_an_affine_transform_is_affine_grid(evaluated: Evaluated, matrices: int) -> None:
    matrix = rng.uniform(-1, 1, (matrices, 6)).astype(np.float32)
    found = evaluated(
        lambda x, matrix: mb.affine(
            x=x,
            transform_matrix=matrix,
            output_height=3,
            output_width=4,
            sampling_mode="bilinear",
            padding_mode="constant",
            padding_value=0.0,
            coordinates_mode="normalized_minus_one_to_one",
            align_corners=True,
        ),
        {"x": IMAGES, "matrix": matrix},
    )
    theta = torch.from_numpy(np.broadcast_to(matrix, (2, 6)).copy()).reshape(2, 2, 3)
    grid = functional.affine_grid(theta, [2, 3, 3, 4], align_corners=True)
    wanted = functional.grid_sample(torch.from_numpy(IMAGES), grid, align_corners=True)
    np.testing.assert_allclose(found, wanted.numpy(), atol=1e-5)


# --- crop_resize ---


def test_crops_of_boxes_partly_outside(evaluated: Evaluated) -> None:
    """The values of coremltools' own test, in its wheel."""
    boxes = np.array([[0.1, 0.3, 1.3, 1.0], [0.5, 1.8, 1.0, 0.3], [0.0, 0.4, 0.6, 0.7]], np.float32)
    found = evaluated(
        lambda x: mb.crop_resize(
            x=x,
            boxes=boxes,
            box_indices=np.zeros(3, np.int32),
            target_height=2,
            target_width=2,
            normalized_coordinates=True,
            sampling_mode="ALIGN_CORNERS",
            pad_value=10.0,
        ),
        {"x": RAMP},
    )
    wanted = [3.1, 5.2, 10, 10, 10, 7.9, 10, 13.9, 2.2, 3.1, 9.4, 10.3]
    np.testing.assert_allclose(found.ravel(), wanted, atol=1e-5)


@pytest.mark.parametrize(
    ("numbers", "images", "wanted"),
    [
        ([1, 1, 2, 2], 2, [6, 7, 10, 11, 22, 23, 26, 27]),
        # Of one image: for several coremltools 9.0 declares another shape than its documentation gives.
        ([0, 1, 1, 2, 2], 1, [6, 7, 10, 11]),
    ],
)
def test_a_region_is_cut_out_of_every_image_or_of_the_one_that_it_names(
    tmp_path: Path,
    build_program: Any,
    save_program: Any,
    numbers: list[int],
    images: int,
    wanted: list[float],
) -> None:
    region = np.array(numbers, np.float32).reshape(1, 1, -1, 1, 1)
    inputs = {"x": np.concatenate([RAMP, RAMP + 16])[:images]}

    def crop(x: Any) -> Any:
        return mb.crop_resize(x=x, roi=region, target_height=2, target_width=2, sampling_mode="ALIGN_CORNERS")

    save_program(build_program(inputs, {"it": crop}, "iOS16"), tmp_path / "crop.mlpackage")
    found = run(tmp_path / "crop.mlpackage", inputs)["out_it_0"]
    assert found.shape == (1, images, 1, 2, 2)
    assert found.ravel().tolist() == wanted


@pytest.mark.parametrize(
    "mode", ["STRICT_ALIGN_CORNERS", "ALIGN_CORNERS", "DEFAULT", "OFFSET_CORNERS", "UNALIGN_CORNERS"]
)
def test_the_crop_of_a_whole_image_is_its_resize(evaluated: Evaluated, mode: str) -> None:
    whole = np.array([[0, 0, 4, 6], [0, 0, 4, 6]], np.float32)
    size = (3, 4) if mode == "UNALIGN_CORNERS" else (8, 4)  # else points lie beyond the edges, and are padded
    inner = {"DEFAULT": 4, "OFFSET_CORNERS": 8}.get(mode, size[0])
    found = evaluated(
        lambda x: mb.crop_resize(
            x=x, boxes=whole, target_height=size[0], target_width=size[1], sampling_mode=mode
        ),
        {"x": IMAGES},
    )
    wanted = evaluated(
        lambda x: mb.resize_bilinear(
            x=x, target_size_height=size[0], target_size_width=size[1], sampling_mode=mode
        ),
        {"x": IMAGES},
    )
    np.testing.assert_allclose(found[..., :inner, :], wanted[..., :inner, :], atol=1e-5)


@pytest.mark.parametrize(
    ("mode", "box"),
    [
        ("CORNERS_HEIGHT_FIRST", [1, 0, 3, 2]),
        ("CORNERS_WIDTH_FIRST", [0, 1, 2, 3]),
        ("CENTER_SIZE_HEIGHT_FIRST", [2, 1, 2, 2]),
        ("CENTER_SIZE_WIDTH_FIRST", [1, 2, 2, 2]),
    ],
)
def test_a_box_in_every_convention(evaluated: Evaluated, mode: str, box: list[int]) -> None:
    found = evaluated(
        lambda x: mb.crop_resize(
            x=x,
            boxes=np.array([box], np.float32) * 2,
            spatial_scale=0.5,
            target_height=3,
            target_width=3,
            box_coordinate_mode=mode,
            sampling_mode="STRICT_ALIGN_CORNERS",
        ),
        {"x": RAMP},
    )
    np.testing.assert_array_equal(found[0, 0], RAMP[0, 0, 1:, :3])


# --- non_maximum_suppression ---

BOXES = np.array([[0, 0, 4, 4], [1, 0, 4, 4], [9, 9, 2, 2], [0, 1, 4, 4], [9, 9, 0, 0]], np.float32)
"""The first, second and fourth overlap by more than half; the last is empty."""
SCORES = np.array([[0.1, 0.9], [0.8, 0.2], [0.3, 0.1], [0.2, 0.7], [0.6, 0.5]], np.float32)


@pytest.mark.parametrize(
    ("per_class", "threshold", "kept"),
    [(False, 0.0, [0, 4, 2]), (True, 0.0, [0, 1, 4, 2]), (False, 0.65, [0]), (True, 2.0, [0])],
)
def test_what_overlaps_a_better_box_is_dropped(
    build_program: Any, save_program: Any, tmp_path: Path, per_class: bool, threshold: float, kept: list[int]
) -> None:
    inputs = {"boxes": BOXES[None], "scores": SCORES[None]}

    def suppress(boxes: Any, scores: Any) -> Any:
        return mb.non_maximum_suppression(
            boxes=boxes,
            scores=scores,
            iou_threshold=0.5,
            score_threshold=threshold,
            max_boxes=4,
            per_class_suppression=per_class,
        )

    save_program(build_program(inputs, {"it": suppress}, "iOS16"), tmp_path / "nms.mlpackage")
    boxes, scores, indices, counts = run(tmp_path / "nms.mlpackage", inputs).values()
    assert indices[0].tolist() == [*kept, *[-1] * (4 - len(kept))]
    assert counts.tolist() == [len(kept)]
    np.testing.assert_array_equal(boxes[0, : len(kept)], BOXES[kept])
    np.testing.assert_array_equal(scores[0, : len(kept)], SCORES[kept])
    assert not boxes[0, len(kept) :].any()


def test_ios_17_has_boxes_in_the_last_axis_and_no_count(
    build_program: Any, save_program: Any, tmp_path: Path
) -> None:
    inputs = {"boxes": BOXES.T[None].copy(), "scores": SCORES.T[None].copy()}

    def suppress(boxes: Any, scores: Any) -> Any:
        return mb.non_maximum_suppression(boxes=boxes, scores=scores, iou_threshold=0.5, max_boxes=2)

    save_program(build_program(inputs, {"it": suppress}), tmp_path / "nms.mlpackage")
    boxes, scores, indices = run(tmp_path / "nms.mlpackage", inputs).values()
    assert indices.tolist() == [[0, 4]]
    np.testing.assert_array_equal(boxes[0], BOXES[[0, 4]].T)
    np.testing.assert_array_equal(scores[0], SCORES[[0, 4]].T)


# --- classifiers ---


@pytest.mark.parametrize("labels", [["cat", "dog", "gnu"], [7, 5, -3]])
def test_a_classifier_gives_its_class_and_a_dictionary(
    silent: Any, tmp_path: Path, labels: list[Any]
) -> None:
    path = classifier(silent, tmp_path / "c.mlpackage", labels)
    outputs = run(path, {"x": np.array([0, 3, 1], np.float32)})
    assert outputs["classLabel"] == labels[1]
    assert list(outputs["classLabel_probs"]) == labels
    wanted = torch.softmax(torch.tensor([0.0, 3, 1]), 0).tolist()
    assert list(outputs["classLabel_probs"].values()) == pytest.approx(wanted, abs=1e-3)


def test_a_classifier_declared_as_an_array_is_refused(silent: Any, tmp_path: Path) -> None:
    path = classifier(silent, tmp_path / "c.mlpackage", ["cat", "dog", "gnu"])
    from coremltools.proto import Model_pb2

    (file,) = path.rglob("*.mlmodel")
    model = Model_pb2.Model.FromString(file.read_bytes())
    model.description.output[0].type.int64Type.SetInParent()
    file.write_bytes(model.SerializeToString())
    with pytest.raises(DamagedPackageError, match="declares classLabel as a int64 but it is a string"):
        load_mlpackage(path)


def classifier(silent: Any, path: Path, labels: list[Any]) -> Path:
    with silent():
        import coremltools as ct

        @mb.program(input_specs=[mb.TensorSpec((3,))], opset_version=ct.target.iOS16)
        def program(x: Any) -> Any:
            return mb.softmax(x=x, axis=-1)

        model = ct.convert(
            program,
            minimum_deployment_target=ct.target.iOS16,
            classifier_config=ct.ClassifierConfig(labels),
            skip_model_load=True,
        )
        model.save(str(path))
    return path


def run(path: Path, inputs: dict[str, NDArray[Any]], **options: Any) -> dict[str, Any]:
    return Interpreter(load_mlpackage(path).functions["main"], component="one").run(inputs, **options)


# --- lists ---


def test_a_list_is_written_read_gathered_and_grows(evaluated: Evaluated) -> None:
    def collect(x: Any) -> Any:
        made = mb.make_list(init_length=2, elem_shape=(3,), dtype="fp32")
        made = mb.list_write(ls=made, index=3, value=mb.mul(x=x, y=2.0))
        made = mb.list_scatter(
            ls=made, indices=[0, 1], value=mb.stack(values=[x, mb.add(x=x, y=1.0)], axis=0)
        )
        made = mb.list_write(ls=made, index=0, value=mb.list_read(ls=made, index=3))
        length = mb.cast(x=mb.list_length(ls=made), dtype="fp32")
        return mb.mul(x=mb.list_gather(ls=made, indices=[0, 1, 3]), y=length)

    x = np.array([1, 2, 3], np.float32)
    found = evaluated(collect, {"x": x})
    np.testing.assert_array_equal(found, 4 * np.stack([2 * x, x + 1, 2 * x]))


def test_what_was_not_written_is_zero(evaluated: Evaluated) -> None:
    """As in coremltools' own test, in its wheel."""

    def read(x: Any) -> Any:
        fresh = mb.list_read(ls=mb.make_list(init_length=2, elem_shape=(3,), dtype="fp32"), index=1)
        made = mb.make_list(init_length=1, elem_shape=(3,), dtype="fp32")
        grown = mb.list_gather(ls=mb.list_write(ls=made, index=2, value=x), indices=[0, 1, 2])
        return mb.concat(values=[mb.expand_dims(x=fresh, axes=[0]), grown], axis=0)

    x = np.array([1, 2, 3], np.float32)
    found = evaluated(read, {"x": x})
    np.testing.assert_array_equal(found, [[0, 0, 0]] * 3 + [x])


def test_a_list_goes_round_a_loop(evaluated: Evaluated) -> None:
    def collect(x: Any) -> Any:
        _, made = mb.while_loop(
            _cond=lambda step, _: mb.less(x=step, y=3),
            _body=lambda step, made: (
                mb.add(x=step, y=1),
                mb.list_write(ls=made, index=step, value=mb.mul(x=x, y=mb.cast(x=step, dtype="fp32"))),
            ),
            loop_vars=(0, mb.make_list(init_length=3, elem_shape=(3,), dtype="fp32")),
        )
        return mb.list_gather(ls=made, indices=[2, 1])

    x = np.array([1, 2, 3], np.float32)
    np.testing.assert_array_equal(evaluated(collect, {"x": x}), [2 * x, x])


@pytest.mark.parametrize(
    ("index", "dynamic", "message"),
    [
        (5, True, "reads element 5 of 2"),
        (0, False, "writes element 3 of 2"),
    ],
)
def test_a_list_has_no_other_elements(evaluated: Evaluated, index: int, dynamic: bool, message: str) -> None:
    def read(x: Any) -> Any:
        made = mb.make_list(init_length=2, elem_shape=(3,), dtype="fp32", dynamic_length=dynamic)
        made = mb.list_write(ls=made, index=0 if dynamic else 3, value=x)
        return mb.list_read(ls=made, index=index)

    with pytest.raises(EvaluationError, match=message):
        evaluated(read, {"x": np.zeros(3, np.float32)})


def test_a_list_on_the_way_cannot_be_given(build_program: Any, save_program: Any, tmp_path: Path) -> None:
    def read(x: Any) -> Any:
        made = mb.make_list(init_length=2, elem_shape=(3,), dtype="fp32")
        return mb.list_read(ls=mb.list_write(ls=made, index=0, value=x, name="written"), index=0)

    inputs = {"x": np.zeros(3, np.float32)}
    save_program(build_program(inputs, {"it": read}), tmp_path / "list.mlpackage")
    with pytest.raises(InputError, match="a list is no result that can be given"):
        run(tmp_path / "list.mlpackage", inputs, also=["written"])
