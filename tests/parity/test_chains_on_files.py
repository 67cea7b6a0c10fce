"""Faults that no function shows by itself: a chain over the same files does, and says where it begins."""

from __future__ import annotations

import json
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import faults
import pytest
import torch
from PIL import Image

from mobile_o_export.backends.onnx.backend import OnnxBackend
from mobile_o_export.bundle.chains import NO_CHAIN, verify_chains
from mobile_o_export.bundle.manifest import PARITY_REPORT, read_manifest
from mobile_o_export.bundle.outcomes import Outcomes
from mobile_o_export.bundle.verdicts import ParityReport
from mobile_o_export.bundle.verify import Wish, verify_bundle
from mobile_o_export.checkpoint import Checkpoint
from mobile_o_export.errors import MissingToolError, UsageError
from mobile_o_export.exporting.chaining import ChainTask, judge_in_worker
from mobile_o_export.golden import Golden
from mobile_o_export.parity.chain import CHAIN
from mobile_o_export.parity.judge import Row, Status
from mobile_o_export.pipelines.preprocessing import as_picture
from mobile_o_export.progress import silent
from mobile_o_export.workers import run_alone

TARGET = "tensorrt-orin"
CASE = "cube"


@pytest.fixture
def copy(bundle: Path, tmp_path: Path) -> Path:
    return faults.linked_copy(bundle, tmp_path / "bundle")


def edit_json(path: Path, change: Callable[[Any], object]) -> None:
    content = json.loads(path.read_text())
    change(content)
    faults.replace(path, json.dumps(content).encode())


def chains(bundle: Path, target: str = TARGET) -> list[Row]:
    golden = Golden.open(bundle / "golden")
    return verify_chains(bundle, read_manifest(bundle), golden, target, lambda *_: None)


def functions_pass(bundle: Path) -> bool:
    faults.reseal(bundle)
    rows = verify_bundle(bundle, Wish([TARGET]), lambda *_: None)
    return {row.status for row in rows if row.function} == {Status.PASSED}


def failed_stages(rows: list[Row], case: str = CASE) -> list[str]:
    return [row.output for row in rows if row.case == case and row.status is Status.FAILED]


def test_a_wrong_chat_template_shows_in_the_hidden_states(copy: Path) -> None:
    """As in the published app: a literal <im_start>."""

    def spoil(templates: dict[str, str]) -> None:
        templates["generate"] = templates["generate"].replace("<|im_start|>", "<im_start>")

    edit_json(copy / "config" / "prompts.json", spoil)
    assert functions_pass(copy)
    rows = chains(copy)
    assert failed_stages(rows)[0] == "hidden_states"
    assert failed_stages(rows, "table") == []


def test_a_timestep_that_is_off_shows_from_its_step_on(copy: Path) -> None:
    def spoil(scheduler: dict[str, Any]) -> None:
        scheduler["schedules"]["20"][4]["timestep"] -= 30

    edit_json(copy / "config" / "scheduler.json", spoil)
    assert functions_pass(copy)
    rows = chains(copy)
    drift = [row.snr_db or 0.0 for row in rows if row.case == CASE and row.step is not None]
    clean = shipped_drift(copy)
    assert failed_stages(rows)[0].startswith("latent_")
    assert drift[:4] == clean[:4]
    assert all(found < before - 6 for found, before in zip(drift[4:], clean[4:], strict=True))


def shipped_drift(bundle: Path) -> list[float]:
    """What the chain's latents measured when the bundle was made."""
    curves = json.loads((bundle / "parity.json").read_text())["drift"]
    (levels,) = [c["snr_db"] for c in curves if (c["target"], c["case"]) == (TARGET, CASE)]
    return list(levels)


def test_a_wrong_coefficient_fails_the_latents_after_it(copy: Path) -> None:
    def spoil(scheduler: dict[str, Any]) -> None:
        scheduler["schedules"]["20"][9]["denoised_now"] *= 1.1

    edit_json(copy / "config" / "scheduler.json", spoil)
    assert functions_pass(copy)
    failed = failed_stages(chains(copy))
    assert failed[0] == "latent_10"
    assert "latent_20" in failed


def test_a_wrong_scaling_factor_fails_the_image_alone(copy: Path) -> None:
    def spoil(numbers: dict[str, Any]) -> None:
        numbers["vae_scaling_factor"] *= 1.5

    edit_json(copy / "config" / "pipeline.json", spoil)
    assert functions_pass(copy)
    assert failed_stages(chains(copy)) == ["image"]


