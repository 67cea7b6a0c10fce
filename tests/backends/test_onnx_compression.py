"""Compressed weights in saved ONNX files: their form, what ONNX Runtime makes of them, that harm is found."""

from __future__ import annotations

import re
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir
import onnxruntime
import pytest
import recipes
import torch
from onnx import TensorProto
from shared_exports import SharedExports

from mobile_o_export.backends.base import Artifact, Executor, LowerRequest
from mobile_o_export.backends.onnx.encode import Encoder
from mobile_o_export.backends.onnx.half import round_to_half
from mobile_o_export.backends.registry import backend
from mobile_o_export.backends.tracing import EXAMPLE_EXTENTS, dynamic_examples
from mobile_o_export.checkpoint import Checkpoint
from mobile_o_export.components import building
from mobile_o_export.components.base import GraphSpec
from mobile_o_export.components.registry import COMPONENT_NAMES, component
from mobile_o_export.compression.check import check_weights
from mobile_o_export.compression.compress import Compressed, compress, compress_module
from mobile_o_export.compression.form import Form
from mobile_o_export.compression.placeholders import Placeholders
from mobile_o_export.compression.recipe import Recipe
from mobile_o_export.errors import GateError
from mobile_o_export.parity.metrics import measure
from mobile_o_export.precision import Integer, Precision
from mobile_o_export.targets import load_target
from mobile_o_export.tensors import Role

Request = Callable[..., LowerRequest]
Lower = Callable[[str, Path, Recipe], Artifact]
Same = Callable[..., float]

WEIGHT_ONLY = ["w8", "w4", "w8_b32", "w4_b32"]
DYNAMIC = ["w8_dyn", "w8_b16_dyn", "w4_b32_dyn"]
DYNAMIC_DB = 36.0
"""Against floating-point activations 39 to 42 dB were measured on mcp and dit; int8 reaches 42 once."""


recipe = partial(recipes.recipe, floating="w16")


MIXED = recipe("w8_dyn", ("input_compress*", "w4_b32"), ("*fc.0*", "w4_b32"))


@pytest.fixture(scope="module")
def request_for() -> Request:
    def made(name: str, wanted: Recipe, target_name: str = "onnx-cpu", **options: Any) -> LowerRequest:
        target = load_target(target_name)
        return LowerRequest(
            target.name, component(name), wanted, target.sequence, {**target.options, **options}
        )

    return made


@pytest.fixture(scope="module")
def lower(brief_checkpoint: Checkpoint, request_for: Request, shared: SharedExports) -> Lower:
    return lambda name, folder, wanted: shared.lower(
        backend("onnx"), request_for(name, wanted), brief_checkpoint, folder
    )


@pytest.fixture(scope="module")
def lower_anew(brief_checkpoint: Checkpoint, request_for: Request) -> Lower:
    """Whatever the session has lowered already: for tests that look at how."""

    def run(name: str, folder: Path, wanted: Recipe) -> Artifact:
        folder.mkdir(exist_ok=True)
        return backend("onnx").lower(
            request_for(name, wanted), brief_checkpoint, folder, lambda _phrase: None
        )

    return run


@pytest.fixture(scope="module")
def agreement(brief_checkpoint: Checkpoint, request_for: Request) -> Same:
    """SNR, dB, of the worst output that ONNX Runtime gives, against PyTorch with the restored weights."""

    def run(
        artifact: Artifact, folder: Path, name: str, wanted: Recipe, open_file: Callable[[Path], Any] = loaded
    ) -> float:
        part = component(name)
        options = backend("onnx").graph_options(request_for(name, wanted))  # type: ignore[attr-defined]
        module = building.prepare(part, part.load(brief_checkpoint), options)
        compressed = compress_module(module, wanted, name)
        if wanted.floating == Precision.W16:
            round_to_half(module, compressed)
            module.float()
        worst = []
        for graph in artifact.graphs:
            inputs = feed(graph.spec)
            found = open_file(folder / graph.file).run(
                None, {key: tensor.numpy() for key, tensor in inputs.items()}
            )
            with torch.no_grad():
                expected = part.graph(module, graph.spec, options)(*inputs.values())
            if isinstance(expected, torch.Tensor):
                expected = (expected,)
            worst += [measure(one.numpy(), other).snr_db for one, other in zip(expected, found, strict=True)]
        return min(worst)

    return run


