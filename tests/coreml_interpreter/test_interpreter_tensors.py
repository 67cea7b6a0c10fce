"""Products, norms, reductions, shapes, slices and scatters against NumPy and torch."""

import numpy as np
import pytest
import torch

from mobile_o_export.quiet import quiet_vendor

with quiet_vendor():
    from coremltools.converters.mil.mil import Builder as mb  # noqa: N813

F = torch.nn.functional
rng = np.random.default_rng(2)


def random(*shape):
    return rng.standard_normal(shape).astype(np.float32)


INPUTS = {
    "x": random(2, 3, 4),
    "y": random(2, 4, 5),
    "q": random(1, 2, 3, 4),
    "k": random(1, 2, 6, 4),
    "v": random(1, 2, 6, 5),
    "c": random(2, 8, 4, 6),
    "i": rng.integers(-5, 5, (3, 4)).astype(np.int32),
    "at": np.array([1], np.int32),
}
WEIGHT, BIAS, VECTOR = random(7, 4), random(7), random(4)
GAMMA, BETA, MASK = random(4), random(4), random(3, 6)
CHANNEL = [random(8), np.abs(random(8)) + 0.5, random(8), random(8)]
PLANE = random(3, 4)


def t(array):
    return torch.from_numpy(np.array(array))


def attention(q, k, v, mask=0.0):
    scores = q @ k.swapaxes(-1, -2) / 2.0 + mask
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return (weights / weights.sum(-1, keepdims=True)) @ v


PRODUCTS = {
    "linear": (
        lambda **a: mb.linear(x=a["x"], weight=WEIGHT, bias=BIAS),
        lambda **a: a["x"] @ WEIGHT.T + BIAS,
    ),
    "linear_no_bias": (lambda **a: mb.linear(x=a["x"], weight=WEIGHT), lambda **a: a["x"] @ WEIGHT.T),
    "matmul": (lambda **a: mb.matmul(x=a["x"], y=a["y"]), lambda **a: a["x"] @ a["y"]),
    "matmul_transposed": (
        lambda **a: mb.matmul(x=a["y"], y=a["x"], transpose_x=True, transpose_y=True),
        lambda **a: a["y"].swapaxes(1, 2) @ a["x"].swapaxes(1, 2),
    ),
    "matmul_broadcast": (lambda **a: mb.matmul(x=a["q"], y=a["y"]), lambda **a: a["q"] @ a["y"]),
    "matmul_vector": (
        lambda **a: mb.matmul(x=VECTOR, y=mb.reduce_sum(x=a["y"], axes=[0])),
        lambda **a: VECTOR @ a["y"].sum(0),
    ),
    "einsum": (
        lambda **a: mb.einsum(
            values=(a["c"], mb.transpose(x=a["c"], perm=[0, 3, 2, 1])), equation="nchw,nwhu->nchu"
        ),
        lambda **a: np.einsum("nchw,nwhu->nchu", a["c"], a["c"].transpose(0, 3, 2, 1)),
    ),
    "attention": (
        lambda **a: mb.scaled_dot_product_attention(query=a["q"], key=a["k"], value=a["v"]),
        lambda **a: attention(a["q"], a["k"], a["v"]),
    ),
    "attention_mask": (
        lambda **a: mb.scaled_dot_product_attention(query=a["q"], key=a["k"], value=a["v"], attn_mask=MASK),
        lambda **a: attention(a["q"], a["k"], a["v"], MASK),
    ),
    "attention_bool": (
        lambda **a: mb.scaled_dot_product_attention(
            query=a["q"], key=a["k"], value=a["v"], attn_mask=np.tri(3, 6, dtype=bool)
        ),
        lambda **a: attention(a["q"], a["k"], a["v"], np.where(np.tri(3, 6, dtype=bool), 0, -np.inf)),
    ),
}
NORMS = {
    "layer_norm": (
        lambda **a: mb.layer_norm(x=a["x"], axes=[-1], gamma=GAMMA, beta=BETA, epsilon=1e-3),
        lambda **a: F.layer_norm(t(a["x"]), (4,), t(GAMMA), t(BETA), 1e-3),
    ),
    "layer_norm_two_axes": (
        lambda **a: mb.layer_norm(x=a["x"], axes=[1, 2], gamma=PLANE, beta=PLANE),
        lambda **a: F.layer_norm(t(a["x"]), (3, 4), t(PLANE), t(PLANE)),
    ),
    "layer_norm_middle": (
        lambda **a: mb.layer_norm(x=a["y"], axes=[1], gamma=GAMMA),
        lambda **a: F.layer_norm(t(a["y"]).transpose(1, 2), (4,), t(GAMMA)).transpose(1, 2),
    ),
    "instance_norm": (
        lambda **a: mb.instance_norm(x=a["c"], gamma=CHANNEL[2], beta=CHANNEL[3], epsilon=1e-4),
        lambda **a: F.instance_norm(t(a["c"]), None, None, t(CHANNEL[2]), t(CHANNEL[3]), eps=1e-4),
    ),
    "batch_norm": (
        lambda **a: mb.batch_norm(
            x=a["c"], mean=CHANNEL[0], variance=CHANNEL[1], gamma=CHANNEL[2], beta=CHANNEL[3], epsilon=1e-3
        ),
        lambda **a: F.batch_norm(t(a["c"]), *map(t, CHANNEL), eps=1e-3),
    ),
    "l2_norm": (
        lambda **a: mb.l2_norm(x=a["c"], epsilon=1e-2),
        lambda **a: a["c"] / np.sqrt((a["c"] ** 2).sum((1, 2, 3), keepdims=True) + 1e-2),
    ),
    "local_response_norm": (
        lambda **a: mb.local_response_norm(x=a["c"], size=3, alpha=0.5, beta=0.6, k=1.2),
        lambda **a: F.local_response_norm(t(a["c"]), 3, 0.5, 0.6, 1.2),
    ),
}


