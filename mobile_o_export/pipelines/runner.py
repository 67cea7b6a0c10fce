"""What a pipeline needs of whatever computes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from mobile_o_export.parity.metrics import Array


class Runner(Protocol):
    """One component's functions, unpadded; ``session.Session`` and ``reference.TorchRunner`` are two."""

    def run(self, function: str, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Outputs of ``function`` by name; an LLM keeps its sequence between calls."""
        ...
