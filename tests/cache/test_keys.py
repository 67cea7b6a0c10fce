"""Two checkpoints, machines or versions never share what differs; what they have in common they share."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from mobile_o_export.backends.registry import BACKEND_NAMES, backend
from mobile_o_export.cache import keys
from mobile_o_export.cache.keys import golden_parts, lowered_parts, read_components
from mobile_o_export.checkpoint import COMPONENT_PREFIXES, Checkpoint
from mobile_o_export.components.registry import COMPONENT_NAMES, component
from mobile_o_export.digests import json_digest
from mobile_o_export.golden.requests import load_requests
from mobile_o_export.plan import plan
from mobile_o_export.targets import Target, load_targets

TARGETS = ["coreml-ane", "litert-npu", "onnx-cpu", "tensorrt-orin", "mobile-o-app"]


@pytest.fixture
def folder(reference_folder: Path, tmp_path: Path) -> Path:
    """A copy of the fixture checkpoint, to be changed."""
    return Path(shutil.copytree(reference_folder, tmp_path / "checkpoint"))


def component_of(name: str) -> str:
    (found,) = [part for part, prefixes in COMPONENT_PREFIXES.items() if name.startswith(prefixes)]
    return found


def part_digests(folder: Path) -> dict[str, str]:
    checkpoint = Checkpoint.open(folder)
    return {name: checkpoint.part_digest([name]) for name in COMPONENT_PREFIXES} | {"all": checkpoint.digest}


def differing(one: dict[str, str], other: dict[str, str]) -> set[str]:
    assert one.keys() == other.keys()
    return {name for name in one if one[name] != other[name]}


@pytest.mark.slow
def test_one_changed_bit_of_any_weight_changes_its_own_component_alone(folder: Path) -> None:
    before = part_digests(folder)
    opened = Checkpoint.open(folder)
    # A few of each component: all are hashed by the same code, and all of them take minutes.
    chosen = [tensor for part in COMPONENT_PREFIXES for tensor in opened.component_tensors(part)[::40]]
    assert len({component_of(tensor.name) for tensor in chosen}) == len(COMPONENT_PREFIXES)
    for info in chosen:
        name = info.name
        with (folder / "model.safetensors").open("r+b") as file:
            for bit in (1, 0):
                file.seek(info.offset_bytes + info.size_bytes // 2)
                byte = file.read(1)[0]
                file.seek(info.offset_bytes + info.size_bytes // 2)
                file.write(bytes([byte ^ 1]))
                file.flush()
                if bit:
                    assert differing(before, part_digests(folder)) == {component_of(name), "all"}, name
    assert part_digests(folder) == before


def test_content_that_moves_between_tensors_is_noticed(folder: Path) -> None:
    """The same bytes in another order, under other names or as another type are other checkpoints."""
    before = part_digests(folder)
    path = folder / "model.safetensors"
    tensors = load_file(path)
    by_shape: dict[Any, list[str]] = {}
    for name, value in tensors.items():
        by_shape.setdefault((value.shape, value.dtype, component_of(name)), []).append(name)
    one, other = next(
        (a, b)
        for names in by_shape.values()
        for a in names
        for b in names
        if a < b and not torch.equal(tensors[a], tensors[b])
    )
    save_file({**tensors, one: tensors[other], other: tensors[one]}, path)
    assert differing(before, part_digests(folder)) == {component_of(one), "all"}
    wider = torch.float32 if tensors[one].dtype != torch.float32 else torch.float16
    save_file({**tensors, one: tensors[one].to(wider)}, path)
    # Types and shapes of all tensors belong to every part: sizes are read from them.
    assert differing(before, part_digests(folder)) == before.keys()
    save_file(tensors, path)
    assert part_digests(folder) == before


CONFIGURATIONS = {
    "config.json": {"guidance_scale": 1.5, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "anything": 1},
    "diffusion/vae/config.json": {"scaling_factor": 0.5},
    "diffusion/transformer/config.json": {"norm_eps": 1e-5},
    "diffusion/scheduler/scheduler_config.json": {"flow_shift": 2.0},
}


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_every_setting_changes_every_component(folder: Path, name: str) -> None:
    before = part_digests(folder)
    original = (folder / name).read_text()
    for key, value in CONFIGURATIONS[name].items():
        assert json.loads(original).get(key) != value
        (folder / name).write_text(json.dumps({**json.loads(original), key: value}))
        assert differing(before, part_digests(folder)) == before.keys(), key
        (folder / name).write_text(original)
    assert part_digests(folder) == before


def test_only_what_the_key_covers_can_be_read(reference_checkpoint: Checkpoint) -> None:
    for name in COMPONENT_NAMES:
        part = reference_checkpoint.part([name])
        assert component(name).load(part).state_dict()
        assert part.tensors == reference_checkpoint.tensors
        for other in set(COMPONENT_NAMES) - {name}:
            with pytest.raises(LookupError, match="is no tensor of this part"):
                part.component_state_dict(other)


def test_where_components_share_a_folder_each_depends_on_all() -> None:
    for name in BACKEND_NAMES:
        for part in COMPONENT_NAMES:
            found = set(read_components(backend(name), part))
            assert found == (set(COMPONENT_PREFIXES) if name == "mobile-o-app" else {part})


def lowered_keys(folder: Path, targets: list[Target], calibrated_on: str = "golden") -> dict[str, str]:
    checkpoint = Checkpoint.open(folder)
    by_name = {target.name: target for target in targets}
    return {
        f"{item.target} {item.component}": json_digest(
            lowered_parts(item.request, checkpoint, backend(by_name[item.target].backend), [calibrated_on])
        )
        for item in plan(checkpoint, targets)
        if item.request is not None
    }


@pytest.mark.slow
def test_every_component_of_every_target_has_a_key_of_its_own(folder: Path) -> None:
    targets = load_targets(TARGETS)
    found = lowered_keys(folder, targets)
    assert len(set(found.values())) == len(found) > 20
    assert lowered_keys(folder, load_targets(TARGETS)) == found
    renamed = [target.model_copy(update={"name": f"my-{target.name}"}) for target in targets]
    assert list(lowered_keys(folder, renamed).values()) == list(found.values())
    (folder / "tokenizer_config.json").write_text('{"added": 1}')
    assert differing(found, lowered_keys(folder, targets)) == found.keys()


def test_options_lengths_precisions_and_goldens_change_keys(folder: Path) -> None:
    (target,) = load_targets(["litert-npu"])
    found = lowered_keys(folder, [target])
    (plain,) = load_targets(["litert-npu"], ["uncompressed"])
    (one,) = load_targets(["litert-npu"], ["mcp=w8"])
    longer = target.model_copy(
        update={"sequence": target.sequence.model_copy(update={"context": target.sequence.context + 1})}
    )
    assert differing(found, lowered_keys(folder, [longer])) == found.keys()
    assert differing(found, lowered_keys(folder, [plain])) == found.keys() - {"litert-npu mcp"}
    assert differing(found, lowered_keys(folder, [one])) == {"litert-npu mcp"}
    calibrated = {f"litert-npu {name}" for name in COMPONENT_NAMES if target.recipe(name).calibrated}
    assert differing(found, lowered_keys(folder, [target], "another")) == calibrated != set()
    stricter = target.components["mcp"].model_copy(update={"gate": None})
    gated = target.model_copy(update={"components": {**target.components, "mcp": stricter}})
    assert lowered_keys(folder, [gated]) == found


def test_an_adapter_belongs_to_every_key(reference_checkpoint: Checkpoint) -> None:
    class Adapter:
        def __init__(self, digest: str) -> None:
            self.digest = digest
            self.files = ()

    given = (reference_checkpoint.path, reference_checkpoint.config, reference_checkpoint._files)
    merged = [Checkpoint(*given, adapter) for adapter in (None, Adapter("sha256:one"), Adapter("sha256:two"))]
    for name in COMPONENT_NAMES:
        assert len({checkpoint.part_digest([name]) for checkpoint in merged}) == 3


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package that stands for ours."""
    package = tmp_path / "package"
    (package / "inner" / "__pycache__").mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "inner" / "gates.toml").write_text("x = 1")
    monkeypatch.setattr(keys.mobile_o_export, "__file__", str(package / "__init__.py"))
    return package