def test_two_tokens_that_changed_places_fail_the_prompt(copy: Path) -> None:
    def spoil(tokenizer: dict[str, Any]) -> None:
        vocabulary = tokenizer["model"]["vocab"]
        vocabulary["e"], vocabulary["a"] = vocabulary["a"], vocabulary["e"]

    edit_json(copy / "tokenizer" / "tokenizer.json", spoil)
    assert functions_pass(copy)
    assert failed_stages(chains(copy))[0] == "hidden_states"


@pytest.mark.parametrize("target", faults.TARGETS)
def test_a_spoilt_weight_shows_in_its_stage_and_not_before(
    target: str, copy: Path, reference_checkpoint: Checkpoint
) -> None:
    faults.edit_weight(copy, target, reference_checkpoint, lambda weight: weight[::-1])
    rows = chains(copy, target)
    failed = failed_stages(rows)
    assert failed[0] == "conditional"
    assert failed_stages(rows, "table") == []


def test_a_chain_that_cannot_be_run_fails(copy: Path) -> None:
    faults.replace(copy / TARGET / "vae_decoder" / "decode.onnx", b"")
    rows = chains(copy)
    failed = [row for row in rows if row.status is Status.FAILED]
    assert {row.case for row in failed} == {"cube", "cat", "market", "recolour"}
    assert all(row.reason for row in failed)


@pytest.mark.parametrize("tasks", [["generate"], ["edit", "describe"], ["generate", "edit", "describe"]])
def test_a_task_none_of_whose_prompts_fits_fails(tasks: list[str], copy: Path) -> None:
    def lengthen(templates: dict[str, str]) -> None:
        for name in tasks:
            templates[name] = "x " * 600 + templates[name]

    edit_json(copy / "config" / "prompts.json", lengthen)
    rows = chains(copy)
    failed = [(row.function, row.reason) for row in rows if row.status is Status.FAILED]
    assert sorted(failed) == sorted((task, NO_CHAIN) for task in tasks)
    assert not {row.function for row in rows if row.status is Status.PASSED} & set(tasks)


def test_a_chain_whose_runtime_is_not_here_was_not_run(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unavailable(*_: object) -> None:
        raise MissingToolError("no runtime here")

    monkeypatch.setattr(OnnxBackend, "open", unavailable)
    rows = chains(copy)
    assert {(row.status, row.reason) for row in rows} == {(Status.NOT_RUN, "no runtime here")}
    assert len(rows) == 6


def test_a_bundle_without_a_task_s_components_has_no_chain(copy: Path) -> None:
    def skip(manifest: dict[str, Any]) -> None:
        for name in ("llm", "dit"):
            manifest["targets"][TARGET]["components"][name] = {"skipped": "a test"}

    edit_json(copy / "manifest.json", skip)
    content = (copy / "manifest.json").read_bytes()
    faults.replace(copy / "manifest.sha256", f"{sha256(content).hexdigest()}  manifest.json\n".encode())
    assert chains(copy) == []
    with pytest.raises(UsageError, match=f"{TARGET}.*no chain"):
        verify_bundle(copy, Wish([TARGET], chains=True), lambda *_: None)
    others = verify_bundle(copy, Wish(components=("mcp",)), lambda *_: None)
    assert others


def test_a_process_of_its_own_judges_them_alike(bundle: Path) -> None:
    manifest = read_manifest(bundle)
    task = ChainTask(bundle, manifest, Golden.open(bundle / "golden"), TARGET, torch.get_num_threads())
    judged = run_alone(judge_in_worker, task, silent).result
    report = ParityReport.model_validate_json((bundle / PARITY_REPORT).read_text())
    assert judged.rows == [row for row in report.rows if row.target == TARGET and row.component == CHAIN]
    kept = [outcome for outcome in Outcomes.read(bundle).outcomes if outcome.target == TARGET]
    assert [chain.name for chain, _ in judged.results] == [outcome.case for outcome in kept]
    for (_, result), outcome in zip(judged.results, kept, strict=True):
        assert outcome.answer == (result if isinstance(result, str) else None)
        if not isinstance(result, str):
            assert outcome.picture is not None
            with Image.open(bundle / outcome.picture) as picture:
                assert picture.tobytes() == as_picture(result).tobytes()
