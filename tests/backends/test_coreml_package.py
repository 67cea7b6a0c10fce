"""What a lowered Core ML package must be beyond computing the right thing."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from shared_exports import SharedExports
from torch import nn
from torch.nn import functional

from mobile_o_export.backends.base import LowerRequest
from mobile_o_export.backends.coreml.encode import Encoder
from mobile_o_export.backends.coreml.interpreter import (
    DamagedPackageError,
    Interpreter,
    MilProgram,
    load_mlpackage,
)
from mobile_o_export.backends.coreml.spared import spared
from mobile_o_export.backends.coreml.write import write_graphs
from mobile_o_export.backends.registry import backend
from mobile_o_export.bundle.manifest import file_entries
from mobile_o_export.checkpoint import Checkpoint
from mobile_o_export.components.base import GraphSpec
from mobile_o_export.components.registry import component
from mobile_o_export.compression.placeholders import Placeholders
from mobile_o_export.compression.recipe import Recipe
from mobile_o_export.errors import ExportError
from mobile_o_export.precision import Precision
from mobile_o_export.targets import load_target
from mobile_o_export.tensors import DType, Role, TensorSpec


@pytest.fixture(scope="module")
def request_for() -> Callable[[Precision], LowerRequest]:
    target = load_target("coreml-ane")
    return lambda precision: LowerRequest(
        target.name,
        component("mcp"),
        Recipe(floating=precision, default=precision),
        target.sequence,
        target.options,
    )


def program(bundle: Path, name: str) -> MilProgram:
    return load_mlpackage(bundle / "coreml-ane" / name / f"{name}.mlpackage")


def test_same_input_gives_the_same_bytes(
    request_for: Callable[[Precision], LowerRequest],
    reference_checkpoint: Checkpoint,
    shared: SharedExports,
    tmp_path: Path,
) -> None:
    """Dates, random identifiers and map order would make every package a new one."""
    request, second = request_for(Precision.FP16), tmp_path / "second"
    shared.lower(backend("coreml"), request, reference_checkpoint, tmp_path / "first")
    second.mkdir()
    backend("coreml").lower(request, reference_checkpoint, second, lambda _phrase: None)
    entries = file_entries(tmp_path / "first")
    assert {Path(name).name for name in entries} == {"Manifest.json", "model.mlmodel", "weight.bin"}
    assert entries == file_entries(tmp_path / "second")


def test_timestep_sinusoids_stay_in_fp32(bundle: Path) -> None:
    """fp16 holds a timestep near 1000 to half a unit only: a wrong angle."""
    for function in program(bundle, "dit").functions.values():
        sinusoids = [op for op in function.block.operations if op.type in ("sin", "cos")]
        assert len(sinusoids) == 2
        assert {output.type.dtype for op in sinusoids for output in op.outputs} == {"float32"}


def test_everything_else_of_the_dit_is_fp16(bundle: Path) -> None:
    """A stray fp32 operation would leave the Neural Engine."""
    heavy = {"conv", "linear", "matmul", "softmax", "scaled_dot_product_attention", "layer_norm"}
    for function in program(bundle, "dit").functions.values():
        types = {
            (op.type, output.type.dtype)
            for op in function.block.operations
            for output in op.outputs
            if op.type in heavy
        }
        assert types
        assert {dtype for _, dtype in types} == {"float16"}


def test_no_exact_gelu_stands_for_the_tanh_form(bundle: Path) -> None:
    """coremltools drops approximate="tanh"; SANA's caption projection is the model's only use of it."""
    for function in program(bundle, "dit").functions.values():
        kinds = [op.type for op in function.block.operations]
        assert "tanh" in kinds
        assert "gelu" not in kinds


@pytest.mark.parametrize("name", ["vision_encoder", "llm", "mcp", "dit", "vae_decoder"])
def test_no_dimension_leaves_the_neural_engine(bundle: Path, name: str) -> None:
    """Rank at most 5, and no weight wider than 16384 (the embedding table is gathered on the CPU)."""
    for function in program(bundle, name).functions.values():
        for op in function.block.operations:
            for output in op.outputs:
                assert len(output.type.shape) <= 5, f"{op.type} {op.name} has rank {len(output.type.shape)}"


def test_fp32_is_supported_too(
    request_for: Callable[[Precision], LowerRequest],
    reference_checkpoint: Checkpoint,
    shared: SharedExports,
    tmp_path: Path,
) -> None:
    shared.lower(backend("coreml"), request_for(Precision.FP32), reference_checkpoint, tmp_path / "fp32")
    function = load_mlpackage(tmp_path / "fp32" / "mcp.mlpackage").functions["project_64"]
    dtypes = {output.type.dtype for op in function.block.operations for output in op.outputs}
    assert "float16" not in dtypes
    assert np.dtype("float32").name in dtypes


@pytest.mark.parametrize("kind", ["input", "output"])
def test_declaring_another_interface_is_refused(bundle: Path, tmp_path: Path, kind: str) -> None:
    """Core ML would not load it; the program alone still runs."""
    from coremltools.proto import Model_pb2

    package = tmp_path / "mcp.mlpackage"
    shutil.copytree(bundle / "coreml-ane" / "mcp" / "mcp.mlpackage", package)
    (path,) = package.rglob("model.mlmodel")
    model = Model_pb2.Model()
    model.ParseFromString(path.read_bytes())
    getattr(model.description.functions[0], kind)[0].name = "renamed"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(DamagedPackageError, match="renamed"):
        load_mlpackage(package)


def test_a_program_that_a_pass_has_broken_is_caught_before_it_is_written() -> None:
    from coremltools.converters.mil import Builder
    from coremltools.converters.mil.mil import types
    from coremltools.converters.mil.mil.block import InvalidBlockStateError

    @Builder.program(input_specs=[Builder.TensorSpec((3,), types.fp32)])
    def program(x: Any) -> Any:
        return Builder.relu(x=Builder.square(x=x))

    (squared,) = program.functions["main"].find_ops(op_type="square")
    squared.outputs[0].child_ops.append(squared)
    with spared():
        program.validate()
        with pytest.raises(InvalidBlockStateError, match="should be consumed"):
            program.validate(check_essential_scope=True)
    with pytest.raises(InvalidBlockStateError, match="should be consumed"):
        program.validate()
    assert "relu" in str(program)


@pytest.mark.parametrize("compressed", [False, True])
def test_what_comes_from_compressed_weights_is_known_while_less_is_checked(compressed: bool) -> None:
    """coremltools 9.0 replaces a value by another only if that comes from the same compressed weights."""
    from coremltools import target
    from coremltools.converters.mil import Builder
    from coremltools.converters.mil.mil import types

    @Builder.program(input_specs=[Builder.TensorSpec((4,), types.fp32)], opset_version=target.iOS16)
    def program(x: Any) -> Any:
        weights = np.float32([1, 2, 3, 4])
        if compressed:
            packed = {"lut": weights, "indices": np.uint8([0b11_10_01_00]), "shape": np.uint32([4])}
            weights = Builder.constexpr_lut_to_dense(**packed)
        return Builder.relu(x=Builder.mul(x=x, y=weights))

    main = program.functions["main"]
    (result,) = main.outputs
    known = set(result.nonreplaceable_vars_upstream)
    result._reset_nonreplaceable_vars_upstream()
    with spared(), main:
        pass  # as each pass enters and leaves the block
    assert set(result.nonreplaceable_vars_upstream) == known
    assert len(known) == compressed


class TwoLayers(nn.Module):
    """One linear layer twice, and one whose weight is not used as it is."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(128, 128, bias=False), nn.Linear(128, 128, bias=False)
        self.factor = factor

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.linear(self.first(self.first(x)), self.second.weight * self.factor)


