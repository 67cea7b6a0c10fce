"""``export --profile``."""

from __future__ import annotations

import json
from pathlib import Path

from cli_harness import start

from mobile_o_export.errors import UsageError


def test_the_stages_of_an_export_are_told_and_traced(
    reference_folder: Path, golden: Path, tmp_path: Path
) -> None:
    trace, parts = tmp_path / "trace.json", ("--component", "mcp", "--target", "tensorrt-orin")
    with start(
        "export", reference_folder, *parts, "--golden", golden, "--out", tmp_path / "out", "--profile", trace
    ) as process:
        out, err = process.communicate()
    assert process.returncode == 0, err
    assert "exporting project" in out
    events = [event for event in json.loads(trace.read_text())["traceEvents"] if event["ph"] == "X"]
    named = {event["name"]: event for event in events}
    assert {"loading the weights", "exporting project", "reading the weights back"} <= named.keys()
    assert named["exporting project"]["dur"] > 0
    assert named["exporting project"]["ts"] >= named["loading the weights"]["ts"]


def test_a_trace_that_could_not_be_written_is_refused_before_any_work(
    reference_folder: Path, tmp_path: Path
) -> None:
    command = (
        "export",
        reference_folder,
        "--target",
        "tensorrt-orin",
        "--out",
        tmp_path / "out",
        "--profile",
    )
    with start(*command, tmp_path) as process:
        out, err = process.communicate()
    assert process.returncode == UsageError.exit_code, err
    assert "is a folder. Give the path of a file." in err
    assert out == ""
    assert not (tmp_path / "out").exists()
