"""Convolutions, pooling and resizing against torch."""

import numpy as np
import pytest
import torch

from mobile_o_export.quiet import quiet_vendor

with quiet_vendor():
    from coremltools.converters.mil.mil import Builder as mb  # noqa: N813

F = torch.nn.functional
rng = np.random.default_rng(1)


def random(*shape):
    return rng.standard_normal(shape).astype(np.float32)


INPUTS = {"x1": random(2, 4, 11), "x2": random(2, 4, 8, 7), "x3": random(1, 4, 5, 4, 6)}
W1, W2, W3 = random(6, 4, 3), random(6, 4, 3, 2), random(2, 4, 3, 3, 2)
GROUPED, DEPTHWISE = random(6, 2, 3, 3), random(4, 1, 5, 5)
BIAS = random(6)
T1, T2, T3 = random(4, 3, 4), random(4, 3, 3, 3), random(4, 2, 2, 3, 2)
T2_GROUPED, BIAS3, BIAS6 = random(4, 3, 3, 3), random(3), random(6)


def t(array):
    return torch.from_numpy(np.asarray(array))


def conv(source, weight, bias, expected, **options):
    given = {"bias": bias} if bias is not None else {}
    return (
        lambda **v: mb.conv(x=v[source], weight=weight, **given, **options),
        lambda **v: expected(t(v[source]), t(weight), None if bias is None else t(bias)),
    )


CONV = {
    "1d_valid": conv("x1", W1, BIAS, lambda x, w, b: F.conv1d(x, w, b), pad_type="valid"),
    "1d_strided": conv(
        "x1", W1, None, lambda x, w, b: F.conv1d(x, w, None, 3, 2), pad_type="custom", pad=[2, 2], strides=[3]
    ),
    "2d_custom": conv(
        "x2",
        W2,
        BIAS,
        lambda x, w, b: F.conv2d(F.pad(x, (3, 0, 1, 2)), w, b, (2, 1)),
        pad_type="custom",
        pad=[1, 2, 3, 0],
        strides=[2, 1],
    ),
    "2d_symmetric": conv(
        "x2", W2, BIAS, lambda x, w, b: F.conv2d(x, w, b, 1, (1, 2)), pad_type="custom", pad=[1, 1, 2, 2]
    ),
    # 8 rows, kernel 3, stride 1: one row either side; 7 columns, kernel 2: the odd one after, or before.
    "2d_same": conv("x2", W2, None, lambda x, w, b: F.conv2d(F.pad(x, (0, 1, 1, 1)), w), pad_type="same"),
    "2d_same_lower": conv(
        "x2", W2, None, lambda x, w, b: F.conv2d(F.pad(x, (1, 0, 1, 1)), w), pad_type="same_lower"
    ),
    # 8 rows at stride 2 give 4: (4 - 1) * 2 + 3 - 8 = 1 row after.
    "2d_same_strided": conv(
        "x2",
        W2,
        None,
        lambda x, w, b: F.conv2d(F.pad(x, (0, 1, 0, 1)), w, None, 2),
        pad_type="same",
        strides=[2, 2],
    ),
    "2d_dilated": conv(
        "x2", W2, None, lambda x, w, b: F.conv2d(x, w, None, 1, 0, (2, 3)), pad_type="valid", dilations=[2, 3]
    ),
    "2d_grouped": conv(
        "x2", GROUPED, BIAS, lambda x, w, b: F.conv2d(x, w, b, groups=2), pad_type="valid", groups=2
    ),
    "2d_depthwise": conv(
        "x2",
        DEPTHWISE,
        None,
        lambda x, w, b: F.conv2d(x, w, None, 1, 2, groups=4),
        pad_type="custom",
        pad=[2, 2, 2, 2],
        groups=4,
    ),
    "3d": conv("x3", W3, None, lambda x, w, b: F.conv3d(x, w, None, 1, 1), pad_type="custom", pad=[1] * 6),
}


def deconv(source, weight, bias, expected, **options):
    given = {"bias": bias} if bias is not None else {}
    return (
        lambda **v: mb.conv_transpose(x=v[source], weight=weight, **given, **options),
        lambda **v: expected(t(v[source]), t(weight), None if bias is None else t(bias)),
    )


