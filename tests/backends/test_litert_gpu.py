"""The GPU's .tflite files: rewrites that change nothing, what the check refuses, the accelerator itself."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from recipes import recipe
from shared_exports import SharedExports
from torch import nn
from torch.nn import functional

from mobile_o_export.backends.base import LowerRequest
from mobile_o_export.backends.litert import gpu
from mobile_o_export.backends.litert.encode import Encoder
from mobile_o_export.backends.litert.write import write_graphs
from mobile_o_export.backends.registry import backend
from mobile_o_export.checkpoint import Checkpoint
from mobile_o_export.components import building
from mobile_o_export.components.base import CacheStyle, GraphOptions, GraphSpec
from mobile_o_export.components.registry import component
from mobile_o_export.compression.placeholders import Placeholders
from mobile_o_export.errors import LoweringError
from mobile_o_export.model.elementary import distances, enlarged, later_mask, one_hot
from mobile_o_export.model.llm import causal_mask
from mobile_o_export.parity.metrics import Array, measure
from mobile_o_export.targets import Sequence, load_target
from mobile_o_export.tensors import DType, Role, TensorSpec

VULKAN = Path("/usr/lib/chromium/vk_swiftshader_icd.json")
"""SwiftShader, a Vulkan on the CPU, which Debian's chromium brings."""

ON_GPU = """
import json, sys
import numpy as np
from ai_edge_litert.compiled_model import CompiledModel, HardwareAccelerator
from ai_edge_litert.options import GpuOptions, Options

options = Options(hardware_accelerators=HardwareAccelerator.GPU, gpu_options=GpuOptions(enforce_f32=True))
model = CompiledModel.from_file(sys.argv[1], options=options)
calls, given, made = json.loads(sys.argv[2]), np.load(sys.argv[3]), {}
for name, outputs in calls.items():
    inputs = {key.split("/")[1]: given[key] for key in given.files if key.startswith(name + "/")}
    taken = {key: model.create_input_buffer_by_name(name, key) for key in inputs}
    for key, value in inputs.items():
        taken[key].write(np.ascontiguousarray(value).reshape(-1))
    results = {key: model.create_output_buffer_by_name(name, key) for key in outputs}
    model.run_by_name(name, taken, results)
    for key, shape in outputs.items():
        made[f"{name}/{key}"] = results[key].read(int(np.prod(shape)), np.float32).reshape(shape)
np.savez(sys.argv[4], **made)
"""


def options(*, elementary: bool) -> GraphOptions:
    return GraphOptions(
        lengths=(64,),
        max_length=64,
        context=128,
        cache=CacheStyle.FIXED,
        token_dtype=DType.INT32,
        elementary=elementary,
    )


def inputs_of(spec: GraphSpec) -> dict[str, Array]:
    """Something for every input; a prompt of 41 positions, a token at 73."""
    random, given = np.random.default_rng(1), {}
    for tensor in spec.inputs:
        value = building.example(tensor).numpy()
        if tensor.role is Role.LENGTH:
            value[:] = 41
        elif tensor.role is Role.POSITION:
            value[:] = 73
        elif tensor.role is Role.MASK:
            value[:, 41:] = 0
        elif tensor.role is Role.TIMESTEP:
            value[:] = 731
        elif value.dtype == np.float32:
            value = random.standard_normal(value.shape).astype(np.float32)
        given[tensor.name] = value
    return given


@pytest.mark.parametrize("name", ["vision_encoder", "llm", "mcp", "dit", "vae_decoder"])
def test_rewrites_change_no_bit(reference_checkpoint: Checkpoint, name: str) -> None:
    part, results, parameters = component(name), [], []
    for elementary in (False, True):
        wanted = options(elementary=elementary)
        module = building.prepare(part, part.load(reference_checkpoint), wanted)
        parameters.append([key for key, _ in module.named_parameters()])
        with torch.no_grad():
            for spec in part.graphs(reference_checkpoint, wanted):
                given = map(torch.from_numpy, inputs_of(spec).values())
                made = part.graph(module, spec, wanted)(*given)
                results.append(made if isinstance(made, tuple) else (made,))
    assert sorted(parameters[0]) == sorted(parameters[1])
    half = len(results) // 2
    for plain, rewritten in zip(results[:half], results[half:], strict=True):
        for expected, found in zip(plain, rewritten, strict=True):
            assert torch.equal(expected, found)


@pytest.mark.parametrize("repeats", [1, 2, 4, 8])
def test_channels_are_enlarged_as_pixel_shuffle_lays_them(repeats: int) -> None:
    x = torch.randn(1, 8, 3, 5, generator=torch.Generator().manual_seed(0))
    expected = functional.pixel_shuffle(x.repeat_interleave(repeats, dim=1), 2)
    assert torch.equal(enlarged(x, repeats), expected)


