"""Decompositions by kinds of operations, next to those of whole programs by torch."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from torch import nn
from torch.export import ExportedProgram

from mobile_o_export.backends.decompose import each_kind_once
from mobile_o_export.backends.litert import flatbuffer
from mobile_o_export.backends.tracing import quickly

pytestmark = pytest.mark.filterwarnings("ignore")  # of vendors; lowering keeps them off the terminal

TABLE = torch.export.default_decompositions()


class Block(nn.Module):
    """What is decomposed into several operations, what passes rewrite, and what returns several tensors."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.mix = nn.Conv2d(width, width, 3, padding=1)
        self.wide = nn.Linear(width, 2 * width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        pixels = nn.functional.hardswish(self.mix(x))
        tokens = self.norm(pixels.flatten(2).transpose(1, 2))
        tokens = nn.functional.scaled_dot_product_attention(tokens, tokens, tokens)
        kept, gate = self.wide(tokens).chunk(2, dim=-1)
        return x + (kept * nn.functional.gelu(gate)).transpose(1, 2).reshape(x.shape)


class Added(nn.Module):
    """Writes into a tensor."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        total = x.clone()
        total.add_(x)
        return total.mul_(2.0)


class Masked(nn.Module):
    """Takes two tensors whose first sizes are the same."""

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return x * mask[:, None]


@pytest.fixture
def blocks() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(*(Block(8) for _ in range(4))).eval()


@pytest.fixture
def picture() -> torch.Tensor:
    return torch.randn(1, 8, 6, 6, generator=torch.Generator().manual_seed(1))


def exported(module: nn.Module, *args: torch.Tensor) -> ExportedProgram:
    with torch.no_grad():
        return torch.export.export(module, args, strict=False)


def operations(program: ExportedProgram) -> Counter[str]:
    """Each operation with the shape and dtype of its result, and how many there are of it."""
    return Counter(
        f"{node.target} {value.dtype} {tuple(value.shape)}"
        for node in program.graph.nodes
        if node.op == "call_function" and node.users and isinstance(value := node.meta["val"], torch.Tensor)
    )


def test_a_program_is_decomposed_as_torch_does(blocks: nn.Module, picture: torch.Tensor) -> None:
    with torch.no_grad(), each_kind_once():
        by_kinds = exported(blocks, picture).run_decompositions(TABLE)
    whole = exported(blocks, picture).run_decompositions(TABLE)
    assert by_kinds.graph_signature.user_inputs == whole.graph_signature.user_inputs
    for program in (by_kinds, whole):
        program.graph.eliminate_dead_code()
    assert operations(by_kinds) == operations(whole)
    torch.testing.assert_close(by_kinds.module()(picture), blocks(picture))


def test_each_kind_is_traced_once(
    blocks: nn.Module, picture: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four blocks take no more than one."""
    traced: list[int] = []
    whole = ExportedProgram.run_decompositions

    def counted(program: ExportedProgram, *args: Any, **kwargs: Any) -> ExportedProgram:
        traced.append(sum(node.op == "call_function" for node in program.graph.nodes))
        return whole(program, *args, **kwargs)

    monkeypatch.setattr(ExportedProgram, "run_decompositions", counted)
    for module in (blocks, blocks[:1]):
        with torch.no_grad(), each_kind_once():
            exported(module, picture).run_decompositions(TABLE)
    four, one = traced
    assert four == one > 10


def test_what_is_written_in_place_is_decomposed_whole() -> None:
    program = exported(Added(), torch.ones(3))
    with torch.no_grad(), each_kind_once():
        decomposed = program.run_decompositions(TABLE)
    assert not any(node.target is torch.ops.aten.add_.Tensor for node in decomposed.graph.nodes)
    assert decomposed.module()(torch.ones(3)).tolist() == [4.0, 4.0, 4.0]


def test_a_program_of_any_size_is_decomposed_whole() -> None:
    """Also where nothing but its inputs' shapes says so."""
    rows = torch.export.Dim("rows", min=2, max=64)
    arguments = torch.ones(5, 8), torch.ones(5)
    with torch.no_grad():
        program = torch.export.export(Masked(), arguments, dynamic_shapes=({0: rows}, {0: rows}))
        # The sizes are one: torch checks it by names that it reads off the code of a forward method.
        with quickly():
            decomposed = program.run_decompositions(TABLE)
    x, mask = torch.arange(24.0).reshape(3, 8), torch.tensor([1.0, 0.0, 1.0])
    torch.testing.assert_close(decomposed.module()(x, mask), Masked()(x, mask))


@pytest.mark.slow
def test_a_converted_model_computes_the_same(blocks: nn.Module, picture: torch.Tensor) -> None:
    """Through all of the converter's passes, with composite operations that have names of their own."""
    import litert_torch
    from ai_edge_litert.interpreter import Interpreter

    def converted() -> bytes:
        return bytes(litert_torch.convert(blocks, (picture,)).model_content())

    with torch.no_grad():
        whole = converted()
        with each_kind_once():
            by_kinds = converted()
    kinds = []
    for content in (whole, by_kinds):
        model = flatbuffer.parse_model(content)
        kinds.append(Counter(operator.opcodeIndex for operator in model.subgraphs[0].operators))
    assert sorted(kinds[0].values()) == sorted(kinds[1].values())
    interpreter = Interpreter(model_content=by_kinds)
    interpreter.allocate_tensors()
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], picture.numpy())
    interpreter.invoke()
    found = interpreter.get_tensor(interpreter.get_output_details()[0]["index"])
    torch.testing.assert_close(torch.from_numpy(found), blocks(picture), rtol=1e-4, atol=1e-4)
