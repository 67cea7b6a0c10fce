"""Wrong checkpoints, targets and prompts: told by plan and export alike, before anything is written."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_harness import Cli, TargetFile
from safetensors.numpy import load_file, save_file

from mobile_o_export.backends.registry import backend

MCP = "model.diffusion_connector.fusion."


def change_tensors(folder: Path, change: Callable[[dict[str, Any], str], None]) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    name = next(n for n in sorted(tensors) if n.startswith(MCP) and tensors[n].ndim == 2)
    change(tensors, name)
    save_file(tensors, path)


def drop(tensors: dict[str, Any], name: str) -> None:
    del tensors[name]


def transpose(tensors: dict[str, Any], name: str) -> None:
    tensors[name] = np.ascontiguousarray(tensors[name].T)


def poison(tensors: dict[str, Any], name: str) -> None:
    tensors[name][0, 0] = np.nan


def truncate(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])


def corrupt(folder: Path) -> None:
    path = folder / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[8:40] = b"\xff" * 32
    path.write_bytes(content)


def pickled(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(pickle.dumps({"weight": [1.0]}))


def only_a_pickle(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"PK\x03\x04")


BAD_CHECKPOINTS = [
    (lambda folder: (folder / "config.json").unlink(), "config.json: no such file"),
    (lambda folder: (folder / "config.json").write_text("{"), "config.json"),
    (lambda folder: (folder / "model.safetensors").unlink(), "has neither model.safetensors nor"),
    (lambda folder: change_tensors(folder, drop), MCP),
    (lambda folder: change_tensors(folder, transpose), MCP),
    (truncate, "truncated: the tensors take"),
    (corrupt, "corrupt safetensors header"),
    (pickled, "a pickled PyTorch file, which can run code"),
    (only_a_pickle, "pytorch_model.bin: a pickled PyTorch file"),
]


@pytest.mark.parametrize(("damage", "message"), BAD_CHECKPOINTS)
def test_bad_checkpoints(
    cli: Cli, checkpoint: Path, tmp_path: Path, damage: Callable[[Path], None], message: str
) -> None:
    damage(checkpoint)
    cli("inspect", checkpoint).refused(message)
    cli("plan", checkpoint, "--target", "litert-cpu").refused(message)
    out = tmp_path / "new" / "bundle"
    cli("export", checkpoint, "--target", "litert-cpu", "--out", out).refused(message)
    cli("golden", "record", checkpoint, "--out", out).refused(message)
    assert list(tmp_path.iterdir()) == [checkpoint]


def test_weights_that_are_not_numbers(cli: Cli, checkpoint: Path, tmp_path: Path) -> None:
    """Only reading them tells: recording the golden refuses, and nothing is left."""
    change_tensors(checkpoint, poison)
    out = tmp_path / "new" / "bundle"
    arguments = ("--component", "mcp", "--target", "litert-cpu", "--out", out)
    cli("export", checkpoint, *arguments).refused(MCP, "holds NaN or infinity")
    assert list(tmp_path.iterdir()) == [checkpoint]


@pytest.mark.parametrize("command", ["inspect", "plan", "export", "golden record"])
@pytest.mark.parametrize(
    ("name", "message"),
    [("missing", "is missing, and a checkpoint is a folder"), ("file", "is a file, and a checkpoint is a")],
)
def test_no_checkpoint(cli: Cli, tmp_path: Path, command: str, name: str, message: str) -> None:
    (tmp_path / "file").write_text("")
    targets = ["--target", "litert-cpu"] if command in ("plan", "export") else []
    out = ["--out", tmp_path / "out"] if command in ("export", "golden record") else []
    cli(*command.split(), tmp_path / name, *targets, *out).refused(str(tmp_path / name), message)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_no_adapter(cli: Cli, reference_folder: Path, tmp_path: Path) -> None:
    cli("inspect", reference_folder, "--lora", tmp_path / "no").refused("no such folder. Give --lora")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "coreml-anne",
            "target 'coreml-anne' is unknown. Did you mean 'coreml-ane'? Use one of coreml-ane, ",
        ),
        (
            "",
            "target '' is unknown. Use one of coreml-ane, coreml-gpu, litert-cpu, litert-gpu, litert-npu, "
            "mobile-o-app, onnx-cpu, tensorrt-orin, tensorrt-orin-int8",
        ),
        ("nope.toml", "nope.toml: cannot be read: No such file or directory."),
    ],
)
def test_unknown_targets(cli: Cli, reference_folder: Path, tmp_path: Path, name: str, message: str) -> None:
    cli("plan", reference_folder, "--target", name).refused(message)
    out = tmp_path / "out"
    cli("export", reference_folder, "--target", name, "--out", out).refused(message)
    assert not out.exists()


def test_unknown_component(cli: Cli, reference_folder: Path) -> None:
    arguments = ("plan", reference_folder, "--target", "coreml-ane", "--component", "mpc")
    cli(*arguments).refused("component 'mpc' is unknown. Did you mean 'mcp'? Use one of vision_encoder, llm")


ONNX = {"backend": "onnx", "sequence": "max_length = 64\ncontext = 1024"}


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"backend": 'coreml"\nbakend = "x'}, "unknown key 'bakend'. Did you mean 'backend'? Remove or"),
        (
            {"sequence": "lengths = [64]\nconext = 1024"},
            "unknown key 'sequence.conext'. Did you mean 'context'",
        ),
        (
            {"sequence": "lenghts = [64]\ncontext = 9"},
            "unknown key 'sequence.lenghts'. Did you mean 'lengths'",
        ),
        ({"mcp": 'precison = "fp16"'}, "unknown key 'components.mcp.precison'. Did you mean 'precision'?"),
        (
            {"mcp": 'precision = "fp16"\ngate = { snr_bd = 50.0 }'},
            "unknown key 'components.mcp.gate.snr_bd'. Did you mean 'snr_db'?",
        ),
        (
            {"options": "head_chnk = 4"},
            "target mine [options]: unknown key 'head_chnk'. Did you mean 'head_ch",
        ),
        ({**ONNX, "options": "opest = 20"}, "unknown key 'opest'. Did you mean 'opset'?"),
        ({"backend": "litert", "options": "threads = 4"}, "target mine [options]: unknown key 'threads'."),
        ({"end": "[componets]"}, "unknown key 'componets'. Did you mean 'components'?"),
        ({"end": '[components.mpc]\nskip = "x"'}, "component 'mpc' is unknown. Did you mean 'mcp'?"),
        (
            {"backend": "corml"},
            "backend 'corml' is unknown. Did you mean 'coreml'? Use one of coreml, litert,",
        ),
        (
            {"mcp": 'precision = "int4"'},
            "components.mcp.precision: precision 'int4' is unknown. Use fp32, fp16, w16,",
        ),
        ({"mcp": ""}, 'components.mcp: give a precision, or skip = "the reason".'),
        (
            {"mcp": 'precision = "fp16"\nskip = "x"'},
            'components.mcp: give a precision, or skip = "the reason".',
        ),
        (
            {"mcp": 'precision = "fp16"\ngate = { snr_db = 9.0 }'},
            "mine, mcp: a gate looser than 40 dB, that of its weights' precisions, needs a reason.",
        ),
        (
            {"sequence": 'lengths = ["long"]\ncontext = 9'},
            "sequence.lengths.0: Input should be a valid integer",
        ),
        ({"sequence": "lengths = 64\ncontext = 1024"}, "sequence.lengths: give a list."),
        ({"sequence": "lengths = [64]"}, "sequence.context: is missing."),
        (
            {"sequence": "lengths = []\ncontext = 9"},
            "sequence: give either lengths (buckets, for static shapes)",
        ),
        ({"sequence": "lengths = [9, 8]\ncontext = 10"}, "sequence: lengths must be positive and ascending."),
        (
            {"sequence": "lengths = [64]\ncontext = 64"},
            "the longest prompt must be shorter than the context.",
        ),
        (
            {"sequence": f"lengths = [64]\ncontext = 1{'0' * 30}"},
            "sequence.context: Input should be less than",
        ),
        (
            {"sequence": "max_length = 64\ncontext = 1024"},
            "the Neural Engine needs static shapes; give [sequen",
        ),
        (
            {**ONNX, "sequence": "lengths = [64]\ncontext = 1024"},
            "ONNX graphs have dynamic axes; give [sequence]",
        ),
        (
            {**ONNX, "sequence": "max_length = 0\ncontext = 9"},
            "sequence.max_length: Input should be greater than",
        ),
        ({**ONNX, "options": "opset = 99"}, "opset: Input should be less than or equal to"),
        ({**ONNX, "options": 'opset = "new"'}, "opset: Input should be a valid integer"),
        ({"options": "head_chunk = 0"}, "head_chunk: Input should be greater than or equal to 1."),
        (
            {"options": 'minimum_deployment_target = "iOS17"'},
            "minimum_deployment_target: Input should be 'iOS18'.",
        ),
        ({"name": "golden"}, "the name 'golden' cannot be a folder of a bundle."),
        ({"name": "a b"}, "the name 'a b' cannot be a folder of a bundle. Use letters, digits, - and _,"),
        ({"name": ".."}, "the name '..' cannot be a folder of a bundle."),
        ({"name": "bundle"}, "and none of bundle, config, golden, tokenizer, torch, vectors."),
    ],
    ids=lambda value: " ".join(str(value).split())[:60] if isinstance(value, dict) else "",
)
def test_wrong_target_files(
    cli: Cli, reference_folder: Path, target_file: TargetFile, parts: dict[str, str], message: str
) -> None:
    path = target_file(**parts)
    cli("plan", reference_folder, "--component", "mcp", "--target", path).refused(message)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "name: is missing."),
        (b"\xff\xfe", "not valid TOML: 'utf-8' codec can't decode byte 0xff"),
        (b"name = ", "not valid TOML: Invalid value"),
        (b'name = "a"\nname = "b"', "not valid TOML: Cannot overwrite a value"),
        (b"a = " + b"[" * 5000, "not valid TOML: maximum recursion depth exceeded"),
        (b'name = "mine"\nsequence = 3', "is missing."),
    ],
    ids=["empty", "utf-16", "cut", "twice", "deep", "types"],
)
def test_files_that_are_no_target(
    cli: Cli, reference_folder: Path, tmp_path: Path, content: bytes, message: str
) -> None:
    path = tmp_path / "mine.toml"
    path.write_bytes(content)
    cli("plan", reference_folder, "--target", path).refused(f"{path}: ", message)


def test_a_target_is_called_like_its_file(cli: Cli, reference_folder: Path, target_file: TargetFile) -> None:
    path = target_file().rename(target_file.folder / "other.toml")
    cli("plan", reference_folder, "--target", path).refused("'mine' must be the file's own name, 'other'")


def test_two_targets_of_one_name(cli: Cli, reference_folder: Path, target_file: TargetFile) -> None:
    path = target_file(name="coreml-ane")
    arguments = ("plan", reference_folder, "--target", path, "--target", "coreml-ane")
    cli(*arguments).refused("two targets are called 'coreml-ane'. Rename one and its file.")


@pytest.mark.parametrize("as_json", [False, True])
def test_plan_shows_what_it_refuses(
    cli: Cli, reference_folder: Path, target_file: TargetFile, as_json: bool
) -> None:
    path = target_file(mcp='precision = "w16"', others='skip = "not needed"')
    outcome = cli("plan", reference_folder, "--target", path, *["--json"] * as_json)
    refusal = f"coreml does not do w16; it does {backend('coreml').precisions}"
    assert outcome.code == 2
    assert outcome.err == (
        f"error: 1 of 5 cannot be exported, the first: mine, mcp: {refusal}. "
        "Give another precision, change the target's file or choose other components.\n"
    )
    if as_json:
        report = json.loads(outcome.out)
        assert report["schema"] == 1
        rows = {row["component"]: row for row in report["rows"]}
        assert len(rows) == 5
        assert rows["mcp"]["refusal"] == refusal
        assert rows["llm"]["skip"] == "not needed"
        assert rows["llm"]["precision"] is None
    else:
        assert f"refused: {refusal}" in outcome.out
        assert outcome.out.count("skipped: not needed") == 4
        assert "\nestimated size of all files: 0.0 MB\n" in outcome.out


def test_export_refuses_what_plan_refuses(
    cli: Cli, reference_folder: Path, target_file: TargetFile, tmp_path: Path
) -> None:
    path = target_file(mcp='precision = "w16"')
    out = tmp_path / "out"
    outcome = cli("export", reference_folder, "--target", path, "--out", out)
    outcome.refused(
        "mine, mcp: coreml does not do w16; it does fp32, fp16, ",
        ". Give another precision, change the target's file",
    )
    assert not out.exists()


def test_duplicates_count_once(cli: Cli, reference_folder: Path) -> None:
    twice = ["--target", "litert-cpu", "--component", "mcp"] * 2
    outcome = cli("plan", reference_folder, *twice, "--json")
    assert outcome.code == 0
    assert len(json.loads(outcome.out)["rows"]) == 1


DESCRIBE = '[[describe]]\nname = "b"\nimage = "x.png"\nquestion = "q"\n'


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (DESCRIBE, "generate: is missing."),
        (f'[[generate]]\nname = "a"\nprompt = "p"\nstep = 3\n{DESCRIBE}', "Did you mean 'steps'?"),
        (f'[[generate]]\nname = "b"\nprompt = "p"\n{DESCRIBE}', "the name 'b' is given twice. Rename one."),
        (
            f'[[generate]]\nname = "a"\nprompt = "p"\nsteps = 0\n{DESCRIBE}',
            "generate.0.steps: Input should be",
        ),
        (f'[[generate]]\nname = "a"\nprompt = "p"\nseed = -1\n{DESCRIBE}', "generate.0.seed: Input should"),
        (f'[[generate]]\nname = "a"\nprompt = "p"\nguidance = nan\n{DESCRIBE}', "should be a finite number."),
        (f'[[generate]]\nname = "a"\nprompt = "p"\nsteps = 1\n{DESCRIBE}', "x.png"),
    ],
)
@pytest.mark.parametrize("image", [None, b"", b"no image"])
def test_bad_prompts(
    cli: Cli, reference_folder: Path, tmp_path: Path, content: str, message: str, image: bytes | None
) -> None:
    prompts = tmp_path / "prompts.toml"
    prompts.write_text(content)
    if image is not None:
        (tmp_path / "x.png").write_bytes(image)
    out = tmp_path / "golden"
    cli("golden", "record", reference_folder, "--prompts", prompts, "--out", out).refused(message)
    assert not [path for path in tmp_path.iterdir() if path.name.startswith("golden")]
