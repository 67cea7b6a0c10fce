"""verify: its reports for people, for programs and for CI; damage, refusals and what could not run."""

from __future__ import annotations

import importlib
import json
import os
import re
import shutil
import sys
from collections.abc import Callable
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from cli_harness import Cli

from mobile_o_export.backends.onnx.backend import OnnxBackend
from mobile_o_export.bundle.manifest import MANIFEST, MANIFEST_DIGEST, Manifest
from mobile_o_export.bundle.verdicts import judged_digest
from mobile_o_export.errors import MissingToolError

ROW_KEYS = [
    *("target", "component", "function", "case", "output", "runtime", "status"),
    *("snr_db", "max_abs", "cosine", "psnr_db", "ssim", "step", "identical_tokens", "tied_tokens"),
    *("recorded_db", "gate", "reason"),
]
BUNDLE_CHECKS = ("verdict", "files", "golden", "checkpoint", "schema", "config", "vectors", "chains")
BACKENDS = "mobile_o_export.backends"
GRAPH = "tensorrt-orin/mcp/project.onnx"


def reseal(bundle: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """A manifest that says something else and is consistent: only the content is left to judge by."""
    manifest = json.loads((bundle / MANIFEST).read_text())
    for name in manifest["files"]:
        content = (bundle / name).read_bytes()
        manifest["files"][name] = {"size_bytes": len(content), "sha256": sha256(content).hexdigest()}
    change(manifest)
    with suppress(ValueError):
        path = bundle / "parity.json"
        report = json.loads(path.read_text())
        path.write_text(json.dumps({**report, "judged": judged_digest(Manifest.model_validate(manifest))}))
        content = path.read_bytes()
        manifest["files"]["parity.json"] = {"size_bytes": len(content), "sha256": sha256(content).hexdigest()}
    content = json.dumps(manifest).encode()
    (bundle / MANIFEST).write_bytes(content)
    (bundle / MANIFEST_DIGEST).write_text(f"{sha256(content).hexdigest()}  {MANIFEST}\n")


def test_an_intact_bundle(cli: Cli, small_bundle: Path, tmp_path: Path) -> None:
    junit = tmp_path / "report.xml"
    outcome = cli("verify", small_bundle, "--json", "--junit", junit)
    assert outcome.code == 0
    assert re.fullmatch(r"\[ +[\d.]+ s\] tensorrt-orin mcp: verified, passed( \([\d.]+ s\))?\n", outcome.err)
    report = json.loads(outcome.out)
    assert list(report) == ["schema", "status", "drift", "rows"]
    assert (report["schema"], report["status"]) == (1, "passed")
    outputs = [row for row in report["rows"] if row["function"]]
    assert len(outputs) == 4
    for row in report["rows"]:
        assert list(row) == ROW_KEYS
        assert row["status"] == "passed"
    for row in outputs:
        assert (row["target"], row["component"]) == ("tensorrt-orin", "mcp")
        # On the runtime that export had, every level is held to the recorded one.
        assert row["snr_db"] == row["recorded_db"] >= 40.0
    checks = [(row["target"], row["component"]) for row in report["rows"] if not row["function"]]
    assert checks == [
        *(("bundle", part) for part in BUNDLE_CHECKS),
        *(("tensorrt-orin", part) for part in ("files", "pipeline", *["mcp"] * 6)),
    ]
    suites = ElementTree.parse(junit).getroot().findall("testsuite")
    assert [suite.attrib for suite in suites] == [
        {"name": "bundle", "tests": str(len(BUNDLE_CHECKS)), "failures": "0", "skipped": "0"},
        {"name": "tensorrt-orin", "tests": "12", "failures": "0", "skipped": "0"},
    ]
    assert [len(suite.findall("testcase")) for suite in suites] == [len(BUNDLE_CHECKS), 12]


def test_the_table(cli: Cli, small_bundle: Path) -> None:
    outcome = cli("verify", f"{small_bundle}/", *["--target", "tensorrt-orin", "--component", "mcp"] * 2)
    assert outcome.code == 0
    assert "\npassed: 4 outputs compared, 16 checks of files and records\nbundle: sha256:" in outcome.out
    assert "tensorrt-orin  mcp           4/4 " in outcome.out


def change_a_byte(bundle: Path, name: str) -> None:
    with (bundle / name).open("r+b") as file:
        byte = file.read(1)
        file.seek(0)
        file.write(bytes([byte[0] ^ 1]))


DAMAGES = [
    (lambda b: change_a_byte(b, GRAPH), GRAPH, "was changed"),
    (lambda b: change_a_byte(b, f"{GRAPH}.data"), f"{GRAPH}.data", "was changed"),
    (lambda b: change_a_byte(b, "golden/golden.json"), "golden/golden.json", "was changed"),
    (lambda b: change_a_byte(b, "LICENCE-WEIGHTS.txt"), "LICENCE-WEIGHTS.txt", "was changed"),
    (lambda b: change_a_byte(b, "manifest.json"), "manifest.json", "does not match manifest.sha256"),
    (lambda b: change_a_byte(b, "manifest.sha256"), "manifest.json", "does not match manifest.sha256"),
    (lambda b: (b / GRAPH).unlink(), GRAPH, "is missing"),
    (lambda b: (b / "manifest.json").unlink(), "manifest.json", "is missing"),
    (lambda b: (b / "manifest.sha256").unlink(), "manifest.json", "does not match manifest.sha256"),
    (lambda b: (b / "manifest.sha256").write_bytes(b""), "manifest.json", "does not match manifest.sha256"),
    (lambda b: (b / "notes.txt").touch(), "notes.txt", "was added"),
    (lambda b: (b / "golden/.DS_Store").touch(), "golden/.DS_Store", "was added"),
    (lambda b: (b / "a\x1b[2J\nb").touch(), "a\x1b[2J\nb", "has a name that no file of a bundle has"),
    (lambda b: (b / os.fsdecode(b"\xff")).touch(), "\udcff", "has a name that no file of a bundle has"),
    (lambda b: os.mkfifo(b / "pipe"), "pipe", "is not a regular file"),
    (lambda b: (b / "etc").symlink_to("/etc"), "etc", "is a link"),
    (
        lambda b: ((b / GRAPH).rename(b.parent / "moved"), (b / GRAPH).symlink_to(b.parent / "moved")),
        GRAPH,
        "is a link",
    ),
    (lambda b: reseal(b, lambda m: m.pop("targets")), "manifest.json", "is no manifest ("),
    (lambda b: reseal(b, lambda m: m["checkpoint"].update(digest="sha256:0")), "golden", "is unusable ("),
]


@pytest.mark.parametrize(("damage", "file", "reason"), DAMAGES)
def test_damage(
    cli: Cli, damaged: Path, tmp_path: Path, damage: Callable[[Path], None], file: str, reason: str
) -> None:
    damage(damaged)
    junit = tmp_path / "report.xml"
    outcome = cli("verify", damaged, "--json", "--junit", junit)
    assert outcome.code == 1
    assert outcome.err.startswith(f"error: {damaged}: is not what was exported: ")
    assert "Get the bundle again, or export it again." in outcome.err
    report = json.loads(outcome.out)
    assert (report["schema"], report["status"]) == (1, "failed")
    (row,) = report["rows"]
    assert list(row) == ROW_KEYS
    assert (row["target"], row["component"], row["output"]) == ("bundle", "files", file)
    assert (row["status"], row["runtime"]) == ("failed", "none")
    assert row["reason"].startswith(reason)
    (case,) = ElementTree.parse(junit).getroot().iter("testcase")
    assert case.attrib["classname"] == "bundle.files"
    assert case.find("failure").attrib["message"].startswith(reason)

    plain = cli("verify", damaged)
    plain.refused(f"{damaged}: is not what was exported: ", reason, code=1)


def test_a_lot_of_damage(cli: Cli, damaged: Path) -> None:
    shutil.rmtree(damaged / "tensorrt-orin")
    shutil.rmtree(damaged / "golden")
    shutil.rmtree(damaged / "config")
    outcome = cli("verify", damaged, "--json")
    rows = json.loads(outcome.out)["rows"]
    assert len(rows) > 5
    assert f"; and {len(rows) - 5} more. Get the bundle" in outcome.err


def test_a_file_that_computes_something_else(cli: Cli, damaged: Path, tmp_path: Path) -> None:
    """All hashes fit: the outputs decide."""
    path = damaged / f"{GRAPH}.data"
    content = path.read_bytes()
    path.write_bytes(bytes(byte ^ 0x04 for byte in content))
    reseal(damaged, lambda manifest: None)
    junit = tmp_path / "report.xml"
    outcome = cli("verify", damaged, "--json", "--junit", junit)
    assert outcome.code == 1
    report = json.loads(outcome.out)
    assert report["status"] == "failed"
    outputs = [row for row in report["rows"] if row["function"]]
    assert {row["status"] for row in outputs} == {"failed"}
    assert "dB is below the gate; largest difference" in outputs[0]["reason"]
    constants = [row for row in report["rows"] if row["gate"] == "restored as exported"]
    assert {(row["status"], row["reason"].partition(" (")[0]) for row in constants} == {
        ("failed", "differs"),
        ("failed", "differ"),
    }
    failed = sum(row["status"] == "failed" for row in report["rows"])
    assert failed == len(outputs) + len(constants)
    assert (
        f"error: {damaged}: {failed} of {len(report['rows'])} rows failed. Do not ship it.\n" in outcome.err
    )
    suite = ElementTree.parse(junit).getroot().findall("testsuite")[1]
    assert suite.attrib["failures"] == str(failed)
    table = cli("verify", damaged).out
    assert "\nfailed: 4 outputs compared, " in table
    assert "failed: tensorrt-orin mcp project" in table


def test_a_runtime_that_is_not_here(
    cli: Cli, small_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unavailable(*_: object) -> None:
        raise MissingToolError("no \x1b[31monnxruntime here; pip install onnxruntime")

    monkeypatch.setattr(OnnxBackend, "open", unavailable)
    junit = tmp_path / "report.xml"
    outcome = cli("verify", small_bundle, "--json", "--junit", junit)
    assert outcome.code == 3
    assert "tensorrt-orin mcp: not run here" in outcome.err
    assert outcome.err.endswith(
        "error: some targets could not be run on this machine; 'mobile-o-export doctor' says why.\n"
    )
    (row,) = (row for row in json.loads(outcome.out)["rows"] if row["status"] != "passed")
    assert row["status"] == "not_run"
    (case,) = (case for case in ElementTree.parse(junit).getroot().iter("testcase") if len(case))
    assert case.find("skipped").attrib["message"] == "no \\x1b[31monnxruntime here; pip install onnxruntime"


@pytest.mark.parametrize(
    ("module", "executor", "package"),
    [
        ("ai_edge_litert.interpreter", "litert.backend.LiteRTExecutor", "ai-edge-litert"),
        (
            "mobile_o_export.backends.coreml.interpreter",
            "coreml.interpreted.InterpreterExecutor",
            "coremltools",
        ),
        ("onnxruntime", "onnx.backend.OnnxExecutor", "onnxruntime"),
    ],
)
def test_every_runtime_says_when_it_is_not_here(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, module: str, executor: str, package: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    place, _, name = executor.rpartition(".")
    found = getattr(importlib.import_module(f"{BACKENDS}.{place}"), name)
    arguments = {"OnnxExecutor": ({},)}.get(name, (tmp_path, {}))
    with pytest.raises(MissingToolError, match=f"^mcp: .* pip install {package}$"):
        found(*arguments, "mcp")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--target", "litert-cpu"], "has no target 'litert-cpu'. It has tensorrt-orin."),
        (["--target", "tensorrt-orn"], "Did you mean 'tensorrt-orin'? It has tensorrt-orin."),
        (["--component", "mpc"], "has no component 'mpc'. Did you mean 'mcp'? It has mcp."),
        (["--component", "llm"], "has no component 'llm'. It has mcp."),
        (["--junit", "missing/report.xml"], "--junit missing/report.xml: its folder does not exist. Make it"),
        (["--junit", "."], "--junit .: is a folder. Give the path of a file."),
    ],
)
def test_refusals(cli: Cli, small_bundle: Path, arguments: list[str], message: str) -> None:
    cli("verify", small_bundle, "--json", *arguments).refused(message)


def test_a_report_in_the_bundle_would_damage_it(cli: Cli, small_bundle: Path) -> None:
    cli("verify", small_bundle, "--junit", small_bundle / "report.xml").refused("lies in the bundle")
    cli("verify", small_bundle, "--junit", small_bundle / "manifest.json").refused("lies in the bundle")


def test_what_the_target_skips(cli: Cli, damaged: Path) -> None:
    def skip(manifest: dict[str, Any]) -> None:
        manifest["targets"]["tensorrt-orin"]["components"]["mcp"] = {"skipped": "too small"}

    reseal(damaged, skip)
    arguments = ("verify", damaged, "--component", "mcp")
    cli(*arguments).refused("the chosen targets skip the chosen components. Choose others;")
    nothing = cli("verify", damaged, "--json")
    assert nothing.code == 1
    report = json.loads(nothing.out)
    assert report["status"] == "failed"
    assert "none was compared" in [row["reason"] for row in report["rows"]]


@pytest.mark.parametrize("name", ["missing", "file", "empty"])
def test_no_bundle(cli: Cli, tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "empty").mkdir()
    cli("verify", tmp_path / name, "--json", "--junit", tmp_path / "report.xml").refused(
        f"{tmp_path / name}: is not a bundle (manifest.json is missing). Give the folder that"
    )
    assert not (tmp_path / "report.xml").exists()