def test_any_file_of_the_package_counts_but_no_compiled_one(source: Path) -> None:
    before = keys.source_digest()
    (source / "inner" / "__pycache__" / "kernel.nbi").write_text("compiled")
    assert keys.source_digest() == before
    (source / "inner" / "gates.toml").write_text("x = 2")
    assert keys.source_digest() != before
    (source / "inner" / "gates.toml").write_text("x = 1")
    assert keys.source_digest() == before
    (source / "inner" / "gates.toml").rename(source / "inner" / "other.toml")
    assert keys.source_digest() != before


def test_machine_and_packages_count(monkeypatch: pytest.MonkeyPatch) -> None:
    around = keys.surroundings.__wrapped__
    before = around()
    assert {"torch", "coremltools", "litert-torch", "onnxruntime", "numpy", "numba", "protobuf"} <= (
        before["packages"].keys()
    )
    assert "mobile-o-export" not in before["packages"]
    monkeypatch.setenv("ATEN_CPU_CAPABILITY", "something-else")
    assert around() != before
    monkeypatch.delenv("ATEN_CPU_CAPABILITY")
    assert around() == before
    monkeypatch.setattr(keys, "installed_packages", lambda: {**before["packages"], "torch": "0.1"})
    assert around() != before


def images(requests: Any) -> Iterator[str]:
    yield from (item.image for item in (*requests.edit, *requests.describe))


def test_goldens_follow_from_prompts_pictures_and_tokenizer(folder: Path, tmp_path: Path) -> None:
    requests, place = load_requests(None)
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for name in images(requests):
        shutil.copyfile(place / name, pictures / name)
    before = golden_parts(Checkpoint.open(folder), requests, place)
    assert golden_parts(Checkpoint.open(folder), requests, pictures) == before
    first = requests.generate[0]
    other = requests.model_copy(update={"generate": (first.model_copy(update={"seed": 77}),)})
    assert golden_parts(Checkpoint.open(folder), other, place) != before
    with (pictures / next(images(requests))).open("ab") as file:
        file.write(b"\0")
    assert golden_parts(Checkpoint.open(folder), requests, pictures) != before
    tokenizer = folder / "tokenizer.json"
    tokenizer.write_text(tokenizer.read_text() + " ")
    assert golden_parts(Checkpoint.open(folder), requests, place) != before
