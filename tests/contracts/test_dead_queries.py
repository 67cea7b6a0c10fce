"""Attention whose queries are all zero gives zero on every backend, as in PyTorch: no quotient of two zeros.

Linear attention divides by a sum that ReLU may leave empty; what keeps it from zero is a number so small that
converters take it for none (onnxscript below 1e-8), and fp16 as well.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from recipes import recipe, short_sequence
from safetensors.numpy import load_file, save_file
from shared_exports import SharedExports
from torch import nn

from mobile_o_export.backends.base import LowerRequest
from mobile_o_export.backends.onnx.convert import keep_guards
from mobile_o_export.backends.registry import backend
from mobile_o_export.checkpoint import Checkpoint
from mobile_o_export.components.registry import component
from mobile_o_export.parity.metrics import snr_db
from mobile_o_export.reference import TorchRunner
from mobile_o_export.session import Session
from mobile_o_export.targets import load_target

DEAD = ("model.dit.transformer_blocks.0.attn1.to_q.weight", ".attn.to_q.weight")
"""Ends of names of weights that are set to zero: of the first of the DiT's attentions, and of the VAE's."""


@pytest.fixture(scope="module")
def dead(brief_checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """The shortened fixture checkpoint with attentions that ask for nothing."""
    folder = tmp_path_factory.mktemp("dead") / "checkpoint"
    shutil.copytree(brief_checkpoint.path, folder)
    tensors = load_file(folder / "model.safetensors")
    names = [name for name in tensors if name.endswith(DEAD) and ".encoder." not in name]
    assert {name.split(".")[1] for name in names} == {"dit", "vae"}
    for name in names:
        tensors[name] = np.zeros_like(tensors[name])
    save_file(tensors, folder / "model.safetensors")
    return Checkpoint.open(folder)


@pytest.mark.parametrize(
    ("name", "target_name"),
    [
        ("dit", "coreml-ane"),
        ("vae_decoder", "coreml-ane"),
        ("dit", "litert-cpu"),
        ("vae_decoder", "litert-gpu"),
        ("dit", "onnx-cpu"),
        ("vae_decoder", "onnx-cpu"),
        ("vae_decoder", "tensorrt-orin"),
    ],
)
def test_queries_of_zeros_mix_nothing_in(
    dead: Checkpoint, name: str, target_name: str, shared: SharedExports, tmp_path: Path
) -> None:
    target, part = load_target(target_name), component(name)
    vendor, floating = backend(target.backend), str(target.floating)
    plain = recipe(floating, floating=floating)
    request = LowerRequest(target.name, part, plain, short_sequence(target), target.options)
    artifact = shared.lower(vendor, request, dead, tmp_path)
    (function,) = part.functions(dead)
    rng = np.random.default_rng(0)
    inputs = {
        spec.name: rng.standard_normal([9 if isinstance(size, str) else size for size in spec.shape])
        for spec in function.inputs
    }
    fed = {key: values.astype(np.float32) for key, values in inputs.items()}
    wanted = TorchRunner.of(dead, name).run(function.name, fed)
    with vendor.open(artifact, tmp_path, name) as executor:
        found = Session((function,), [graph.spec for graph in artifact.graphs], executor).run(
            function.name, fed
        )
    for key, values in wanted.items():
        assert np.isfinite(found[key]).all()
        assert snr_db(values, found[key]) > (40 if floating == "fp16" else 60)


class Quotient(nn.Module):
    def __init__(self, epsilon: float) -> None:
        super().__init__()
        self.epsilon = epsilon

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x / (x.sum(-1, keepdim=True) + self.epsilon)


def captured(module: nn.Module, dtype: torch.dtype = torch.float32) -> torch.export.ExportedProgram:
    return torch.export.export(module, (torch.ones(2, 3, dtype=dtype),))


@pytest.mark.parametrize(
    ("epsilon", "dtype", "least"),
    [(1e-15, torch.float32, 1e-15), (1e-15, torch.float16, 2.0**-14), (1e-6, torch.float32, None)],
)
def test_a_guard_that_onnxscript_would_drop_becomes_a_maximum(
    epsilon: float, dtype: torch.dtype, least: float | None
) -> None:
    program = captured(Quotient(epsilon), dtype)
    keep_guards(program)
    limits = [node.args[1] for node in program.graph.nodes if "clamp_min" in str(node.target)]
    assert limits == ([] if least is None else [pytest.approx(least)])
    given = torch.tensor([[0.0, 0, 0], [1, 2, 5]], dtype=dtype)
    wanted = torch.tensor([[0.0, 0, 0], [0.125, 0.25, 0.625]], dtype=dtype)
    torch.testing.assert_close(program.module()(given), wanted)


def test_a_number_that_would_be_dropped_elsewhere_is_an_error() -> None:
    class Logarithm(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return (x + 1e-10).log()

    with pytest.raises(ValueError, match=r"adds 1e-10, which onnxscript would drop"):
        keep_guards(captured(Logarithm()))
