"""Whole programs: rounding, states shared by functions, control flow, and converted torch models."""

import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from mobile_o_export.backends.coreml.interpreter import (
    Interpreter,
    Rounding,
    load_mlpackage,
)
from mobile_o_export.backends.coreml.interpreter.values import settle
from mobile_o_export.quiet import quiet_vendor

with quiet_vendor():
    import coremltools as ct
    from coremltools.converters.mil.mil import Builder as mb  # noqa: N813


def main_function(path):
    return load_mlpackage(path).functions["main"]


def test_typed_rounding_overflows_and_fp32_does_not(tmp_path, build_program, save_program):
    x = np.array([300.0, 1.0, -300.0, 0.1], np.float32)
    program = build_program(
        {"x": x}, {"y": lambda x: mb.mul(x=mb.mul(x=x, y=np.float32(300.0)), y=np.float32(0.001))}
    )
    function = main_function(save_program(program, tmp_path / "m.mlpackage", precision="fp16"))
    typed = Interpreter(function, component="r", rounding=Rounding.TYPED).run({"x": x})["out_y_0"]
    half = torch.from_numpy(x).half()
    np.testing.assert_array_equal(typed, (half * 300.0 * torch.tensor(0.001).half()).float().numpy())
    assert np.isposinf(typed[0])
    assert np.isneginf(typed[2])
    wide = Interpreter(function, component="r", rounding=Rounding.FP32).run({"x": x})["out_y_0"]
    # The constants are stored in fp16, the activations are not rounded.
    np.testing.assert_allclose(wide, x * 300 * float(np.float16(0.001)), rtol=1e-6)


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)])
def test_large_results_are_rounded_as_small_ones(order):
    """In place, whatever the order of their axes; part by part, the last one shorter."""
    values = torch.randn(3, 320, 321) * torch.logspace(-9, 6, 321)
    values[0, 0, :2] = torch.tensor([math.nan, -65520])
    value = values.permute(order)
    expected = value.to(torch.float16).to(torch.float32)
    unowned = settle(value, "float16", Rounding.TYPED)
    assert unowned.data_ptr() != value.data_ptr()
    found = settle(value, "float16", Rounding.TYPED, own=True)
    assert found.data_ptr() == value.data_ptr()
    for given in (unowned, found):
        torch.testing.assert_close(given, expected, rtol=0, atol=0, equal_nan=True)


def test_rounding_changes_no_argument(tmp_path, build_program, save_program):
    """``cast`` gives the memory of what the caller handed over."""
    x = np.full((200, 200), 1 / 3, np.float32)
    program = build_program({"x": x}, {"half": lambda x: mb.cast(x=mb.cast(x=x, dtype="fp16"), dtype="fp32")})
    save_program(program, tmp_path / "m.mlpackage")
    function = main_function(tmp_path / "m.mlpackage")
    (found,) = Interpreter(function, component="c", rounding=Rounding.TYPED).run({"x": x}).values()
    assert np.all(x == np.float32(1 / 3))
    assert np.all(found == np.float16(1 / 3))


def test_fp16_outputs_keep_their_type(tmp_path, build_program, save_program):
    x = np.array([1.0, 2.5, 60000.0], np.float16)
    program = build_program({"x": x}, {"y": lambda x: mb.add(x=x, y=x)})
    function = main_function(save_program(program, tmp_path / "m.mlpackage"))
    assert function.inputs[0].dtype == "float16"
    typed = Interpreter(function, component="r").run({"x": x})["out_y_0"]
    assert typed.dtype == np.float16
    np.testing.assert_array_equal(typed, np.array([2.0, 5.0, np.inf], np.float16))
    interpreter = Interpreter(function, component="r", rounding=Rounding.FP32)
    wide = interpreter.run({"x": x.astype(np.float32)})["out_y_0"]
    assert wide.dtype == np.float32
    np.testing.assert_array_equal(wide, [2.0, 5.0, 120000.0])


def test_inputs_and_results_are_not_aliased(tmp_path, build_program, save_program):
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    program = build_program({"x": x}, {"y": lambda x: mb.reshape(x=x, shape=[3, 2])})
    interpreter = Interpreter(main_function(save_program(program, tmp_path / "m.mlpackage")), component="a")
    x.flags.writeable = False
    result = interpreter.run({"x": x})["out_y_0"]
    result += 1
    np.testing.assert_array_equal(x, np.arange(6).reshape(2, 3))


