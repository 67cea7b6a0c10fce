"""Sampling of images at given points (defs/iOS15-17/image_resizing.py), x [B, C, H, W]."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from mobile_o_export.backends.coreml.interpreter.registry import Call, Result, implements


def _bilinear(x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """``x`` [C, H, W] between its pixels, those beyond its edges being zero.

    Args:
        x: the image.
        rows: heights in pixels, of any shape.
        columns: widths in pixels, of the same shape.

    Returns:
        [C, *rows.shape].
    """
    top, left = rows.floor(), columns.floor()
    down, right = rows - top, columns - left
    return sum(
        (
            _pixels(x, top + below, left + beside)
            * (down if below else 1 - down)
            * (right if beside else 1 - right)
            for below in (0, 1)
            for beside in (0, 1)
        ),
        start=torch.zeros(()),
    )


def _pixels(x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """``x`` [C, H, W] at whole ``rows`` and ``columns``, zero beyond its edges."""
    height, width = x.shape[-2:]
    inside = _inside(rows, height) & _inside(columns, width)
    # NaN and infinity have no integer; they lie outside.
    places = [torch.where(inside, values, 0).long() for values in (rows, columns)]
    return torch.where(inside, x[:, places[0], places[1]], 0)


def _inside(points: Tensor, size: int) -> Tensor:
    return (points >= 0) & (points <= size - 1)


@implements(
    "resample",
    "x coordinates sampling_mode padding_mode padding_value coordinates_mode align_corners",
)
def _resample(call: Call) -> Result:
    """``coordinates`` [B, H2, W2, 2] are (column, row)."""
    x, mode = call.tensor("x"), call.text("sampling_mode", "").lower()
    padding = call.text("padding_mode", "").lower()
    outside = call.number("padding_value", 0.0) if padding == "constant" else 0.0
    if mode not in ("bilinear", "nearest"):
        raise call.unsupported(f"sampling_mode {mode!r}")
    height, width = x.shape[-2:]
    points = call.tensor("coordinates").to(x.dtype)
    columns = _inwards(call, _in_pixels(call, points[..., 0], width), width, padding)
    rows = _inwards(call, _in_pixels(call, points[..., 1], height), height, padding)
    sampled = [
        # Pixels beyond the edges are zero where the padding is taken off first.
        (_bilinear if mode == "bilinear" else _nearest)(image - outside, row, column) + outside
        for image, row, column in zip(x, rows, columns, strict=True)
    ]
    return torch.stack(sampled)


def _nearest(x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    return _pixels(x, rows.round(), columns.round())


def _in_pixels(call: Call, points: Tensor, size: int) -> Tensor:
    """Coordinates of ``coordinates_mode`` in pixels, 0 being the centre of the first."""
    mode = call.text("coordinates_mode", "").lower()
    if mode == "unnormalized":
        return points
    if mode == "normalized_minus_one_to_one":
        points = (points + 1) / 2
    elif mode != "normalized_zero_to_one":
        raise call.unsupported(f"coordinates_mode {mode!r}")
    return points * (size - 1) if call.flag("align_corners", True) else points * size - 0.5


def _inwards(call: Call, points: Tensor, size: int, padding: str) -> Tensor:
    """``points`` that lie outside where ``padding`` finds their values; "constant" leaves them."""
    last = size - 1
    if padding == "constant":
        return points
    if padding == "reflection":
        points = last - (points.remainder(2 * last) - last).abs() if last else points
    elif padding == "symmetric":
        points = size - ((points + 0.5).remainder(2 * size) - size).abs() - 0.5
    elif padding != "border":
        raise call.unsupported(f"padding_mode {padding!r}")
    return points.clamp(0, last)


@implements(
    "affine",
    "x transform_matrix output_height output_width sampling_mode padding_mode padding_value "
    "coordinates_mode align_corners",
)
def _affine(call: Call) -> Result:
    """Only what coremltools 9.0 lets pass: bilinear, zeros beyond the edges, corners aligned."""
    x, matrix = call.tensor("x"), call.tensor("transform_matrix")
    given = {
        "sampling_mode": "bilinear",
        "padding_mode": "constant",
        "coordinates_mode": "normalized_minus_one_to_one",
    }
    for name, wanted in given.items():
        if call.text(name, wanted).lower() != wanted:
            raise call.unsupported(f"{name} {call.text(name, wanted)!r}")
    if not call.flag("align_corners", True) or call.number("padding_value", 0.0):
        raise call.unsupported("another padding than zero, or corners that are not aligned")
    size = [len(x), x.shape[1], call.integer("output_height", 1), call.integer("output_width", 1)]
    grid = functional.affine_grid(matrix.reshape(-1, 2, 3).expand(len(x), 2, 3), size, align_corners=True)
    return functional.grid_sample(x, grid, align_corners=True)


CORNERS = {
    "CORNERS_HEIGHT_FIRST": (0, 1, 2, 3),
    "CORNERS_WIDTH_FIRST": (1, 0, 3, 2),
    "CENTER_SIZE_HEIGHT_FIRST": (0, 1, 2, 3),
    "CENTER_SIZE_WIDTH_FIRST": (1, 0, 3, 2),
}
"""Where ``box_coordinate_mode`` has height and width: of the start or centre, of the end or size."""


@implements(
    "crop_resize",
    "x",
    "roi boxes box_indices target_height target_width normalized_coordinates spatial_scale "
    "box_coordinate_mode sampling_mode pad_value",
)
def _crop_resize(call: Call) -> Result:
    """``roi`` [N, 1, 4 or 5, 1, 1] up to iOS 16, ``boxes`` [N, 4] and ``box_indices`` [N] from iOS 17.

    Four numbers of ``roi`` crop every image of x, [N, B, C, h, w]; five name theirs first, [N, 1, C, h, w].
    """
    x = call.tensor("x")
    if call.has("boxes"):
        boxes = call.tensor("boxes").float()
        indices = call.tensor("box_indices") if call.has("box_indices") else torch.arange(len(boxes))
        return torch.stack(
            [_crop(call, x[int(index)], box) for index, box in zip(indices, boxes, strict=True)]
        )
    regions = call.tensor("roi").flatten(1)
    if regions.shape[1] == 5:
        return torch.stack([_crop(call, x[int(region[0])], region[1:])[None] for region in regions])
    return torch.stack([torch.stack([_crop(call, image, region) for image in x]) for region in regions])


def _crop(call: Call, image: Tensor, box: Tensor) -> Tensor:
    """The ``box`` of four numbers out of ``image`` [C, H, W], resized; ``pad_value`` beyond its edges."""
    mode = call.text("box_coordinate_mode", "CORNERS_HEIGHT_FIRST")
    if mode not in CORNERS:
        raise call.unsupported(f"box_coordinate_mode {mode!r}")
    top, left, bottom, right = (
        float(box[place]) * call.number("spatial_scale", 1.0) for place in CORNERS[mode]
    )
    if mode.startswith("CENTER"):
        top, bottom = top - bottom / 2, top + bottom / 2
        left, right = left - right / 2, left + right / 2
    height, width = image.shape[-2:]
    if call.flag("normalized_coordinates", False):
        top, bottom = top * (height - 1), bottom * (height - 1)
        left, right = left * (width - 1), right * (width - 1)
    rows, columns = torch.meshgrid(
        _between(call, top, bottom, call.integer("target_height", 1)),
        _between(call, left, right, call.integer("target_width", 1)),
        indexing="ij",
    )
    inside = _inside(rows, height) & _inside(columns, width)
    return torch.where(inside, _bilinear(image, rows, columns), call.number("pad_value", 0.0))


def _between(call: Call, start: float, end: float, count: int) -> Tensor:
    """``count`` points from ``start`` to ``end``: those of ``resize_bilinear`` for 0 and size - 1."""
    mode, index = call.text("sampling_mode", "DEFAULT"), torch.arange(count, dtype=torch.float32)
    if mode in ("STRICT_ALIGN_CORNERS", "ALIGN_CORNERS"):
        if count == 1:
            return index + (start if mode.startswith("STRICT") else (start + end) / 2)
        return start + index * ((end - start) / (count - 1))
    if mode == "DEFAULT":
        return start + index * ((end - start + 1) / count)
    if mode == "OFFSET_CORNERS":
        return start + (index + 0.5) * (max(1.0, end - start) / count)
    if mode == "UNALIGN_CORNERS":
        return start + (index + 0.5) * ((end - start + 1) / count) - 0.5
    raise call.unsupported(f"sampling_mode {mode!r}")