def reduction(op, expected, positive=False):
    def build(**a):
        x = mb.abs(x=a["x"]) if positive else a["x"]
        reduce = getattr(mb, f"reduce_{op}")
        return (
            reduce(x=x, axes=[0, -1], keep_dims=True),
            reduce(x=x, axes=[1]),
            mb.expand_dims(x=reduce(x=x), axes=[0]),
        )

    def want(**a):
        x = np.abs(a["x"]) if positive else a["x"]
        return expected(x, (0, 2), True), expected(x, (1,), False), expected(x, (0, 1, 2), False).reshape(1)

    return build, want


REDUCTIONS = {
    "mean": reduction("mean", lambda x, axes, keep: x.mean(axes, keepdims=keep)),
    "sum": reduction("sum", lambda x, axes, keep: x.sum(axes, keepdims=keep)),
    "max": reduction("max", lambda x, axes, keep: x.max(axes, keepdims=keep)),
    "min": reduction("min", lambda x, axes, keep: x.min(axes, keepdims=keep)),
    "prod": reduction("prod", lambda x, axes, keep: x.prod(axes, keepdims=keep)),
    "l1_norm": reduction("l1_norm", lambda x, axes, keep: np.abs(x).sum(axes, keepdims=keep)),
    "l2_norm": reduction("l2_norm", lambda x, axes, keep: np.sqrt((x * x).sum(axes, keepdims=keep))),
    "log_sum": reduction("log_sum", lambda x, axes, keep: np.log(x.sum(axes, keepdims=keep)), positive=True),
    "log_sum_exp": reduction("log_sum_exp", lambda x, axes, keep: np.log(np.exp(x).sum(axes, keepdims=keep))),
    "sum_square": reduction("sum_square", lambda x, axes, keep: (x * x).sum(axes, keepdims=keep)),
    "argmax": (
        lambda **a: (mb.reduce_argmax(x=a["x"], axis=1), mb.reduce_argmax(x=a["x"], axis=-1, keep_dims=True)),
        lambda **a: (a["x"].argmax(1), a["x"].argmax(-1, keepdims=True)),
    ),
    "argmin": (lambda **a: mb.reduce_argmin(x=a["x"], axis=2), lambda **a: a["x"].argmin(2)),
    "argsort": (
        lambda **a: (mb.argsort(x=a["x"], axis=1), mb.argsort(x=a["x"], axis=2, ascending=True)),
        lambda **a: (np.argsort(-a["x"], 1), np.argsort(a["x"], 2)),
    ),
    "topk": (
        lambda **a: mb.topk(x=a["x"], k=2, axis=2),
        lambda **a: (-np.sort(-a["x"], 2)[..., :2], np.argsort(-a["x"], 2)[..., :2]),
    ),
    "topk_ascending": (
        lambda **a: mb.topk(x=a["x"], k=2, axis=1, ascending=True, return_indices=False),
        lambda **a: np.sort(a["x"], 1)[:, :2],
    ),
    "cumsum": (lambda **a: mb.cumsum(x=a["x"], axis=1), lambda **a: a["x"].cumsum(1)),
    "cumsum_exclusive_reverse": (
        lambda **a: mb.cumsum(x=a["i"], axis=1, exclusive=True, reverse=True),
        lambda **a: np.flip(np.flip(a["i"], 1).cumsum(1), 1) - a["i"],
    ),
}