CONV_TRANSPOSE = {
    "1d": deconv("x1", T1, BIAS3, lambda x, w, b: F.conv_transpose1d(x, w, b, 2), strides=[2]),
    "2d_custom": deconv(
        "x2",
        T2,
        BIAS3,
        lambda x, w, b: F.conv_transpose2d(x, w, b, 2, 1),
        pad_type="custom",
        pad=[1, 1, 1, 1],
        strides=[2, 2],
    ),
    "2d_asymmetric": deconv(
        "x2",
        T2,
        None,
        lambda x, w, b: F.conv_transpose2d(x, w)[:, :, 1:, :-2],
        pad_type="custom",
        pad=[1, 0, 0, 2],
    ),
    "2d_output_padding": deconv(
        "x2",
        T2,
        BIAS3,
        lambda x, w, b: F.conv_transpose2d(x, w, b, 2, 1, 1),
        pad_type="custom",
        pad=[1, 1, 1, 1],
        strides=[2, 2],
        output_shape=[2, 3, 16, 14],
    ),
    # Here torch asks for rows past the full result: they hold the bias alone.
    "2d_past_the_end": deconv(
        "x2",
        T2,
        BIAS3,
        lambda x, w, b: F.conv_transpose2d(x, w, b, 4, 0, 3),
        pad_type="custom",
        pad=[0, 0, 0, 0],
        strides=[4, 4],
        output_shape=[2, 3, 34, 30],
    ),
    "2d_same": deconv(
        "x2",
        T2,
        None,
        lambda x, w, b: F.conv_transpose2d(x, w, None, 2)[:, :, :-1, :-1],
        pad_type="same",
        strides=[2, 2],
    ),
    "2d_grouped_dilated": deconv(
        "x2",
        T2_GROUPED,
        BIAS6,
        lambda x, w, b: F.conv_transpose2d(x, w, b, groups=2, dilation=2),
        groups=2,
        dilations=[2, 2],
    ),
    "3d": deconv("x3", T3, None, lambda x, w, b: F.conv_transpose3d(x, w)),
}


def pool(op, source, expected, **options):
    return lambda **v: getattr(mb, op)(x=v[source], **options), lambda **v: expected(t(v[source]))


POOL = {
    "avg_valid": pool(
        "avg_pool",
        "x2",
        lambda x: F.avg_pool2d(x, (3, 2), (2, 1)),
        kernel_sizes=[3, 2],
        strides=[2, 1],
        pad_type="valid",
    ),
    "avg_1d": pool(
        "avg_pool",
        "x1",
        lambda x: F.avg_pool1d(x, 3, 2, 1),
        kernel_sizes=[3],
        strides=[2],
        pad_type="custom",
        pad=[1, 1],
    ),
    "avg_3d": pool(
        "avg_pool",
        "x3",
        lambda x: F.avg_pool3d(x, 2, 2),
        kernel_sizes=[2, 2, 2],
        strides=[2, 2, 2],
        pad_type="valid",
    ),
    "avg_counts_padding": pool(
        "avg_pool",
        "x2",
        lambda x: F.avg_pool2d(x, 3, 2, 1),
        kernel_sizes=[3, 3],
        strides=[2, 2],
        pad_type="custom",
        pad=[1, 1, 1, 1],
    ),
    "avg_excludes_padding": pool(
        "avg_pool",
        "x2",
        lambda x: F.avg_pool2d(x, 3, 2, 1, count_include_pad=False),
        kernel_sizes=[3, 3],
        strides=[2, 2],
        pad_type="custom",
        pad=[1, 1, 1, 1],
        exclude_padding_from_average=True,
    ),
    "avg_ceil": pool(
        "avg_pool",
        "x2",
        lambda x: F.avg_pool2d(x, 3, 2, 1, ceil_mode=True),
        kernel_sizes=[3, 3],
        strides=[2, 2],
        pad_type="custom",
        pad=[1, 1, 1, 1],
        ceil_mode=True,
    ),
    "avg_ceil_excludes": pool(
        "avg_pool",
        "x2",
        lambda x: F.avg_pool2d(x, 3, 2, 1, ceil_mode=True, count_include_pad=False),
        kernel_sizes=[3, 3],
        strides=[2, 2],
        pad_type="custom",
        pad=[1, 1, 1, 1],
        ceil_mode=True,
        exclude_padding_from_average=True,
    ),
    "max_valid": pool(
        "max_pool", "x2", lambda x: F.max_pool2d(x, 2), kernel_sizes=[2, 2], strides=[2, 2], pad_type="valid"
    ),
    "max_padded": pool(
        "max_pool",
        "x2",
        lambda x: F.max_pool2d(x, 3, 2, 1),
        kernel_sizes=[3, 3],
        strides=[2, 2],
        pad_type="custom",
        pad=[1, 1, 1, 1],
    ),
    "max_ceil": pool(
        "max_pool",
        "x2",
        lambda x: F.max_pool2d(x, 2, 2, ceil_mode=True),
        kernel_sizes=[2, 2],
        strides=[2, 2],
        pad_type="valid",
        ceil_mode=True,
    ),
    "max_same": pool(
        "max_pool",
        "x1",
        lambda x: F.max_pool1d(F.pad(x, (0, 1), value=-99.0), 2, 1),
        kernel_sizes=[2],
        strides=[1],
        pad_type="same",
    ),
    "l2": pool(
        "l2_pool", "x2", lambda x: F.lp_pool2d(x, 2, 2), kernel_sizes=[2, 2], strides=[2, 2], pad_type="valid"
    ),
}


def resize(expected, build):
    return lambda **v: build(v["x2"]), lambda **v: expected(t(v["x2"]))