@dataclass(frozen=True)
class Mixed:
    """MCP with weights in each form: the encoder that put them into the file."""

    artifact: Artifact
    file: Path
    encoder: Encoder

    def check(self, file: Path) -> None:
        check_weights(self.encoder.weights.compressed, self.encoder.stored(file, "project"), "mcp")


@pytest.fixture(scope="module")
def mixed(lower_anew: Lower, tmp_path_factory: pytest.TempPathFactory) -> Mixed:
    made: list[Encoder] = []
    original = Encoder.encode

    def keep(self: Encoder, graph: Any, used: list[torch.Tensor]) -> None:
        made.append(self)
        original(self, graph, used)

    folder = tmp_path_factory.mktemp("mixed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Encoder, "encode", keep)
        artifact = lower_anew("mcp", folder, MIXED)
    return Mixed(artifact, folder / "project.onnx", *made)


@pytest.fixture(scope="module")
def plain(lower: Lower, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plain")
    assert lower("mcp", folder, recipe("w16")).weights == ()
    return folder / "project.onnx"


def feed(spec: GraphSpec) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    inputs = dict(zip((tensor.name for tensor in spec.inputs), dynamic_examples(spec), strict=True))
    for tensor in spec.inputs:
        shape, role = inputs[tensor.name].shape, tensor.role
        if role is Role.POSITION:
            inputs[tensor.name] += EXAMPLE_EXTENTS["P"] + torch.arange(shape[-1])
        elif role is Role.TOKENS:
            inputs[tensor.name] += torch.randint(0, 500, shape, generator=generator)
        elif role is not Role.MASK:
            inputs[tensor.name] += torch.rand(shape, generator=generator).to(inputs[tensor.name].dtype)
    return inputs


def loaded(file: Path, optimised: Path | None = None) -> Any:
    """A session as anyone would start it, once the checker has passed the file."""
    onnx.checker.check_model(str(file), full_check=True)
    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 3
    if optimised is not None:
        settings.optimized_model_filepath = str(optimised)
    return onnxruntime.InferenceSession(str(file), settings, providers=["CPUExecutionProvider"])


def counts(model: Any) -> Counter[str]:
    return Counter(node.op_type for node in model.graph.node)


def kinds_of_products(model: Any) -> set[tuple[int, int]]:
    """Bits and accuracy levels."""
    nodes = [node for node in model.graph.node if node.op_type == "MatMulNBits"]
    given = [{field.name: field.i for field in node.attribute} for node in nodes]
    return {(found["bits"], found["accuracy_level"]) for found in given}


@pytest.mark.parametrize("name", [*WEIGHT_ONLY, *DYNAMIC])
def test_each_precision_is_stored_and_computed_as_what_it_says(
    lower: Lower, agreement: Same, tmp_path: Path, name: str
) -> None:
    wanted = recipe(name)
    artifact = lower("mcp", tmp_path, wanted)
    precision = Precision.parse(name)
    assert {row.precision.weight_bits for row in artifact.weights} == {precision.weight_bits}
    model = onnx.load(tmp_path / "project.onnx")
    found = counts(model)
    matrices = sum(len(row.shape) == 2 for row in artifact.weights)
    integers = {
        row.name
        for row in artifact.weights
        if len(row.shape) == 2 and row.precision.weights == Integer(8) and precision.activations
    }
    assert found["DequantizeLinear"] == len(artifact.weights) - matrices > 0
    assert found["MatMulInteger"] == len(integers)
    assert found["MatMulNBits"] == matrices - len(integers)
    assert found["DynamicQuantizeLinear"] <= len(integers)
    if found["MatMulNBits"]:
        assert kinds_of_products(model) == {(precision.weight_bits, 4 if precision.activations else 1)}
    snr_db = agreement(artifact, tmp_path, "mcp", wanted)
    if precision.activations:
        assert DYNAMIC_DB < snr_db < 60.0
    else:
        assert snr_db > 90.0


@pytest.mark.parametrize("name", [name for name in COMPONENT_NAMES if name != "mcp"])
def test_all_weights_of_every_other_component_are_found(
    lower: Lower, agreement: Same, tmp_path: Path, name: str
) -> None:
    wanted = recipe("w4_b32")
    artifact = lower(name, tmp_path, wanted)
    models = [onnx.load(tmp_path / graph.file) for graph in artifact.graphs]
    found = sum((counts(model) for model in models), Counter())
    assert found["DequantizeLinear"] == sum(len(row.shape) != 2 for row in artifact.weights)
    if name == "llm":
        assert {"qwen.model.embed_tokens.weight", "qwen.lm_head.weight"} <= {
            row.name for row in artifact.weights
        }
        assert found["GatherBlockQuantized"] == 1
    assert agreement(artifact, tmp_path, name, wanted) > 90.0


def test_a_product_of_integers_shares_its_activations_and_is_fused(
    lower: Lower, agreement: Same, tmp_path: Path
) -> None:
    wanted = recipe("w8_dyn")
    artifact = lower("dit", tmp_path, wanted)
    model = onnx.load(tmp_path / "denoise.onnx")
    quantized = [node.input[0] for node in model.graph.node if node.op_type == "DynamicQuantizeLinear"]
    assert len(set(quantized)) == len(quantized) < counts(model)["MatMulInteger"]
    loaded(tmp_path / "denoise.onnx", tmp_path / "optimised.onnx")
    fused = counts(onnx.load(tmp_path / "optimised.onnx", load_external_data=False))
    assert fused["MatMulInteger"] == 0
    assert fused["DynamicQuantizeMatMul"] + fused["MatMulIntegerToFloat"] == counts(model)["MatMulInteger"]
    assert agreement(artifact, tmp_path, "dit", wanted) > DYNAMIC_DB


def test_w16_stores_what_fp16_can_hold_and_onnxruntime_widens_it_once(
    plain: Path, tmp_path: Path, brief_checkpoint: Checkpoint
) -> None:
    model = onnx.load(plain)
    halves = [tensor for tensor in model.graph.initializer if tensor.data_type == TensorProto.FLOAT16]
    assert counts(model)["Cast"] == len(halves) > 0
    stored = [tensor.raw_data for tensor in halves]
    for name, value in brief_checkpoint.component_state_dict("mcp", torch.float16).items():
        if value.ndim > 1 and value.numel() >= 128:
            turned = value.T.contiguous() if value.ndim == 2 else value
            assert value.numpy().tobytes() in stored or turned.numpy().tobytes() in stored, name
    loaded(plain, tmp_path / "optimised.onnx")
    assert counts(onnx.load(tmp_path / "optimised.onnx", load_external_data=False))["Cast"] == 0


def test_files_are_as_small_as_planned(plain: Path, mixed: Mixed) -> None:
    saved = sum(2 * np.prod(row.shape) - row.size_bytes for row in mixed.artifact.weights)
    # Scales are stored as fp32 where they are fewer than a Cast is worth.
    room = 2 * 128 * len(mixed.artifact.weights)
    assert weights_bytes(mixed.file) == pytest.approx(weights_bytes(plain) - saved, abs=room)


def weights_bytes(file: Path) -> int:
    return sum(len(tensor.raw_data) for tensor in onnx.load(file).graph.initializer)


def test_the_same_weights_give_the_same_bytes(lower: Lower, mixed: Mixed, tmp_path: Path) -> None:
    lower("mcp", tmp_path, MIXED)
    files = [sorted(folder.iterdir()) for folder in (mixed.file.parent, tmp_path)]
    assert [len(found) for found in files] == [2, 2]
    for one, other in zip(*files, strict=True):
        assert one.read_bytes() == other.read_bytes()


@pytest.mark.parametrize("kind", ["MatMulInteger", "MatMulNBits", "DequantizeLinear"])
def test_harm_to_the_file_fails_the_weight_check(mixed: Mixed, tmp_path: Path, kind: str) -> None:
    mixed.check(mixed.file)
    for harm in (_one_other_scale, _one_other_integer, _two_blocks_swapped):
        model = onnx.load(mixed.file)
        harm(model, next(node for node in model.graph.node if node.op_type == kind))
        harmed = tmp_path / f"{harm.__name__}.onnx"
        onnx.save(model, harmed)
        with pytest.raises(GateError, match=r"mcp: the weight .* read back"):
            mixed.check(harmed)


def test_sums_scaled_by_another_layer_s_scales_fail_the_weight_check(mixed: Mixed, tmp_path: Path) -> None:
    model = onnx.load(mixed.file)
    products: dict[tuple[int, ...], list[Any]] = {}
    for node in model.graph.node:
        if node.op_type == "Mul" and any(name.endswith(".scales") for name in node.input):
            products.setdefault(tuple(_tensor(model, node.input[1]).dims), []).append(node)
    one, other = next(nodes for nodes in products.values() if len(nodes) > 1)[:2]
    one.input[1], other.input[1] = other.input[1], one.input[1]
    onnx.save(model, tmp_path / "harmed.onnx")
    with pytest.raises(GateError, match=r"mcp: the weight .* read back"):
        mixed.check(tmp_path / "harmed.onnx")


def _tensor(model: Any, name: str) -> Any:
    """The initializer behind ``name``, which a Cast may widen."""
    for node in model.graph.node:
        if node.op_type == "Cast" and name in node.output:
            name = node.input[0]
    return next(tensor for tensor in model.graph.initializer if tensor.name == name)


def _one_other_scale(model: Any, node: Any) -> None:
    name = next(name for name in node.input if name.endswith(".integers")).removesuffix("integers")
    scales = {f"{name}scales", f"{name}scales.half"}
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name in scales)
    values = onnx.numpy_helper.to_array(tensor).copy()
    values.reshape(-1)[3] *= 1.5
    tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))