def depth_to_space(x, block):
    """TensorFlow's definition, in its own NHWC order."""
    x = x.transpose(0, 2, 3, 1)
    batch, height, width, channels = x.shape
    x = x.reshape(batch, height, width, block, block, channels // block**2).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(batch, height * block, width * block, -1).transpose(0, 3, 1, 2)


def moved(build, expected):
    return lambda **a: build(a), lambda **a: expected(a)


SHAPES = {
    "reshape": moved(lambda a: mb.reshape(x=a["x"], shape=[4, -1]), lambda a: a["x"].reshape(4, 6)),
    "reshape_zero": moved(
        lambda a: mb.reshape(x=a["x"], shape=[1, 0, -1, 0]), lambda a: a["x"].reshape(1, 2, 3, 4)
    ),
    "reshape_like": moved(
        lambda a: mb.reshape_like(
            x=a["x"], ref_tensors=(a["i"], a["y"]), begins=(0, 0), ends=(2, 1), end_masks=(False, False)
        ),
        lambda a: a["x"].reshape(3, 4, 2),
    ),
    "transpose": moved(
        lambda a: mb.transpose(x=a["x"], perm=[2, 0, -2]), lambda a: a["x"].transpose(2, 0, 1)
    ),
    "squeeze": moved(lambda a: mb.squeeze(x=a["q"], axes=[0]), lambda a: a["q"][0]),
    "squeeze_all": moved(lambda a: mb.squeeze(x=a["q"]), lambda a: a["q"][0]),
    "expand_dims": moved(
        lambda a: mb.expand_dims(x=a["i"], axes=[0, -1]), lambda a: a["i"][None, :, :, None]
    ),
    "flatten2d": moved(lambda a: mb.flatten2d(x=a["q"], axis=2), lambda a: a["q"].reshape(2, 12)),
    "concat": moved(
        lambda a: mb.concat(values=(a["x"], a["x"]), axis=-1), lambda a: np.concatenate((a["x"], a["x"]), -1)
    ),
    "concat_interleave": moved(
        lambda a: mb.concat(values=(a["i"], mb.mul(x=a["i"], y=10)), axis=0, interleave=True),
        lambda a: np.stack((a["i"], a["i"] * 10), 1).reshape(6, 4),
    ),
    "stack": moved(
        lambda a: mb.stack(values=(a["x"], a["x"]), axis=1), lambda a: np.stack((a["x"], a["x"]), 1)
    ),
    "split": moved(lambda a: mb.split(x=a["x"], num_splits=2, axis=2), lambda a: np.split(a["x"], 2, 2)),
    "split_sizes": moved(
        lambda a: mb.split(x=a["x"], split_sizes=[1, 2], axis=1), lambda a: np.split(a["x"], [1], 1)
    ),
    "tile": moved(lambda a: mb.tile(x=a["i"], reps=[2, 3]), lambda a: np.tile(a["i"], (2, 3))),
    "reverse": moved(lambda a: mb.reverse(x=a["x"], axes=[0, 2]), lambda a: a["x"][::-1, :, ::-1]),
    "reverse_all": moved(lambda a: mb.reverse(x=a["x"]), lambda a: a["x"][::-1, ::-1, ::-1]),
    "sliding_windows": moved(
        lambda a: mb.sliding_windows(x=a["c"], axis=1, size=3, stride=2),
        lambda a: np.stack([a["c"][:, start : start + 3] for start in (0, 2, 4)], 1),
    ),
    "pixel_shuffle": moved(
        lambda a: mb.pixel_shuffle(x=a["c"], upscale_factor=2), lambda a: F.pixel_shuffle(t(a["c"]), 2)
    ),
    "pixel_unshuffle": moved(
        lambda a: mb.pixel_unshuffle(x=a["c"], downscale_factor=np.uint32(2)),
        lambda a: F.pixel_unshuffle(t(a["c"]), 2),
    ),
    "depth_to_space": moved(
        lambda a: mb.depth_to_space(x=a["c"], block_size=2), lambda a: depth_to_space(a["c"], 2)
    ),
    "space_to_depth": moved(
        lambda a: mb.space_to_depth(x=mb.depth_to_space(x=a["c"], block_size=2), block_size=2),
        lambda a: a["c"],
    ),
    "shape": moved(lambda a: mb.shape(x=a["c"]), lambda a: np.array([2, 8, 4, 6])),
    "fill": moved(lambda a: mb.fill(shape=[2, 3], value=1.5), lambda a: np.full((2, 3), 1.5, np.float32)),
    "fill_like": moved(lambda a: mb.fill_like(ref_tensor=a["x"], value=7), lambda a: np.full((2, 3, 4), 7)),
    "range_1d": moved(
        lambda a: mb.range_1d(start=mb.squeeze(x=a["at"]), end=8, step=3), lambda a: np.array([1, 4, 7])
    ),
    "one_hot": moved(
        lambda a: mb.one_hot(
            indices=mb.abs(x=a["i"]), one_hot_vector_size=6, axis=1, on_value=2.0, off_value=-1.0
        ),
        lambda a: np.where(np.arange(6)[:, None] == np.abs(a["i"])[:, None], 2.0, -1.0).astype(np.float32),
    ),
    "band_part": moved(lambda a: mb.band_part(x=a["i"], lower=0, upper=-1), lambda a: np.triu(a["i"])),
    "band_part_both": moved(
        lambda a: mb.band_part(x=a["x"], lower=1, upper=1), lambda a: np.tril(np.triu(a["x"], -1), 1)
    ),
    "non_zero": moved(lambda a: mb.non_zero(x=a["i"]), lambda a: np.argwhere(a["i"])),
}


def updated(array, place, value):
    array = array.copy()
    array[place] = value
    return array


ROWS = np.array([2, 0], np.int32)
REPEATED = np.array([2, 0, 2], np.int32)
COLUMNS = np.array([[0, 3], [1, 1], [2, 0]], np.int32)
PAIRS = np.array([[0, 1], [2, 3], [0, 1]], np.int32)


def scattered(function, array, place, values):
    array = array.copy()
    function.at(array, place, values)
    return array


def divided(array, place, values):
    array = array.copy()
    for row, value in zip(place, values, strict=True):
        array[row] /= value
    return array


UPDATE = np.abs(random(3, 4)) + 0.5
INDEXING = {
    "slice": moved(
        lambda a: mb.slice_by_index(x=a["x"], begin=[0, -2, 3], end=[1, 3, 0], stride=[1, 1, -2]),
        lambda a: a["x"][0:1, -2:3, 3:0:-2],
    ),
    "slice_masks": moved(
        lambda a: mb.slice_by_index(
            x=a["x"],
            begin=[9, 1, 1],
            end=[9, 9, -1],
            begin_mask=[True, False, False],
            end_mask=[True, True, False],
            stride=[1, 2, 1],
        ),
        lambda a: a["x"][:, 1::2, 1:-1],
    ),
    "slice_squeeze": moved(
        lambda a: mb.slice_by_index(
            x=a["x"],
            begin=[1, 0, -1],
            end=[0, 0, 0],
            end_mask=[False, True, False],
            squeeze_mask=[True, False, True],
        ),
        lambda a: a["x"][1, :, -1],
    ),
    "slice_dynamic": moved(
        lambda a: mb.slice_by_index(
            x=a["i"],
            begin=mb.concat(values=(a["at"], np.array([0], np.int32)), axis=0),
            end=mb.concat(values=(mb.add(x=a["at"], y=1), np.array([4], np.int32)), axis=0),
        ),
        lambda a: a["i"][1:2],
    ),
    "slice_by_size": moved(
        lambda a: mb.slice_by_size(x=a["x"], begin=[0, 1, 2], size=[2, 1, -1]), lambda a: a["x"][:, 1:2, 2:]
    ),
    "slice_update": moved(
        lambda a: mb.slice_update(
            x=a["x"], update=np.ones((2, 1, 2), np.float32), begin=[0, 1, 0], end=[2, 2, 4], stride=[1, 1, 2]
        ),
        lambda a: updated(a["x"], np.s_[:, 1:2, ::2], 1),
    ),
    "slice_update_squeeze": moved(
        lambda a: mb.slice_update(
            x=a["x"],
            update=PLANE,
            begin=[1, 0, 0],
            end=[0, 0, 0],
            end_mask=[False, True, True],
            squeeze_mask=[True, False, False],
        ),
        lambda a: updated(a["x"], 1, PLANE),
    ),
    "slice_update_backwards": moved(
        lambda a: mb.slice_update(
            x=a["i"],
            update=np.arange(12, dtype=np.int32).reshape(3, 4),
            begin=[2, 0],
            end=[0, 4],
            stride=[-1, 1],
            begin_mask=[True, False],
            end_mask=[True, False],
        ),
        lambda a: np.arange(12).reshape(3, 4)[::-1],
    ),
    "gather": moved(lambda a: mb.gather(x=a["x"], indices=ROWS, axis=1), lambda a: a["x"][:, ROWS]),
    "gather_2d": moved(
        lambda a: mb.gather(x=a["x"], indices=COLUMNS, axis=-1), lambda a: a["x"][:, :, COLUMNS]
    ),
    "gather_batch": moved(
        lambda a: mb.gather(x=a["y"], indices=COLUMNS[:2], axis=2, batch_dims=1),
        lambda a: np.stack([a["y"][0][:, COLUMNS[0]], a["y"][1][:, COLUMNS[1]]]),
    ),
    "gather_along_axis": moved(
        lambda a: mb.gather_along_axis(x=a["i"], indices=COLUMNS, axis=1),
        lambda a: np.take_along_axis(a["i"], COLUMNS, 1),
    ),
    "gather_nd": moved(
        lambda a: mb.gather_nd(x=a["i"], indices=PAIRS), lambda a: a["i"][PAIRS[:, 0], PAIRS[:, 1]]
    ),
    "gather_nd_batch": moved(
        lambda a: mb.gather_nd(x=a["x"], indices=np.array([[[2], [0]], [[1], [1]]], np.int32), batch_dims=1),
        lambda a: np.stack([a["x"][0][[2, 0]], a["x"][1][[1, 1]]]),
    ),
    "scatter_add": moved(
        lambda a: mb.scatter(
            data=a["i"], indices=REPEATED, updates=np.ones((3, 4), np.int32), axis=0, mode="add"
        ),
        lambda a: scattered(np.add, a["i"], REPEATED, 1),
    ),
    "scatter_update": moved(
        lambda a: mb.scatter(
            data=a["i"], indices=ROWS, updates=np.ones((3, 2), np.int32), axis=1, mode="update"
        ),
        lambda a: updated(a["i"], np.s_[:, ROWS], 1),
    ),
    "scatter_along_axis": moved(
        lambda a: mb.scatter_along_axis(data=a["i"], indices=COLUMNS, updates=COLUMNS, axis=1, mode="update"),
        lambda a: np.array(
            [
                [0, a["i"][0, 1], a["i"][0, 2], 3],
                [a["i"][1, 0], 1, *a["i"][1, 2:]],
                [0, a["i"][2, 1], 2, a["i"][2, 3]],
            ]
        ),
    ),
    "scatter_nd": moved(
        lambda a: mb.scatter_nd(
            data=a["i"], indices=PAIRS, updates=np.array([5, 6, 7], np.int32), mode="add"
        ),
        lambda a: scattered(np.add, a["i"], (PAIRS[:, 0], PAIRS[:, 1]), [5, 6, 7]),
    ),
}
for _mode, _function in {
    "sub": np.subtract,
    "mul": np.multiply,
    "max": np.maximum,
    "min": np.minimum,
}.items():
    INDEXING[f"scatter_{_mode}"] = (
        lambda mode=_mode, **a: mb.scatter(
            data=mb.slice_by_index(
                x=a["x"], begin=[0, 0, 0], end=[0, 3, 4], squeeze_mask=[True, False, False]
            ),
            indices=REPEATED,
            updates=UPDATE,
            axis=0,
            mode=mode,
        ),
        lambda function=_function, **a: scattered(function, a["x"][0], REPEATED, UPDATE),
    )
INDEXING["scatter_div"] = (
    lambda **a: mb.scatter_nd(
        data=a["x"], indices=np.array([[1], [0]], np.int32), updates=np.stack([UPDATE, UPDATE]), mode="div"
    ),
    lambda **a: divided(a["x"], [1, 0], [UPDATE, UPDATE]),
)


@pytest.mark.parametrize("name", PRODUCTS)
def test_products(check, name):
    check("products", INPUTS, PRODUCTS, name)


@pytest.mark.parametrize("name", NORMS)
def test_norms(check, name):
    check("norms", INPUTS, NORMS, name)


@pytest.mark.parametrize("name", REDUCTIONS)
def test_reductions(check, name):
    check("reductions", INPUTS, REDUCTIONS, name)


@pytest.mark.parametrize("name", SHAPES)
def test_shapes(check, name):
    check("shapes", INPUTS, SHAPES, name)


@pytest.mark.parametrize("name", INDEXING)
def test_indexing(check, name):
    check("indexing", INPUTS, INDEXING, name)