def documented(size, points):
    """Values of x2's rows at ``points``, each between its two neighbours."""

    def rows(x):
        low = [int(point) for point in points]
        high = [min(place + 1, size - 1) for place in low]
        weight = torch.tensor([point - place for point, place in zip(points, low, strict=True)])
        return x[:, :, low] * (1 - weight[:, None]) + x[:, :, high] * weight[:, None]

    return rows


def bilinear(mode, height, width):
    return lambda x: mb.resize_bilinear(
        x=x, target_size_height=height, target_size_width=width, sampling_mode=mode
    )


RESIZE = {
    "nearest_up": resize(
        lambda x: F.interpolate(x, scale_factor=(2, 3)),
        lambda x: mb.upsample_nearest_neighbor(x=x, scale_factor_height=2, scale_factor_width=3),
    ),
    "nearest_size": resize(
        lambda x: F.interpolate(x, (5, 9)),
        lambda x: mb.resize_nearest_neighbor(x=x, target_size_height=5, target_size_width=9),
    ),
    "bilinear_up": resize(
        lambda x: F.interpolate(x, scale_factor=2, mode="bilinear"),
        lambda x: mb.upsample_bilinear(x=x, scale_factor_height=2, scale_factor_width=2, align_corners=False),
    ),
    "bilinear_aligned": resize(
        lambda x: F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True),
        lambda x: mb.upsample_bilinear(x=x, scale_factor_height=2, scale_factor_width=2, align_corners=True),
    ),
    "bilinear_unalign": resize(
        lambda x: F.interpolate(x, (5, 13), mode="bilinear"), bilinear("UNALIGN_CORNERS", 5, 13)
    ),
    "bilinear_strict": resize(
        lambda x: F.interpolate(x, (5, 13), mode="bilinear", align_corners=True),
        bilinear("STRICT_ALIGN_CORNERS", 5, 13),
    ),
    # Sample points worked out by hand from the op's documentation for 8 rows to 4 and to 1.
    "bilinear_default": resize(documented(8, [0.0, 2.0, 4.0, 6.0]), bilinear("DEFAULT", 4, 7)),
    "bilinear_offset": resize(
        documented(8, [0.875, 2.625, 4.375, 6.125]),
        lambda x: mb.resize(x=x, shape=[4, 0], resized_dims=np.uint32(2), sampling_mode="OFFSET_CORNERS"),
    ),
    "bilinear_one": resize(documented(8, [3.5]), bilinear("ALIGN_CORNERS", 1, 7)),
    "resize_linear": resize(
        lambda x: F.interpolate(x, (16, 21), mode="bilinear"),
        lambda x: mb.resize(x=x, shape=[16, 21], resized_dims=np.uint32(2), sampling_mode="UNALIGN_CORNERS"),
    ),
    "resize_nearest": resize(
        lambda x: F.interpolate(x, (16, 7)),
        lambda x: mb.resize(
            x=x, shape=[16, 0], resized_dims=np.uint32(2), interpolation_mode="NEAREST_NEIGHBOR"
        ),
    ),
    "resize_nearest_exact": resize(
        lambda x: F.interpolate(x, (5, 9), mode="nearest-exact"),
        lambda x: mb.resize(
            x=x,
            shape=[5, 9],
            resized_dims=np.uint32(2),
            sampling_mode="UNALIGN_CORNERS",
            interpolation_mode="NEAREST_NEIGHBOR",
        ),
    ),
    "crop": resize(
        lambda x: x[:, :, 1:-2, 2:-1], lambda x: mb.crop(x=x, crop_height=[1, 2], crop_width=[2, 1])
    ),
    "pad_constant": resize(
        lambda x: F.pad(x, (1, 2, 0, 3), value=0.5),
        lambda x: mb.pad(x=x, pad=[0, 3, 1, 2], mode="constant", constant_val=0.5),
    ),
    "pad_reflect": resize(
        lambda x: F.pad(x, (3, 2, 1, 4), mode="reflect"),
        lambda x: mb.pad(x=x, pad=[1, 4, 3, 2], mode="reflect"),
    ),
    "pad_replicate": resize(
        lambda x: F.pad(x, (3, 2, 1, 4), mode="replicate"),
        lambda x: mb.pad(x=x, pad=[0, 0, 0, 0, 1, 4, 3, 2], mode="replicate"),
    ),
}


@pytest.mark.parametrize("name", CONV)
def test_conv(check, name):
    check("conv", INPUTS, CONV, name)


@pytest.mark.parametrize("name", CONV_TRANSPOSE)
def test_conv_transpose(check, name):
    check("conv_transpose", INPUTS, CONV_TRANSPOSE, name)


@pytest.mark.parametrize("name", POOL)
def test_pool(check, name):
    check("pool", INPUTS, POOL, name)


@pytest.mark.parametrize("name", RESIZE)
def test_resize(check, name):
    check("resize", INPUTS, RESIZE, name)