def test_variables_are_freed_after_their_last_use(tmp_path, build_program, save_program):
    x = np.array([2.0, -3.0], np.float32)

    def build(x):
        first = mb.exp(x=x)
        values, _ = mb.topk(x=first, k=1)
        inner = mb.cond(
            pred=mb.greater(x=mb.reduce_sum(x=values), y=0.0),
            _true_fn=lambda: mb.mul(x=first, y=10.0),
            _false_fn=lambda: mb.sub(x=first, y=1.0),
        )
        return mb.add(x=inner, y=1.0)

    program = build_program({"x": x}, {"y": build})
    interpreter = Interpreter(main_function(save_program(program, tmp_path / "m.mlpackage")), component="f")
    steps = interpreter._plan.steps
    produced = {"x"} | {output.name for step in steps for output in step.operation.outputs}
    freed = [name for step in steps for name in step.frees]
    assert sorted(freed) == sorted(produced - {"out_y_0"})
    by_type = {step.operation.type: step for step in steps}
    assert by_type["exp"].frees == ("x",)
    assert [output.name for output in by_type["topk"].operation.outputs][1:] == list(by_type["topk"].frees)
    assert by_type["exp"].operation.outputs[0].name in by_type["cond"].frees
    np.testing.assert_allclose(interpreter.run({"x": x})["out_y_0"], np.exp(x) * 10 + 1, rtol=1e-6)


def test_cond(tmp_path, build_program, save_program):
    x = np.array([2.0, -3.0], np.float32)
    program = build_program(
        {"x": x},
        {
            "y": lambda x: mb.cond(
                pred=mb.greater(x=mb.reduce_sum(x=x), y=0.0),
                _true_fn=lambda: mb.mul(x=x, y=10.0),
                _false_fn=lambda: mb.sub(x=x, y=1.0),
            )
        },
    )
    interpreter = Interpreter(main_function(save_program(program, tmp_path / "m.mlpackage")), component="c")
    np.testing.assert_array_equal(interpreter.run({"x": x})["out_y_0"], [1.0, -4.0])
    np.testing.assert_array_equal(interpreter.run({"x": -x})["out_y_0"], [-20.0, 30.0])


def test_while_loop(tmp_path, build_program, save_program):
    x = np.array([1.0, 0.5], np.float32)

    def build(x):
        return mb.while_loop(
            _cond=lambda value, count: mb.less(x=mb.reduce_max(x=value), y=100.0),
            _body=lambda value, count: (mb.mul(x=value, y=2.0), mb.add(x=count, y=1)),
            loop_vars=(mb.add(x=x, y=0.0), mb.cast(x=mb.reduce_sum(x=mb.sub(x=x, y=x)), dtype="int32")),
        )[0]

    program = build_program({"x": x}, {"y": build})
    interpreter = Interpreter(main_function(save_program(program, tmp_path / "m.mlpackage")), component="w")
    np.testing.assert_array_equal(interpreter.run({"x": x})["out_y_0"], [128.0, 64.0])


CAPACITY, HEADS, WIDTH = 8, 2, 4


class Cached(nn.Module):
    """Attention over a KV cache; ``at`` is the position written, ``None`` for a prefill from 0."""

    def __init__(self, prefill):
        super().__init__()
        self.prefill = prefill
        torch.manual_seed(5)
        self.project = nn.Linear(HEADS * WIDTH, 3 * HEADS * WIDTH)
        self.register_buffer("k_cache", torch.zeros(1, HEADS, CAPACITY, WIDTH))
        self.register_buffer("v_cache", torch.zeros(1, HEADS, CAPACITY, WIDTH))

    def forward(self, x, mask, at=None):
        batch, length, _ = x.shape
        q, k, v = (
            part.view(batch, length, HEADS, WIDTH).transpose(1, 2) for part in self.project(x).chunk(3, -1)
        )
        if self.prefill:
            self.k_cache[:, :, :length] = k
            self.v_cache[:, :, :length] = v
        else:
            self.k_cache[:, :, at] = k
            self.v_cache[:, :, at] = v
        out = F.scaled_dot_product_attention(q, self.k_cache, self.v_cache, attn_mask=mask)
        return out.transpose(1, 2).reshape(batch, length, HEADS * WIDTH)


def exported(module, inputs):
    return torch.export.export(module.eval(), inputs).run_decompositions({})