@pytest.mark.parametrize("position", [0, 1, 73, 2047])
def test_positions_are_exact_also_in_fp16(position: int) -> None:
    here = torch.tensor([position], dtype=torch.int32)
    for dtype in (torch.float32, torch.float16):
        distance = distances(here, 2048).to(dtype)
        hot = functional.one_hot(here.long(), 2048)
        assert torch.equal(one_hot(distance), hot.to(dtype))
        assert torch.equal(later_mask(distance), causal_mask(here, 2048).to(dtype))


class Trouble(nn.Module):
    """What a GPU refuses or gets wrong, one thing at a time."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.grouped = nn.Conv2d(8, 8, 3, groups=4)
        self.steps: torch.Tensor
        self.register_buffer("steps", torch.arange(8.0).view(8, 1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        match self.kind:
            case "axes":
                return x.view(1, 2, 4, 2, 2, 4).permute(0, 3, 1, 4, 2, 5).reshape(1, 8, 4, 4).relu()
            case "gather":
                return x[:, :, 1:, 1:].index_select(1, (x[0, 0, 0, :2] * 0).int())
            case "batch":
                return x.view(8, 4, 4) * self.steps
            case "pad":
                return functional.pad(x.view(8, 4, 4), (1, 1)).view(1, 8, 4, 6)
            case "group":
                out: torch.Tensor = self.grouped(x)
                return out
        return x.relu() + x.sigmoid()


@pytest.mark.parametrize(
    ("kind", "problem"),
    [
        ("axes", "of 6 axes"),
        ("gather", "GATHER"),
        ("batch", "MUL of a constant along what would be the batch"),
        ("pad", "PADV?2? along what would be the batch"),
        ("group", "CONV_2D in groups of 2 to 2 channels"),
        ("nothing", ""),
    ],
)
def test_what_a_gpu_refuses_or_gets_wrong_is_refused(tmp_path: Path, kind: str, problem: str) -> None:
    module, path = Trouble(kind).eval(), tmp_path / "trouble.tflite"
    image = TensorSpec("image", (1, 8, 4, 4), DType.FLOAT32, "B C Y X", Role.IMAGE)
    with torch.no_grad():
        shape = tuple(module(torch.zeros(1, 8, 4, 4)).shape)
        made = TensorSpec("made", shape, DType.FLOAT32, " ".join("BCYX"[: len(shape)]), Role.FEATURES)
    graph = GraphSpec("run", ("run",), (image,), (made,))
    write_graphs(path, [(graph, module)], Encoder(Placeholders(module, {}), half=True), "trouble")
    if not problem:
        gpu.require_taken(path, "trouble")
        return
    with pytest.raises(LoweringError, match=rf"trouble: LiteRT's GPU accelerator does not take.*{problem}"):
        gpu.require_taken(path, "trouble")


@pytest.mark.skipif(
    not VULKAN.is_file() and not os.environ.get("CI"),
    reason="no Vulkan on the CPU: install Debian's chromium",
)
@pytest.mark.parametrize("name", ["llm", "mcp", "vae_decoder"])
def test_the_accelerator_takes_all_of_a_file_and_computes_it(
    brief_checkpoint: Checkpoint, shared: SharedExports, tmp_path: Path, name: str
) -> None:
    target, part = load_target("litert-gpu"), component(name)
    sequence = Sequence(lengths=(64,), context=128)
    wanted = recipe("fp16", *[("*embed_tokens*", "w8")] * (name == "llm"))
    request = LowerRequest(target.name, part, wanted, sequence, target.options)
    artifact = shared.lower(backend("litert"), request, brief_checkpoint, tmp_path)
    [file] = {graph.file for graph in artifact.graphs}
    calls: dict[str, dict[str, list[Any]]] = {}
    given, expected = {}, {}
    with backend("litert").open(artifact, tmp_path, name) as executor:
        for graph in artifact.graphs:
            inputs = inputs_of(graph.spec)
            given |= {f"{graph.entry}/{key}": value for key, value in inputs.items()}
            outputs = executor.run(graph.entry, inputs)
            expected |= {f"{graph.entry}/{key}": value for key, value in outputs.items()}
            calls[graph.entry] = {key: list(value.shape) for key, value in outputs.items()}
    np.savez(tmp_path / "given.npz", **given)
    done = subprocess.run(
        [
            *(sys.executable, "-c", ON_GPU, str(tmp_path / file), json.dumps(calls)),
            *(str(tmp_path / "given.npz"), str(tmp_path / "made.npz")),
        ],
        env={**os.environ, "VK_ICD_FILENAMES": str(VULKAN), "LD_LIBRARY_PATH": str(VULKAN.parent)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    made = np.load(tmp_path / "made.npz")
    # Measured: 100 dB and more; the same arithmetic in another order.
    assert min(measure(value, made[key]).snr_db for key, value in expected.items()) > 80
