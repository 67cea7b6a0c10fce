"""Each operator that a component is made of, alone and over its whole range, on every converter.

Gates on real activations do not see what these do not reach: coremltools' reciprocal is wrong below 1e-3, and
every picture passed. The operators are independent parts of one graph, so that each converter runs once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from recipes import short_sequence
from torch import nn
from torch.nn import functional as F

from mobile_o_export.backends.base import LowerRequest
from mobile_o_export.backends.coreml import write as coreml
from mobile_o_export.backends.coreml.encode import Encoder as CoremlEncoder
from mobile_o_export.backends.coreml.interpreter import Interpreter, Rounding, load_mlpackage
from mobile_o_export.backends.coreml.rewrites import TanhGELU
from mobile_o_export.backends.litert import write as litert
from mobile_o_export.backends.litert.encode import Encoder as LiteRTEncoder
from mobile_o_export.backends.onnx import convert as onnx
from mobile_o_export.backends.onnx.backend import OnnxOptions
from mobile_o_export.backends.onnx.encode import Encoder as OnnxEncoder
from mobile_o_export.backends.registry import backend
from mobile_o_export.checkpoint import Checkpoint
from mobile_o_export.components import building
from mobile_o_export.components.base import GraphSpec
from mobile_o_export.components.registry import COMPONENT_NAMES, component
from mobile_o_export.compression.placeholders import Placeholders
from mobile_o_export.compression.recipe import Recipe
from mobile_o_export.errors import LoweringError
from mobile_o_export.model.half_safe import HALF_TINY, ScaledRMSNorm, scaled_linear_attention
from mobile_o_export.parity.metrics import Array
from mobile_o_export.quiet import captured
from mobile_o_export.targets import load_target
from mobile_o_export.tensors import DType, Role, TensorSpec

pytestmark = pytest.mark.slow

Inputs = Mapping[str, torch.Tensor]
Operator = Callable[[Inputs], torch.Tensor]


def tensor(name: str, *shape: int, dtype: DType = DType.FLOAT32) -> TensorSpec:
    return TensorSpec(name, shape, dtype, " ".join("BCYXDE"[: len(shape)]), Role.FEATURES)


WIDE, POSITIVE, ANGLES, ROWS = (tensor(name, 1, 6, 48) for name in ("wide", "positive", "angles", "rows"))
IMAGE, IDS = tensor("image", 1, 8, 12, 12), tensor("ids", 1, 7, dtype=DType.INT32)
QUERY, KEY, VALUE = (tensor(name, 1, 4, 9, 16) for name in ("query", "key", "value"))
INPUTS = (WIDE, POSITIVE, ANGLES, ROWS, IMAGE, IDS, QUERY, KEY, VALUE)


def given(largest: float) -> dict[str, Array]:
    """Values from the smallest to the largest that a tensor may hold, by both signs, zeros among them."""
    rng = np.random.default_rng(0)
    # A quotient of the largest by the smallest is the largest that fp16 holds.
    smallest = 1e-7 if largest > 1e3 else 2e-3
    size = math.prod(WIDE.shape)  # type: ignore[arg-type]
    positive = np.geomspace(smallest, largest, size)
    wide = rng.permutation(positive) * rng.choice([-1, 1], size)
    wide[:3] = 0.0
    rows = rng.normal(size=(6, 48)) * np.geomspace(max(smallest, 1e-6), min(largest, 1e4), 6)[:, None]
    rows[2] = 0.0
    found = {
        "wide": wide,
        "positive": positive,
        "angles": np.linspace(-90, 90, size),
        "rows": rows,
        "image": rng.normal(size=(1, 8, 12, 12)),
        "query": rng.normal(size=(4, 9, 16)) * np.array([0.01, 1, 10, 100])[:, None, None],
        "key": rng.normal(size=(4, 9, 16)),
        "value": rng.normal(size=(4, 9, 16)) * 10,
    }
    arrays = {spec.name: spec for spec in INPUTS if spec is not IDS}
    values = {name: found[name].reshape(spec.shape).astype(np.float32) for name, spec in arrays.items()}
    return {**values, "ids": np.array([[0, 30, 7, 7, 1, 29, 15]], np.int32)}


torch.manual_seed(0)
DENSE, DEPTH, STRIDED = (
    nn.Conv2d(8, 12, 3, padding=1),
    nn.Conv2d(8, 8, 5, padding=2, groups=8),
    nn.Conv2d(8, 8, 2, stride=2),
)
LINE, ROW_CONV, TABLE = nn.Linear(48, 20), nn.Conv1d(6, 6, 3, padding=1), nn.Embedding(31, 16)
NORM, RMS = nn.LayerNorm(48, eps=1e-6), ScaledRMSNorm(nn.Parameter(torch.rand(48) + 0.5), None, 1e-6)

OPERATORS: dict[str, Operator] = {
    "abs": lambda x: x["wide"].abs(),
    "add": lambda x: x["wide"] + x["positive"],
    "add a number": lambda x: x["wide"] + 0.5,
    "subtract": lambda x: x["wide"] - x["positive"],
    "subtract from": lambda x: 1.0 - x["wide"],
    "multiply by a number": lambda x: x["wide"] * 0.125,
    "divide": lambda x: x["angles"] / x["positive"],
    "reciprocal": lambda x: 1.0 / x["positive"],
    "divide a number": lambda x: 0.25 / x["positive"],
    "reciprocal square root": lambda x: torch.rsqrt(x["positive"]),
    "maximum": lambda x: torch.maximum(x["wide"], x["angles"]),
    "clamp from below": lambda x: x["wide"].clamp(min=HALF_TINY),
    "clamp": lambda x: x["wide"].clamp(-1.5, 2.5),
    "greater": lambda x: (x["wide"] > 0.25).float(),
    "exponential": lambda x: torch.exp(x["angles"] / 9),
    "sine": lambda x: torch.sin(x["angles"]),
    "cosine": lambda x: torch.cos(x["angles"]),
    "tanh": lambda x: torch.tanh(x["angles"] / 4),
    "sigmoid": lambda x: torch.sigmoid(x["angles"] / 4),
    "silu": lambda x: F.silu(x["angles"] / 4),
    "relu": lambda x: F.relu(x["wide"]),
    "gelu": lambda x: F.gelu(x["angles"] / 8),
    "gelu by tanh": lambda x: TanhGELU()(x["angles"] / 8),
    "hard sigmoid": lambda x: F.hardsigmoid(x["angles"] / 8),
    "hard swish": lambda x: F.hardswish(x["angles"] / 8),
    "largest of a row": lambda x: x["rows"].amax(dim=-1, keepdim=True),
    "mean of a row": lambda x: x["rows"].mean(dim=-1, keepdim=True),
    "sum of a row": lambda x: x["angles"].sum(dim=(-1,), keepdim=True),
    "softmax": lambda x: x["angles"].softmax(-1),
    "layer norm": lambda x: NORM(x["rows"]),
    "rms norm": lambda x: RMS(x["rows"]),
    "matrix product": lambda x: x["query"] @ x["key"].transpose(-1, -2),
    "linear": lambda x: LINE(x["rows"]),
    "attention": lambda x: F.scaled_dot_product_attention(x["query"], x["key"], x["value"]),
    "attention with a mask": lambda x: F.scaled_dot_product_attention(
        x["query"], x["key"], x["value"], attn_mask=torch.full((9, 9), -1e4, dtype=x["query"].dtype).triu(1)
    ),
    "linear attention": lambda x: scaled_linear_attention(
        x["query"].relu().transpose(-1, -2), x["key"].relu().transpose(-1, -2), x["value"].transpose(-1, -2)
    ),
    "convolution": lambda x: DENSE(x["image"]),
    "depthwise convolution": lambda x: DEPTH(x["image"]),
    "strided convolution": lambda x: STRIDED(x["image"]),
    "convolution of rows": lambda x: ROW_CONV(x["angles"]),
    "embedding": lambda x: TABLE(x["ids"]),
    "pixel shuffle": lambda x: F.pixel_shuffle(x["image"], 2),
    "nearest, twice": lambda x: F.interpolate(x["image"], scale_factor=2, mode="nearest"),
    "channels repeated": lambda x: x["image"].repeat_interleave(2, dim=1),
    "concatenation": lambda x: torch.cat([x["wide"], x["rows"]], dim=1),
    "halves swapped": lambda x: torch.cat(x["wide"].split(24, dim=-1)[::-1], dim=-1),
    "slice": lambda x: x["wide"][:, 1:5, 3:],
    "permutation": lambda x: x["image"].permute(0, 2, 3, 1),
    "view": lambda x: x["image"].reshape(1, 16, 72),
    "new axis": lambda x: x["wide"].unsqueeze(1) * 2,
    "negation": lambda x: -x["wide"],
    "square": lambda x: (x["angles"] / 9).pow(2),
    "minimum": lambda x: torch.minimum(x["wide"], x["angles"]),
    "choice": lambda x: torch.where(x["wide"] > x["angles"], x["wide"], x["positive"]),
    "equality": lambda x: (x["wide"] == x["rows"]).float(),
    "padding": lambda x: F.pad(x["image"], (1, 2, 0, 3)),
    "one of an axis": lambda x: x["image"].select(1, 3),
    "some of an axis": lambda x: x["wide"].index_select(1, torch.tensor([4, 0, 2])),
    "stack": lambda x: torch.stack([x["wide"], x["rows"]], dim=1),
    "part replaced": lambda x: x["wide"].slice_scatter(x["rows"][:, :2], 1, 1, 3),
}


class Alone(nn.Module):
    """Every operator, on inputs of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.held = nn.ModuleList([DENSE, DEPTH, STRIDED, LINE, ROW_CONV, TABLE, NORM, RMS])

    def forward(self, *values: torch.Tensor) -> tuple[torch.Tensor, ...]:
        named = dict(zip((spec.name for spec in INPUTS), values, strict=True))
        return tuple(operator(named) for operator in OPERATORS.values())