def convert(module, inputs, silent, **options):
    with silent():
        return ct.convert(
            exported(module, inputs),
            minimum_deployment_target=ct.target.iOS18,
            compute_units=ct.ComputeUnit.CPU_ONLY,
            skip_model_load=True,
            **options,
        )


@pytest.fixture(scope="module")
def cached_package(tmp_path_factory, silent):
    folder = tmp_path_factory.mktemp("cached")
    description = ct.utils.MultiFunctionDescriptor()
    examples = {
        "prefill": (torch.zeros(1, 3, HEADS * WIDTH), torch.zeros(1, 1, 3, CAPACITY)),
        "decode": (
            torch.zeros(1, 1, HEADS * WIDTH),
            torch.zeros(1, 1, 1, CAPACITY),
            torch.zeros(1, dtype=torch.int32),
        ),
    }
    for name, example in examples.items():
        model = convert(Cached(name == "prefill"), example, silent, compute_precision=ct.precision.FLOAT16)
        model.save(str(folder / f"{name}.mlpackage"))
        description.add_function(str(folder / f"{name}.mlpackage"), "main", name)
    description.default_function_name = "prefill"
    with silent():
        ct.utils.save_multifunction(description, str(folder / "both.mlpackage"))
    return folder / "both.mlpackage"


def masks(length, past):
    mask = np.full((1, 1, length, CAPACITY), -1e4, np.float32)
    for row in range(length):
        mask[..., row, : past + row + 1] = 0
    return mask


def test_functions_share_states_and_weights(cached_package):
    program = load_mlpackage(cached_package)
    assert set(program.functions) == {"prefill", "decode"}
    prefill, decode = (
        Interpreter(program.functions[name], component="llm") for name in ("prefill", "decode")
    )
    assert [port.shape for port in prefill.function.states] == [(1, HEADS, CAPACITY, WIDTH)] * 2
    rng = np.random.default_rng(6)
    tokens = rng.standard_normal((1, 5, HEADS * WIDTH)).astype(np.float32)
    state = prefill.make_state()

    def feed(interpreter, x, mask, at=None):
        arrays = [x, mask] if at is None else [x, mask, np.array([at], np.int32)]
        ports = interpreter.function.inputs
        named = {port.name: array for port, array in zip(ports, arrays, strict=True)}
        (out,) = interpreter.run(named, state=state).values()
        return out

    got = [feed(prefill, tokens[:, :3], masks(3, 0))]
    kept = program.weights.kept_count
    before_decode = dict(state)
    got += [feed(decode, tokens[:, at : at + 1], masks(1, at), at) for at in (3, 4)]
    assert program.weights.kept_count - kept < 20  # Small constants only: the projection was there already.
    reference = Cached(prefill=True)
    with torch.no_grad():
        wanted = reference(torch.from_numpy(tokens), torch.from_numpy(masks(5, 0))).numpy()
    np.testing.assert_allclose(np.concatenate(got, 1), wanted, atol=5e-3)
    np.testing.assert_allclose(next(iter(state.values()))[:, :, 5:], 0)
    # A snapshot is a copy of the mapping: no run writes into a tensor of it.
    assert all(not bool(value[:, :, 3:].any()) for value in before_decode.values())


def test_a_fresh_state_changes_the_result(cached_package):
    decode = Interpreter(load_mlpackage(cached_package).functions["decode"], component="llm")
    x = np.random.default_rng(7).standard_normal((1, 1, HEADS * WIDTH)).astype(np.float32)
    arrays = {
        port.name: array
        for port, array in zip(decode.function.inputs, [x, masks(1, 1), np.array([1], np.int32)], strict=True)
    }
    filled = {name: value + 1 for name, value in decode.make_state().items()}
    (first,) = decode.run(arrays, state=decode.make_state()).values()
    (second,) = decode.run(arrays, state=filled).values()
    assert np.abs(first - second).max() > 0.1


