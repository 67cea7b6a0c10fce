from __future__ import annotations

import json
from pathlib import Path

from mobile_o_export.checkpoint import Checkpoint
from mobile_o_export.checkpoint.inspection import inspect


def test_report_on_the_reference(reference_folder: Path) -> None:
    report = inspect(Checkpoint.open(reference_folder))
    # The counts of the reference implementation's modules; 3.8 M in all.
    assert {component.name: component.parameters for component in report.components} == {
        "vision_encoder": 1_740_576,
        "llm": 1_035_392,
        "mcp": 28_005,
        "dit": 260_360,
        "vae_decoder": 366_691,
        "vae_encoder": 366_632,
    }
    assert report.parameters == 3_797_656
    assert report.dtypes == ("float16",)
    assert report.digest == Checkpoint.open(reference_folder).digest
    assert report.lora is None
    assert not report.random_weights


def test_json_form(reference_folder: Path) -> None:
    report = inspect(Checkpoint.open(reference_folder))
    data = json.loads(json.dumps(report.to_json()))
    assert data["schema_version"] == 1
    assert data["parameters"] == report.parameters
    assert data["components"][0]["name"] == "vision_encoder"
    assert data["settings"]["vlm_num_layers"] == 4
    assert sum(component["size_bytes"] for component in data["components"]) == data["size_bytes"]
