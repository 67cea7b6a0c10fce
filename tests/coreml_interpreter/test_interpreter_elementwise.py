"""Elementwise operations and activations against NumPy and torch."""

import math

import numpy as np
import pytest
import torch

from mobile_o_export.quiet import quiet_vendor

with quiet_vendor():
    from coremltools.converters.mil.mil import Builder as mb  # noqa: N813

rng = np.random.default_rng(0)
INPUTS = {
    "x": rng.standard_normal((2, 3, 4)).astype(np.float32),
    "y": rng.standard_normal((3, 1)).astype(np.float32),
    "u": rng.uniform(0.05, 0.95, (2, 3, 4)).astype(np.float32),
    "i": rng.integers(-9, 9, (2, 3, 4)).astype(np.int32),
    "j": rng.integers(1, 5, (4,)).astype(np.int32),
}
erf = np.vectorize(math.erf)


def unary(op, expected, of="x"):
    return (
        lambda op=op, of=of, **v: getattr(mb, op)(x=v[of]),
        lambda of=of, expected=expected, **v: expected(v[of]),
    )


def binary(op, expected, first="x", second="y"):
    return (
        lambda **v: getattr(mb, op)(x=v[first], y=v[second]),
        lambda **v: expected(v[first], v[second]),
    )


def torched(function):
    return lambda x: function(torch.from_numpy(x)).numpy()


CHANNELS = np.array([0.5, -1.5, 2.0], np.float32)
UNARY = {
    "abs": unary("abs", np.abs),
    "abs_int": unary("abs", np.abs, "i"),
    "acos": unary("acos", np.arccos, "u"),
    "asin": unary("asin", np.arcsin, "u"),
    "atan": unary("atan", np.arctan),
    "atanh": unary("atanh", np.arctanh, "u"),
    "ceil": unary("ceil", np.ceil),
    "cos": unary("cos", np.cos),
    "cosh": unary("cosh", np.cosh),
    "erf": unary("erf", erf),
    "exp": unary("exp", np.exp),
    "exp2": unary("exp2", np.exp2),
    "floor": unary("floor", np.floor),
    "round": (
        lambda **v: mb.round(x=mb.mul(x=mb.cast(x=v["i"], dtype="fp32"), y=0.5)),
        lambda **v: np.round(v["i"] * 0.5).astype(np.float32),
    ),
    "sign": unary("sign", np.sign),
    "sin": unary("sin", np.sin),
    "sinh": unary("sinh", np.sinh),
    "sqrt": unary("sqrt", np.sqrt, "u"),
    "square": unary("square", np.square),
    "tan": unary("tan", np.tan),
    "tanh": unary("tanh", np.tanh),
    "identity": unary("identity", lambda x: x),
    "log": (lambda **v: mb.log(x=v["u"], epsilon=0.25), lambda **v: np.log(v["u"] + 0.25)),
    "log_default": unary("log", np.log, "u"),
    "rsqrt": (lambda **v: mb.rsqrt(x=v["u"], epsilon=0.5), lambda **v: 1 / np.sqrt(v["u"] + 0.5)),
    "rsqrt_default": unary("rsqrt", lambda x: 1 / np.sqrt(x), "u"),
    "inverse": (lambda **v: mb.inverse(x=v["u"], epsilon=0.5), lambda **v: 1 / (v["u"] + 0.5)),
    "inverse_default": unary("inverse", lambda x: 1 / (x + 1e-4), "u"),
    "clip": (lambda **v: mb.clip(x=v["x"], alpha=-0.5, beta=0.25), lambda **v: np.clip(v["x"], -0.5, 0.25)),
    "threshold": (lambda **v: mb.threshold(x=v["x"], alpha=0.1), lambda **v: np.maximum(v["x"], 0.1)),
    "logical_not": (
        lambda **v: mb.logical_not(x=mb.greater(x=v["x"], y=0.0)),
        lambda **v: (v["x"] <= 0).astype(np.int32),
    ),
    "cast_truncates": (
        lambda **v: mb.cast(x=mb.mul(x=v["x"], y=3.0), dtype="int32"),
        lambda **v: np.trunc(v["x"] * 3).astype(np.int32),
    ),
    "cast_bool": (
        lambda **v: mb.cast(x=mb.mul(x=v["x"], y=0.25), dtype="bool"),
        lambda **v: np.ones((2, 3, 4), np.int32),
    ),
    "cast_int_to_float": (lambda **v: mb.cast(x=v["i"], dtype="fp32"), lambda **v: v["i"].astype(np.float32)),
    "cast_int8": (
        lambda **v: mb.cast(x=mb.cast(x=v["i"], dtype="int8"), dtype="int32"),
        lambda **v: v["i"],
    ),
    "select": (
        lambda **v: mb.select(cond=mb.less(x=v["x"], y=0.0), a=v["x"], b=v["u"]),
        lambda **v: np.where(v["x"] < 0, v["x"], v["u"]),
    ),
}
BINARY = {
    "add": binary("add", np.add),
    "sub": binary("sub", np.subtract),
    "mul": binary("mul", np.multiply),
    "real_div": binary("real_div", np.divide),
    "floor_div": binary("floor_div", np.floor_divide),
    "floor_div_int": binary("floor_div", np.floor_divide, "i", "j"),
    "mod": binary("mod", np.mod),
    "mod_int": binary("mod", np.mod, "i", "j"),
    "pow": binary("pow", np.power, "u", "y"),
    "maximum": binary("maximum", np.maximum),
    "minimum": binary("minimum", np.minimum),
    "add_int": binary("add", np.add, "i", "j"),
    "equal": binary("equal", lambda x, y: (x == y).astype(np.int32), "i", "j"),
    "not_equal": binary("not_equal", lambda x, y: (x != y).astype(np.int32), "i", "j"),
    "less": binary("less", lambda x, y: (x < y).astype(np.int32)),
    "less_equal": binary("less_equal", lambda x, y: (x <= y).astype(np.int32), "i", "j"),
    "greater": binary("greater", lambda x, y: (x > y).astype(np.int32)),
    "greater_equal": binary("greater_equal", lambda x, y: (x >= y).astype(np.int32), "i", "j"),
}
for _op in ("and", "or", "xor"):
    BINARY[f"logical_{_op}"] = (
        lambda op=_op, **v: getattr(mb, f"logical_{op}")(
            x=mb.greater(x=v["x"], y=0.0), y=mb.greater(x=v["u"], y=0.5)
        ),
        lambda op=_op, **v: getattr(np, f"logical_{op}")(v["x"] > 0, v["u"] > 0.5).astype(np.int32),
    )
