"""verify --expect and --checkpoint: what tells a bundle whose every record was rewritten together."""

from __future__ import annotations

import json
import shutil
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
from cli_harness import Cli, Outcome
from corruptions import NUMBERS, large_onnx, of_onnx, seal, write

from mobile_o_export.backends.base import Artifact
from mobile_o_export.backends.registry import backend
from mobile_o_export.bundle.manifest import manifest_digest, read_manifest
from mobile_o_export.bundle.replay import verify_component
from mobile_o_export.golden import Golden
from mobile_o_export.parity.report import report_json

TARGET, COMPONENT = "tensorrt-orin", "mcp"
GRAPH = f"{TARGET}/{COMPONENT}/project.onnx"


def rewrite(bundle: Path) -> None:
    """Every record anew from what the files hold now: digests of weights, levels, hashes, the verdict."""
    seal(bundle, verdict=False)
    manifest = read_manifest(bundle)
    entry = manifest.targets[TARGET].components[COMPONENT]
    contents = backend("onnx").contents(Artifact(entry.graphs), bundle / entry.folder, COMPONENT)
    path = bundle / entry.folder / "weights.json"
    record = json.loads(path.read_text())
    record |= {"constants": dict(contents.constants), "programs": dict(contents.programs)}
    write(path, json.dumps(record).encode())
    golden = Golden.open(bundle / "golden")
    rows = verify_component(bundle, manifest, golden, TARGET, COMPONENT, lambda *_: None)
    write(bundle / "parity.json", json.dumps({**report_json(rows), "judged": ""}).encode())
    seal(bundle, verdict=True)


def failures(outcome: Outcome) -> list[tuple[str, str, str]]:
    rows = json.loads(outcome.out)["rows"]
    return [(row["component"], row["output"], row["reason"]) for row in rows if row["status"] == "failed"]


def test_the_bundle_s_own_checkpoint(cli: Cli, small_bundle: Path, reference_folder: Path) -> None:
    outcome = cli("verify", small_bundle, "--checkpoint", reference_folder, "--json")
    assert outcome.code == 0, outcome
    rows = json.loads(outcome.out)["rows"]
    assert {row["status"] for row in rows} == {"passed"}
    derived = [(row["target"], row["component"], row["output"]) for row in rows]
    assert ("bundle", "source", "manifest") in derived
    assert ("bundle", "source", "copied and derived files") in derived
    assert (TARGET, COMPONENT, "weights") in derived
    torch = [row for row in rows if row["target"] == "torch"]
    assert torch
    # What PyTorch recorded here it computes again, to the bit.
    assert {row["snr_db"] for row in torch} == {200.0}


def test_a_weight_whose_every_record_was_rewritten(cli: Cli, damaged: Path, reference_folder: Path) -> None:
    of_onnx(GRAPH, large_onnx, NUMBERS["one number"])(damaged, np.random.default_rng(0))
    rewrite(damaged)
    assert cli("verify", damaged).code == 0
    outcome = cli("verify", damaged, "--checkpoint", reference_folder, "--json")
    assert outcome.code == 1
    ((component, _, reason),) = failures(outcome)
    assert component == COMPONENT
    assert reason.startswith("differs from what the checkpoint gives in 1 of ")


def test_a_golden_that_is_not_the_checkpoint_s(cli: Cli, damaged: Path, reference_folder: Path) -> None:
    """The file's own outputs as the golden: nothing could be nearer."""
    from safetensors.numpy import load_file, save

    from mobile_o_export.golden.encoding import key_of

    place, index_path = damaged / "golden" / "tensors.safetensors", damaged / "golden" / "golden.json"
    tensors, index = load_file(place), json.loads(index_path.read_text())
    step = index["components"][COMPONENT]["cases"][0]["steps"][0]
    old = step["outputs"]["conditioning"]
    changed = tensors.pop(old) * np.float32(1.01)
    tensors[key_of(changed)] = changed
    index["tensors"][key_of(changed)] = index["tensors"].pop(old)
    write(place, save(dict(sorted(tensors.items()))))
    write(index_path, json.dumps(index).replace(old, key_of(changed)).encode())
    rewrite(damaged)
    outcome = cli("verify", damaged, "--checkpoint", reference_folder, "--json")
    assert outcome.code == 1
    assert any("dB is below the gate" in reason for _, _, reason in failures(outcome))


def test_another_licence_and_tokenizer(cli: Cli, damaged: Path, reference_folder: Path) -> None:
    notice = b"Do what you want.\n"
    write(damaged / "LICENCE-WEIGHTS.txt", notice)
    manifest = json.loads((damaged / "manifest.json").read_text())
    manifest["checkpoint"]["sources"]["LICENCE-WEIGHTS.txt"] = sha256(notice).hexdigest()
    write(damaged / "manifest.json", json.dumps(manifest).encode())
    rewrite(damaged)
    assert cli("verify", damaged).code == 0
    outcome = cli("verify", damaged, "--checkpoint", reference_folder, "--json")
    assert outcome.code == 1
    assert [output for _, output, _ in failures(outcome)] == ["LICENCE-WEIGHTS.txt", "checkpoint.sources"]


def test_another_checkpoint(cli: Cli, small_bundle: Path, checkpoint: Path) -> None:
    config = json.loads((checkpoint / "config.json").read_text())
    (checkpoint / "config.json").write_text(json.dumps({**config, "guidance_scale": 3.0}))
    outcome = cli("verify", small_bundle, "--checkpoint", checkpoint, "--json")
    assert outcome.code == 1
    found = failures(outcome)
    assert found[0][:2] == ("source", "checkpoint.digest")
    assert ("source", "config/pipeline.json") in [row[:2] for row in found]


def test_the_expected_bundle(cli: Cli, small_bundle: Path) -> None:
    identity = manifest_digest(small_bundle)
    for text in (identity, f"sha256:{identity}", identity.upper()):
        assert cli("verify", small_bundle, "--expect", text).code == 0
    assert f"sha256:{identity}" in cli("verify", small_bundle).out


def test_another_bundle_than_expected(cli: Cli, small_bundle: Path) -> None:
    outcome = cli("verify", small_bundle, "--expect", "0" * 64)
    identity = manifest_digest(small_bundle)
    outcome.refused(f"is not the expected one: its identity is sha256:{identity}", code=1)


@pytest.mark.parametrize("text", ["abc", "md5:" + "0" * 32, "0" * 63, "g" * 64])
def test_what_is_no_identity(cli: Cli, small_bundle: Path, text: str) -> None:
    cli("verify", small_bundle, "--expect", text).refused(
        "is no identity of a bundle, which is sha256: and 64"
    )


@pytest.mark.parametrize("option", ["--lora", "--calibration"])
def test_what_goes_with_a_checkpoint_only(cli: Cli, small_bundle: Path, tmp_path: Path, option: str) -> None:
    cli("verify", small_bundle, option, tmp_path).refused("--lora and --calibration go with --checkpoint")


def test_a_file_that_changes_meanwhile(cli: Cli, damaged: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mobile_o_export.bundle import verify

    original = verify.verify_component

    def interfering(*arguments: object) -> object:
        found = original(*arguments)  # type: ignore[arg-type]
        content = (damaged / f"{GRAPH}.data").read_bytes()
        shutil.copyfile(damaged / GRAPH, damaged / "kept")
        (damaged / "kept").unlink()
        (damaged / f"{GRAPH}.data").write_bytes(content)
        return found

    monkeypatch.setattr(verify, "verify_component", interfering)
    outcome = cli("verify", damaged)
    assert outcome.code == 1
    assert f"{GRAPH}.data was changed while it was verified" in outcome.err