def results(values: Mapping[str, Array]) -> dict[str, torch.Tensor]:
    """What PyTorch makes of it, in double precision."""
    tensors = [torch.from_numpy(values[spec.name]) for spec in INPUTS]
    with torch.no_grad():
        whole = Alone().double()(*(x.double() if x.is_floating_point() else x for x in tensors))
        Alone().float()
    return dict(zip(OPERATORS, whole, strict=True))


def spec() -> GraphSpec:
    shapes = [tuple(value.shape) for value in results(given(1e4)).values()]
    outputs = tuple(
        TensorSpec(f"out{i}", shape, DType.FLOAT32, " ".join("BCYXDE"[: len(shape)]), Role.FEATURES)
        for i, shape in enumerate(shapes)
    )
    return GraphSpec("alone", ("alone",), INPUTS, outputs)


# --- the converters ---


def coreml_package(package: Path, spec: GraphSpec, module: nn.Module, *, half: bool) -> None:
    encoder = CoremlEncoder(Placeholders(module, {}))
    coreml.write_graphs(package, [(spec, module)], encoder, "alone", half=half, what="alone")


def by_coreml(folder: Path, values: Mapping[str, Array], *, half: bool) -> dict[str, Array]:
    package = folder / "alone.mlpackage"
    with captured("alone"):
        coreml_package(package, spec(), Alone().eval(), half=half)
    rounding = Rounding.TYPED if half else Rounding.FP32
    function = load_mlpackage(package).functions["main"]
    return Interpreter(function, component="alone", rounding=rounding).run(dict(values))