class ConvNet(nn.Module):
    """The pieces of FastViT and DC-AE in small."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.GELU())
        self.depthwise = nn.Conv2d(8, 8, 7, padding=3, groups=8)
        self.norm = nn.GroupNorm(2, 8)
        self.squeeze = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Conv2d(8, 2, 1), nn.ReLU(), nn.Conv2d(2, 8, 1)
        )
        self.up = nn.Conv2d(8, 16, 3, padding=1)
        self.transposed = nn.ConvTranspose2d(4, 4, 4, 2, 1)
        self.norm2 = nn.LayerNorm(4)
        self.head = nn.Conv1d(4, 5, 3, padding=1)

    def forward(self, x):
        x = self.stem(x)
        x = x + F.hardswish(self.norm(self.depthwise(x)))
        x = x * torch.sigmoid(self.squeeze(x))
        x = F.pixel_shuffle(self.up(F.silu(x)), 2)
        x = F.interpolate(self.transposed(x), scale_factor=2.0, mode="nearest")
        x = F.interpolate(F.pad(x, (1, 1, 1, 1), mode="reflect"), (16, 16), mode="bilinear")
        x = F.max_pool2d(F.leaky_relu(x), 2, 2).flatten(2).transpose(1, 2)
        return self.head(self.norm2(x).transpose(1, 2))


class Block(nn.Module):
    """SANA's linear attention, masked cross attention, RMS norm and rotary embedding in small."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(11, 16)
        self.qkv = nn.Linear(16, 48)
        self.kv = nn.Linear(12, 32)
        self.query = nn.Linear(16, 16)
        self.scale_shift = nn.Parameter(torch.randn(2, 16))
        self.weight = nn.Parameter(torch.rand(16) + 0.5)

    def forward(self, ids, context, mask, time):
        x = self.embed(ids)
        x = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * self.weight
        frequencies = torch.exp(-torch.arange(8) / 8.0)
        angle = time[:, None] * frequencies
        shift, scale = (self.scale_shift[None] + torch.cat([angle.cos(), angle.sin()], -1)[:, None]).chunk(
            2, 1
        )
        x = F.layer_norm(x, (16,)) * (1 + scale) + shift
        q, k, v = self.qkv(x).chunk(3, -1)
        q, k = F.relu(q), F.relu(k)
        x = x + (q @ (k.transpose(1, 2) @ v)) / (q @ k.sum(1, keepdim=True).transpose(1, 2) + 1e-6)
        k, v = self.kv(context).view(1, -1, 2, 2, 8).permute(2, 0, 3, 1, 4)
        q = self.query(x).view(1, -1, 2, 8).transpose(1, 2)
        half1, half2 = q.chunk(2, -1)
        q = torch.cat([-half2, half1], -1)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=((1 - mask) * -1e4)[:, None, None])
        x = x + out.transpose(1, 2).flatten(2)
        best = x.softmax(-1).argmax(-1)
        return torch.einsum("bnc,bmc->bnm", x, x), best, torch.where(x > 0, x, torch.zeros_like(x)).cumsum(1)


MODELS = {
    "conv_net": (ConvNet, (torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(1)),)),
    "block": (
        Block,
        (
            torch.tensor([[1, 5, 9, 0]], dtype=torch.int32),
            torch.randn(1, 6, 12, generator=torch.Generator().manual_seed(2)),
            torch.tensor([[1.0, 1, 1, 1, 0, 0]]),
            torch.tensor([3.5]),
        ),
    ),
}
# Tolerances: fp32 sums in another order; fp16 results of some 30 operations of relative error 2^-11 each.
PRECISIONS = {"FLOAT32": 2e-5, "FLOAT16": 3e-2}


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", MODELS)
def test_converted_torch_models(tmp_path, silent, name, precision):
    make, inputs = MODELS[name]
    torch.manual_seed(3)
    module = make().eval()
    model = convert(module, inputs, silent, compute_precision=getattr(ct.precision, precision))
    model.save(str(tmp_path / "m.mlpackage"))
    function = main_function(tmp_path / "m.mlpackage")
    with torch.no_grad():
        expected = module(*inputs)
    expected = expected if isinstance(expected, tuple) else (expected,)
    named = {
        port.name: value.numpy().astype(port.dtype)
        for port, value in zip(function.inputs, inputs, strict=True)
    }
    results = Interpreter(function, component=name).run(named)
    assert len(results) == len(expected)
    for got, wanted in zip(results.values(), expected, strict=True):
        if not wanted.is_floating_point():
            np.testing.assert_array_equal(got, wanted.numpy())
            continue
        np.testing.assert_allclose(
            got,
            wanted.numpy(),
            rtol=PRECISIONS[precision],
            atol=PRECISIONS[precision] * float(wanted.abs().max()),
        )


def test_import_is_cheap():
    code = (
        "import sys, mobile_o_export.backends.coreml.interpreter\n"
        "assert not {'torch', 'coremltools'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