X = TensorSpec("x", (1, 4, 128), DType.FLOAT32, "B N D", Role.FEATURES)
Y = TensorSpec("y", (1, 4, 128), DType.FLOAT32, "B N D", Role.FEATURES)


@pytest.mark.parametrize("half", [False, True])
def test_functions_share_weights_which_no_pass_has_seen(tmp_path: Path, half: bool) -> None:
    module = TwoLayers(1.0).eval()
    x = torch.randn(1, 4, 128)
    wanted = module(x).detach().numpy()
    graphs = [(GraphSpec(name, (name,), (X,), (Y,)), module) for name in ("one", "other")]
    package = tmp_path / "two.mlpackage"
    encoder = Encoder(Placeholders(module, {}))
    written = write_graphs(package, graphs, encoder, "two", half=half, what="two")
    assert {file.spec.name: file.entry for file in written} == {"one": "one", "other": "other"}
    program = load_mlpackage(package)
    for name in ("one", "other"):
        found = Interpreter(program.functions[name], component="two").run({"x": x.numpy()})["y"]
        np.testing.assert_allclose(found, wanted, atol=1e-2 if half else 1e-5)
    (file,) = package.rglob("weight.bin")
    assert file.stat().st_size < 2 * 128 * 128 * (2 if half else 4) + 1000


def test_a_weight_that_a_pass_has_changed_is_refused(tmp_path: Path) -> None:
    module = TwoLayers(2.0).eval()
    graph = GraphSpec("one", ("one",), (X,), (Y,))
    encoder = Encoder(Placeholders(module, {}))
    with pytest.raises(ExportError, match=r"one: 1 weights are not in the converted graph.* second.weight"):
        write_graphs(tmp_path / "one.mlpackage", [(graph, module)], encoder, "one", half=True, what="one")
    assert not (tmp_path / "one.mlpackage").exists()