def by_litert(folder: Path, values: Mapping[str, Array]) -> dict[str, Array]:
    from ai_edge_litert.interpreter import Interpreter as LiteRT

    path = folder / "alone.tflite"
    module = Alone().eval()
    litert.write_graphs(
        path, [(spec(), module)], LiteRTEncoder(Placeholders(module, {}), half=False), "alone"
    )
    with captured("alone"):
        found = LiteRT(str(path)).get_signature_runner("alone")(**values)
    return dict(found)


def by_onnx(folder: Path, values: Mapping[str, Array]) -> dict[str, Array]:
    import onnxruntime

    path = folder / "alone.onnx"
    module = Alone().eval()
    encoder = OnnxEncoder(Placeholders(module, {}), for_onnxruntime=False, as_half=False)
    with captured("alone"):
        onnx.convert(spec(), module, path, OnnxOptions(), encoder)
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        names = [output.name for output in session.get_outputs()]
        return dict(zip(names, session.run(names, dict(values)), strict=True))


CONVERTERS: dict[str, Callable[[Path, Mapping[str, Array]], dict[str, Array]]] = {
    "Core ML": lambda folder, values: by_coreml(folder, values, half=False),
    "Core ML, fp16": lambda folder, values: by_coreml(folder, values, half=True),
    "LiteRT": by_litert,
    "ONNX": by_onnx,
}
LARGEST = {"Core ML, fp16": 200.0}
"""What inputs reach; of squares and products fp16 holds no more."""

