"""What the tasks need of a model beside what computes."""

from __future__ import annotations

from pathlib import Path

import pytest

from mobile_o_export.checkpoint import Checkpoint
from mobile_o_export.pipelines.settings import Settings
from mobile_o_export.reference import settings
from mobile_o_export.tokenizer import Tokenizer


@pytest.fixture(scope="session")
def tokenizer(reference_folder: Path) -> Tokenizer:
    return Tokenizer(reference_folder)


@pytest.fixture(scope="session")
def model_settings(reference_checkpoint: Checkpoint, tokenizer: Tokenizer) -> Settings:
    return settings(reference_checkpoint, tokenizer)