def _integers(model: Any, node: Any) -> tuple[Any, bytearray]:
    tensor = _tensor(model, next(name for name in node.input if name.endswith(".integers")))
    return tensor, bytearray(tensor.raw_data)


def _one_other_integer(model: Any, node: Any) -> None:
    tensor, content = _integers(model, node)
    content[10] ^= 1
    tensor.raw_data = bytes(content)


def _two_blocks_swapped(model: Any, node: Any) -> None:
    tensor, content = _integers(model, node)
    content[:16], content[16:32] = content[16:32], content[:16]
    tensor.raw_data = bytes(content)


@pytest.mark.parametrize(
    ("name", "options", "advice"),
    [
        ("w16", {}, "TensorRT takes no convolution whose weights are cast.*; use fp16"),
        ("w8_dyn", {}, "w8_dyn needs .*; use w8"),
        ("w4_b32_dyn", {}, "w4_b32_dyn needs opset 21, .*; use w8"),
        ("w4_b32", {}, "w4_b32 needs opset 21, .*; use w8"),
        ("w4_b32_dyn", {"operators": "any", "opset": 21}, "w4_b32_dyn needs .*; use w4_b32"),
        ("w4_b512", {"operators": "onnxruntime", "opset": 21}, "w4_b512: .* 16, 32, 64, 128 or 256"),
        ("w8_dyn", {"operators": "onnxruntime"}, "w8_dyn scales activations in fp32; .* use w8"),
    ],
)
def test_what_the_runtime_lacks_is_refused_with_advice(
    request_for: Request, brief_checkpoint: Checkpoint, name: str, options: dict[str, Any], advice: str
) -> None:
    floating = Precision.W16 if name == "w16" else Precision.FP16
    wanted = recipe(name).model_copy(update={"floating": floating})
    request = request_for("mcp", wanted, "tensorrt-orin", **options)
    found = backend("onnx").refusal(request, brief_checkpoint)
    assert re.search(advice, found), found