SUMS = frozenset(
    {"mean of a row", "sum of a row", "softmax", "layer norm", "rms norm", "matrix product", "linear"}
    | {name for name in OPERATORS if "attention" in name or "convolution" in name}
)
"""Rounded relative to the largest of a row; the others to each number."""

BEYOND = {"gelu": 1e-6, "gelu by tanh": 1e-6, "sine": 1e-5, "cosine": 1e-5, "sigmoid": 2e-7, "silu": 5e-6}
"""Where an operator comes to nothing by a difference, this much of 1 is left. ONNX Runtime 1.31's sigmoid is
a quotient of polynomials: off by 1e-7 at any x, which is as much as there is at -16.
"""

RELATIVE = {"Core ML, fp16": 8e-3}
"""Else a few roundings of fp32."""


@pytest.fixture(scope="module", params=CONVERTERS)
def computed(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, dict[str, Array], dict[str, torch.Tensor]]:
    """The converter, what its file computes, and what is right."""
    name = str(request.param)
    values = given(LARGEST.get(name, 1e4))
    if name in LARGEST:  # fp16 rounds the inputs: what follows is of those.
        values = {k: v if k == "ids" else v.astype(np.float16).astype(np.float32) for k, v in values.items()}
    found = CONVERTERS[name](tmp_path_factory.mktemp("alone"), values)
    return (
        name,
        dict(zip(OPERATORS, (found[f"out{i}"] for i in range(len(OPERATORS))), strict=True)),
        results(values),
    )


@pytest.mark.parametrize("operator", OPERATORS)
def test_an_operator_is_right_over_its_whole_range(
    computed: tuple[str, dict[str, Array], dict[str, torch.Tensor]], operator: str
) -> None:
    name, found, wanted = computed
    right = wanted[operator].numpy()
    scale = np.abs(right).max(axis=-1, keepdims=True) if operator in SUMS else np.abs(right)
    relative = RELATIVE.get(name, 2e-5)
    allowed = relative * scale + BEYOND.get(operator, 0.0) * (relative / 2e-5)
    if name == "Core ML, fp16":
        allowed = allowed + 2.0**-24
    error = np.abs(found[operator].astype(np.float64) - right)
    assert np.isfinite(error).all()
    worst = np.unravel_index(np.argmax(error - allowed), error.shape)
    assert (error <= allowed).all(), f"{found[operator][worst]} for {right[worst]}"


# --- what components are made of ---

SHAPES_ALONE = frozenset({"arange", "ones", "clone", "copy", "_unsafe_view"})
"""Operators that compute nothing of an input: constants, and what only moves numbers."""


def operators_of(module: nn.Module, inputs: Sequence[TensorSpec], typical: Mapping[str, int]) -> set[str]:
    """The names of the operators that converters are given."""
    given = [building.example(one.bind(typical)) for one in inputs]
    examples = tuple(value.float() if value.is_floating_point() else value for value in given)
    with captured("operators"), torch.no_grad():
        program = torch.export.export(module.eval(), examples).run_decompositions({})
    return {str(node.target) for node in program.graph.nodes if node.op == "call_function"}


@pytest.mark.parametrize("name", ["coreml-ane", "litert-cpu", "onnx-cpu"])
def test_components_hold_no_operator_that_was_not_tried_alone(
    brief_checkpoint: Checkpoint, name: str
) -> None:
    tried = operators_of(Alone(), INPUTS, {})
    target = load_target(name)
    plain = Recipe(floating=target.floating, default=target.floating)
    for part in map(component, COMPONENT_NAMES):
        request = LowerRequest(name, part, plain, short_sequence(target), target.options)
        options = backend(target.backend).graph_options(request)
        module = building.prepare(part, part.load(brief_checkpoint), options)
        for one in part.graphs(brief_checkpoint, options):
            extents = {letter: e.typical for p in one.profiles for letter, e in p.extents.items()}
            found = operators_of(part.graph(module, one, options), one.inputs, extents) - tried
            assert {each for each in found if each.split(".")[1] not in SHAPES_ALONE} == set(), one.name


