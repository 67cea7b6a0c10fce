"""A bundle that no export made, and the readers of its files and of others; made once."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

from fuzz_readers import Reader, readers


@pytest.fixture(scope="session")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Reader]:
    pytest.importorskip("coremltools")
    return {reader.name: reader for reader in readers(tmp_path_factory.mktemp("fuzz"))}


@pytest.fixture(scope="session")
def handmade(found: dict[str, Reader]) -> Path:
    """The bundle's folder. Tests that change it copy it first."""
    return found["manifest.json"].files[0].parent