@pytest.mark.parametrize("name", ["fp32", "w16", "w8", "w4_b256", "w8_dyn", "w4_b32_dyn"])
def test_what_onnxruntime_has_is_not_refused(
    request_for: Request, brief_checkpoint: Checkpoint, name: str
) -> None:
    assert backend("onnx").supports(Precision.parse(name))
    assert backend("onnx").refusal(request_for("mcp", recipe(name)), brief_checkpoint) == ""


def test_integers_restored_by_the_standard_are_multiplied_by_floating_point(
    request_for: Request,
    brief_checkpoint: Checkpoint,
    shared: SharedExports,
    tmp_path: Path,
    agreement: Same,
) -> None:
    """As for TensorRT, run by our executor: ONNX Runtime alone would make activations int8."""
    wanted = recipe("w8").model_copy(update={"floating": Precision.FP32})
    request = request_for("mcp", wanted, operators="any")
    artifact = shared.lower(backend("onnx"), request, brief_checkpoint, tmp_path)
    assert counts(onnx.load(tmp_path / "project.onnx"))["DequantizeLinear"] == len(artifact.weights)
    with backend("onnx").open(artifact, tmp_path, "mcp") as executor:
        assert agreement(artifact, tmp_path, "mcp", wanted, lambda _file: Ours(executor)) > 90.0
    assert agreement(artifact, tmp_path, "mcp", wanted) < 60.0


@dataclass(frozen=True)
class Ours:
    """An executor that is called like a session."""

    executor: Executor

    def run(self, _names: None, inputs: dict[str, Any]) -> list[Any]:
        return list(self.executor.run("project", inputs).values())