F = torch.nn.functional
ACTIVATIONS = {
    "relu": unary("relu", torched(torch.relu)),
    "relu6": unary("relu6", torched(F.relu6)),
    "sigmoid": unary("sigmoid", torched(torch.sigmoid)),
    "silu": unary("silu", torched(F.silu)),
    "softplus": unary("softplus", torched(F.softplus)),
    "softsign": unary("softsign", torched(F.softsign)),
    "elu": (lambda **v: mb.elu(x=v["x"], alpha=0.7), lambda **v: torched(lambda x: F.elu(x, 0.7))(v["x"])),
    "leaky_relu": (
        lambda **v: mb.leaky_relu(x=v["x"], alpha=0.2),
        lambda **v: torched(lambda x: F.leaky_relu(x, 0.2))(v["x"]),
    ),
    "thresholded_relu": (
        lambda **v: mb.thresholded_relu(x=v["x"], alpha=0.5),
        lambda **v: np.where(v["x"] >= 0.5, v["x"], 0).astype(np.float32),
    ),
    "prelu": (
        lambda **v: mb.prelu(x=mb.expand_dims(x=v["x"], axes=[3]), alpha=CHANNELS),
        lambda **v: F.prelu(torch.from_numpy(v["x"]), torch.from_numpy(CHANNELS)).unsqueeze(3),
    ),
    "linear_activation": (
        lambda **v: mb.linear_activation(x=v["x"], alpha=2.0, beta=-1.0),
        lambda **v: 2 * v["x"] - 1,
    ),
    "hardswish": (
        lambda **v: mb.mul(x=v["x"], y=mb.sigmoid_hard(x=v["x"], alpha=1 / 6, beta=0.5)),
        lambda **v: F.hardswish(torch.from_numpy(v["x"])),
    ),
    "scaled_tanh": (
        lambda **v: mb.scaled_tanh(x=v["x"], alpha=1.5, beta=0.5),
        lambda **v: 1.5 * np.tanh(0.5 * v["x"]),
    ),
    "clamped_relu": (
        lambda **v: mb.clamped_relu(x=v["x"], alpha=0.1, beta=0.6),
        lambda **v: np.where(v["x"] >= 0, np.minimum(v["x"], 0.6), 0.1 * v["x"]).astype(np.float32),
    ),
    "softplus_parametric": (
        lambda **v: mb.softplus_parametric(x=v["x"], alpha=CHANNELS, beta=CHANNELS),
        lambda **v: CHANNELS[:, None] * np.log1p(np.exp(v["x"] * CHANNELS[:, None])),
    ),
    "softmax": (
        lambda **v: mb.softmax(x=v["x"], axis=1),
        lambda **v: np.exp(v["x"]) / np.exp(v["x"]).sum(1, keepdims=True),
    ),
    "gelu_exact": (
        lambda **v: mb.gelu(x=v["x"], mode="EXACT"),
        lambda **v: (0.5 * v["x"] * (1 + erf(v["x"] / math.sqrt(2)))).astype(np.float32),
    ),
    "gelu_tanh": (
        lambda **v: mb.gelu(x=v["x"], mode="TANH_APPROXIMATION"),
        lambda **v: (
            0.5
            * v["x"]
            * (1 + np.tanh(np.float32(math.sqrt(2 / math.pi)) * (v["x"] + 0.044715 * v["x"] ** 3)))
        ),
    ),
    "gelu_sigmoid": (
        lambda **v: mb.gelu(x=v["x"], mode="SIGMOID_APPROXIMATION"),
        lambda **v: v["x"] / (1 + np.exp(-1.702 * v["x"])),
    ),
}


@pytest.mark.parametrize("name", UNARY)
def test_unary(check, name):
    check("unary", INPUTS, UNARY, name)


@pytest.mark.parametrize("name", BINARY)
def test_binary(check, name):
    check("binary", INPUTS, BINARY, name)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activation(check, name):
    check("activation", INPUTS, ACTIVATIONS, name)