# --- what coremltools misreads ---

FAULTS: dict[str, tuple[Callable[[torch.Tensor], torch.Tensor], str]] = {
    "alpha of a sum": (lambda x: torch.add(x, x.abs(), alpha=0.5), "drops alpha"),
    "alpha of a difference": (lambda x: torch.sub(x, x.abs(), alpha=0.5), "drops alpha"),
    "antialias": (
        lambda x: F.interpolate(x, (5, 5), mode="bilinear", antialias=True),
        "drops the antialias",
    ),
    "largest of all": (lambda x: x.argmax().float(), "last axis instead of all"),
    "gelu by tanh": (lambda x: F.gelu(x, approximate="tanh"), "exact GELU"),
    "logarithm of a softmax": (lambda x: F.log_softmax(x * 20_000, -1), "ends at -103"),
    "rms norm of zeros": (
        lambda x: F.rms_norm(x * 0.0, (12,), torch.ones(12), 1e-6),
        "NaN for a row of zeros",
    ),
}


class One(nn.Module):
    def __init__(self, operator: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.operator = operator

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.operator(image)


@pytest.mark.parametrize("name", FAULTS)
def test_what_would_be_misread_is_refused(tmp_path: Path, name: str) -> None:
    operator, reason = FAULTS[name]
    shape = tuple(operator(torch.rand(1, 8, 12, 12)).shape) or (1,)
    output = TensorSpec("out", shape, DType.FLOAT32, " ".join("BCYX"[: len(shape)]), Role.FEATURES)
    one = GraphSpec("one", ("one",), (IMAGE,), (output,))
    with (
        captured("one"),
        pytest.raises(LoweringError, match=f"one: aten.* cannot be left to coremltools: .*{reason}"),
    ):
        coreml_package(tmp_path / "one.mlpackage", one, One(operator), half=False)


def test_a_number_that_fp16_cannot_hold_is_refused_in_fp16_alone(tmp_path: Path) -> None:
    output = TensorSpec("out", (1, 8, 12, 12), DType.FLOAT32, "B C Y X", Role.FEATURES)
    one, module = GraphSpec("one", ("one",), (IMAGE,), (output,)), One(lambda x: x * 1e-9)
    with captured("one"), pytest.raises(LoweringError, match="in fp16 it raises 1e-09 to 6e-08"):
        coreml_package(tmp_path / "half.mlpackage", one, module, half=True)
    with captured("one"):
        coreml_package(tmp_path / "one.mlpackage", one, module, half=False)


@pytest.mark.parametrize("name", ["reciprocal", *FAULTS])
def test_the_fault_is_still_there(tmp_path: Path, name: str) -> None:
    """coremltools 9.0: once a version reads one right, there is nothing left to refuse."""
    import coremltools as ct

    operator = (lambda x: 1.0 / x) if name == "reciprocal" else FAULTS[name][0]
    image = torch.linspace(1e-5, 2, 8 * 144).reshape(1, 8, 12, 12)
    with captured("one"):
        program = torch.export.export(One(operator).eval(), (image,)).run_decompositions({})
        ct.convert(
            program,
            minimum_deployment_target=ct.target.iOS18,
            compute_precision=ct.precision.FLOAT32,
            inputs=[ct.TensorType(name="image", shape=image.shape)],
            outputs=[ct.TensorType(name="out")],
            package_dir=str(tmp_path / "one.mlpackage"),
            skip_model_load=True,
        )
    function = load_mlpackage(tmp_path / "one.mlpackage").functions["main"]
    found = Interpreter(function, component="one", rounding=Rounding.FP32).run({"image": image.numpy()})[
        "out"
    ]
    wanted = operator(image).numpy()
    assert found.shape != wanted.shape or not np.allclose(found, wanted, rtol=1e-4, atol=1e-6)