def test_only_tensorrt_gets_a_build_script(mixed: Mixed, tmp_path: Path) -> None:
    shutil.copytree(mixed.file.parent, tmp_path / "mcp")
    backend("onnx").finish(tmp_path, {"mcp": mixed.artifact.graphs}, {"operators": "onnxruntime"})
    assert [path.name for path in tmp_path.iterdir()] == ["mcp"]


# One weight in a graph of its own


def compressed(shape: tuple[int, int], name: str) -> Compressed:
    values = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    return compress("w.weight", values, Form.of(Precision.parse(name), shape), dtype=np.float32)


def encoded(weight: Compressed, nodes: list[Any], file: Path, *, turned: bool = False) -> Any:
    """A graph y(x) of ``nodes`` over w, the weight or it transposed, as the file has it once compared."""
    layer = torch.nn.Linear(*reversed(weight.form.shape))
    weights = Placeholders(torch.nn.ModuleDict({"w": layer}), {"w.weight": weight})
    constant = layer.weight.detach().numpy()
    constant = constant.T.copy() if turned else constant
    kind = TensorProto.INT64 if any(node.op_type == "Gather" for node in nodes) else TensorProto.FLOAT
    graph = onnx.helper.make_graph(
        nodes,
        "alone",
        [onnx.helper.make_tensor_value_info("x", kind, ["n"] if kind == TensorProto.INT64 else ["n", "k"])],
        [onnx.helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", "m"])],
        [onnx.numpy_helper.from_array(constant, "w"), onnx.numpy_helper.from_array(np.ones(64, "f4"), "b")],
    )
    versions = [onnx.helper.make_opsetid("", 21)]
    model = onnx_ir.from_proto(onnx.helper.make_model(graph, opset_imports=versions, ir_version=10))
    encoder = Encoder(weights, for_onnxruntime=True, as_half=True)
    encoder.encode(model.graph)
    onnx_ir.save(model, file)
    check_weights({"w.weight": weight}, encoder.stored(file, "alone"), "alone")
    return onnx.load(file)


# Widths of one block, of several, of one that is padded, and of several of which the last is.
@pytest.mark.parametrize("width", [32, 512, 20, 300])
@pytest.mark.parametrize("name", ["w8", "w4", "w8_b16", "w4_b16", "w8_dyn", "w4_dyn"])
@pytest.mark.parametrize("kind", ["MatMul", "Gemm"])
def test_a_matrix_of_any_width_is_packed_without_loss(
    tmp_path: Path, width: int, name: str, kind: str
) -> None:
    weight = compressed((64, width), name)
    inputs, options = (["x", "w", "b"], {"transB": 1}) if kind == "Gemm" else (["x", "w"], {})
    node = onnx.helper.make_node(kind, inputs, ["y"], **options)
    model = encoded(weight, [node], tmp_path / "alone.onnx", turned=kind == "MatMul")
    assert counts(model)[kind] == counts(model)["DequantizeLinear"] == 0
    x = np.random.default_rng(1).standard_normal((3, width)).astype(np.float32)
    (found,) = loaded(tmp_path / "alone.onnx").run(None, {"x": x})
    expected = x @ weight.restored().T + (kind == "Gemm")
    assert measure(expected, found).snr_db > (35.0 if name.endswith("dyn") else 110.0)


@pytest.mark.parametrize("width", [32, 512, 20, 300])
@pytest.mark.parametrize("name", ["w8", "w4", "w4_b16", "w8_dyn"])
def test_rows_of_a_table_are_restored_as_they_are_gathered(tmp_path: Path, width: int, name: str) -> None:
    weight = compressed((64, width), name)
    node = onnx.helper.make_node("Gather", ["w", "x"], ["y"])
    model = encoded(weight, [node], tmp_path / "alone.onnx")
    assert counts(model)["GatherBlockQuantized"] == 1
    ids = np.array([39, 0, 7])
    (found,) = loaded(tmp_path / "alone.onnx").run(None, {"x": ids})
    assert np.array_equal(found, weight.restored()[ids])


def test_a_table_that_is_the_head_as_well_is_stored_once(tmp_path: Path) -> None:
    weight = compressed((64, 32), "w8")
    nodes = [
        onnx.helper.make_node("Gather", ["w", "x"], ["row"]),
        onnx.helper.make_node("Gemm", ["row", "w"], ["y"], transB=1),
    ]
    model = encoded(weight, nodes, tmp_path / "alone.onnx")
    assert counts(model)["DequantizeLinear"] == 1
    loaded(tmp_path / "alone.onnx")
