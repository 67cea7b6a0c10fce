"""What conversions keep torch from."""

from __future__ import annotations

import pytest
import torch
from torch import fx

from mobile_o_export.backends.tracing import quickly


class Twice(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + x


def test_the_code_of_a_graph_is_written_when_something_runs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[fx.Graph] = []
    write = fx.Graph.python_code
    monkeypatch.setattr(
        fx.Graph, "python_code", lambda graph, *a, **k: written.append(graph) or write(graph, *a, **k)
    )
    before = fx.symbolic_trace(Twice())
    written.clear()
    with quickly():
        module = fx.symbolic_trace(Twice())
        for graph_module in (before, module):
            (added,) = (node for node in graph_module.graph.nodes if node.op == "call_function")
            added.args = (added.args[0], 1)
            graph_module.recompile()
            graph_module.recompile()
        assert written == []
        assert before(torch.ones(1)).item() == 2
        assert written == [before.graph]
    assert [module(torch.full((1,), value)).item() for value in (2.0, 3.0)] == [3, 4]
    assert written == [before.graph, module.graph]
    module.recompile()
    assert written == [before.graph, module.graph, module.graph]
