from __future__ import annotations

import json
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mobile_o_export.checkpoint import COMPONENT_PREFIXES, Checkpoint, MobileOConfig
from mobile_o_export.checkpoint.expected import expected_tensors
from mobile_o_export.checkpoint.safetensors_file import SafetensorsFile
from mobile_o_export.errors import CheckpointError
from mobile_o_export.model.fastvithd import FastViTHDLayout

VISION = "model.vision_tower.vision_tower.model."
NORM = "model.norm.weight"

SIZES = {
    "0.5b": ("Sana_600M_512px_diffusers", (896, 24, 14, 4864)),
    "1.5b": ("Sana_1600M_512px_diffusers", (1536, 28, 12, 8960)),
}


def test_components_hold_every_tensor_once(reference_folder: Path) -> None:
    checkpoint = Checkpoint.open(reference_folder)
    names = [
        info.name for component in COMPONENT_PREFIXES for info in checkpoint.component_tensors(component)
    ]
    assert sorted(names) == sorted(checkpoint.tensors)
    assert len(names) == len(set(names)) == 429


def test_values_are_those_of_the_safetensors_package(reference_folder: Path) -> None:
    from safetensors.torch import load_file

    theirs = load_file(reference_folder / "model.safetensors")
    ours = Checkpoint.open(reference_folder).state_dict("")
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert ours[name].dtype == tensor.dtype
        assert torch.equal(ours[name], tensor), name


def test_prefix_is_stripped_and_dtype_cast(reference_folder: Path) -> None:
    checkpoint = Checkpoint.open(reference_folder)
    stored, cast = checkpoint.state_dict("model.dit."), checkpoint.state_dict("model.dit.", torch.float32)
    assert stored["proj_out.weight"].dtype == torch.float16
    assert cast["proj_out.weight"].dtype == torch.float32
    assert torch.equal(stored["proj_out.weight"].float(), cast["proj_out.weight"])
    vision = checkpoint.state_dict(VISION, torch.float32)
    assert vision["network.0.0.convffn.conv.bn.num_batches_tracked"].dtype == torch.int64


def test_component_state_dict_keeps_published_names(reference_folder: Path) -> None:
    llm = Checkpoint.open(reference_folder).component_state_dict("llm")
    assert {"model.embed_tokens.weight", "lm_head.weight", "model.layers.5.mlp.up_proj.weight"} <= llm.keys()


def test_views_never_write_to_the_file(folder: Path) -> None:
    before = (folder / "model.safetensors").read_bytes()
    Checkpoint.open(folder).state_dict("model.norm.")["weight"].zero_()
    assert (folder / "model.safetensors").read_bytes() == before


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_other_dtypes(folder: Path, edit_tensors: Callable[..., None], dtype: torch.dtype) -> None:
    wanted = Checkpoint.open(folder).state_dict("model.norm.")["weight"].to(dtype)

    def cast(tensors: dict[str, torch.Tensor]) -> None:
        tensors.update({name: t.to(dtype) for name, t in tensors.items() if t.is_floating_point()})

    edit_tensors(cast)
    checkpoint = Checkpoint.open(folder)
    assert checkpoint.tensors[NORM].dtype == str(dtype).removeprefix("torch.")
    assert torch.equal(checkpoint.state_dict("model.norm.")["weight"], wanted)


def test_unaligned_tensor_is_read(tmp_path: Path) -> None:
    header = json.dumps(
        {
            "a": {"dtype": "F16", "shape": [1], "data_offsets": [0, 2]},
            "b": {"dtype": "F32", "shape": [2], "data_offsets": [2, 10]},
        }
    ).encode()
    data = (
        torch.tensor([1.5], dtype=torch.float16).numpy().tobytes()
        + torch.tensor([2.5, -3.0]).numpy().tobytes()
    )
    path = tmp_path / "unaligned.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + data)
    file = SafetensorsFile(path)
    assert file.tensor("a").tolist() == [1.5]
    assert file.tensor("b").tolist() == [2.5, -3.0]


def test_a_pickle_like_header_length_is_a_header_length(tmp_path: Path) -> None:
    # 640 is 80 02 00 … in little endian, which is how a protocol 2 pickle starts.
    path = tmp_path / "length.safetensors"
    path.write_bytes((640).to_bytes(8, "little") + b"{}".ljust(640))
    assert not SafetensorsFile(path).tensors


def test_sharding_changes_neither_values_nor_digest(folder: Path, shard: Callable[[], Path]) -> None:
    whole = Checkpoint.open(folder)
    digest, dit = whole.digest, whole.state_dict("model.dit.")
    shard()
    split = Checkpoint.open(folder)
    assert split.digest == digest
    assert all(torch.equal(tensor, dit[name]) for name, tensor in split.state_dict("model.dit.").items())
    assert len({info.file for info in split.tensors.values()}) == 2


def test_digest_is_of_content(
    folder: Path, edit_config: Callable[..., None], edit_tensors: Callable[..., None], reference_folder: Path
) -> None:
    digest = Checkpoint.open(reference_folder).digest
    assert digest.startswith("sha256:")
    assert len(digest) == len("sha256:") + 64
    assert Checkpoint.open(folder).digest == digest
    # Where the diffusion configurations lie is no content.
    edit_config(diffusion_name_or_path=str(folder / "diffusion"))
    assert Checkpoint.open(folder).digest == digest
    edit_tensors(lambda tensors: tensors[NORM].add_(0.25))
    changed = Checkpoint.open(folder).digest
    assert changed != digest
    edit_config(rms_norm_eps=1e-5)
    assert Checkpoint.open(folder).digest not in (changed, digest)


def test_tied_head_is_the_embeddings(
    folder: Path, edit_config: Callable[..., None], edit_tensors: Callable[..., None]
) -> None:
    edit_tensors(lambda tensors: tensors.pop("lm_head.weight"))
    with pytest.raises(CheckpointError, match=r"1 missing: lm_head\.weight"):
        Checkpoint.open(folder)
    edit_config(tie_word_embeddings=True)
    checkpoint = Checkpoint.open(folder)
    llm = checkpoint.component_state_dict("llm")
    assert torch.equal(llm["lm_head.weight"], llm["model.embed_tokens.weight"])
    assert torch.equal(checkpoint.state_dict("lm_head.")["weight"], llm["lm_head.weight"])
    assert checkpoint.config.language["tie_word_embeddings"] is False


def test_checkpoint_without_vae_encoder(folder: Path, edit_tensors: Callable[..., None]) -> None:
    def drop(tensors: dict[str, Any]) -> None:
        for name in [name for name in tensors if name.startswith("model.vae.encoder.")]:
            del tensors[name]

    edit_tensors(drop)
    assert Checkpoint.open(folder).component_tensors("vae_encoder") == ()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda t: t.pop("model.layers.2.self_attn.q_proj.weight"),
            "1 missing: model.layers.2.self_attn.q_proj",
        ),
        (lambda t: t.pop("model.dit.proj_out.bias"), "1 missing: model.dit.proj_out.bias"),
        (lambda t: t.pop("model.vae.encoder.conv_in.bias"), "1 missing: model.vae.encoder.conv_in.bias"),
        (lambda t: t.pop(f"{VISION}conv_exp.se.reduce.weight"), "no conv_exp.se.reduce.weight"),
        (lambda t: t.pop("model.diffusion_connector.fusion.layer_weights"), "fusion.layer_weights"),
        (lambda t: t.update({NORM: t[NORM][:64].clone()}), f"{NORM} (64,) instead of (128,)"),
        (lambda t: t.update({"model.extra": t[NORM].clone()}), "1 unexpected: model.extra"),
        (lambda t: t.update({"model.layers.6.mlp.up_proj.weight": t[NORM].clone()}), "1 unexpected"),
    ],
)
def test_wrong_tensors_are_named(
    folder: Path, edit_tensors: Callable[..., None], change: Callable[[Any], Any], message: str
) -> None:
    edit_tensors(change)
    with pytest.raises(CheckpointError) as caught:
        Checkpoint.open(folder)
    assert message in str(caught.value)


def test_layer_count_of_config_and_tensors(folder: Path, edit_config: Callable[..., None]) -> None:
    edit_config(num_hidden_layers=7, layer_types=None)
    with pytest.raises(CheckpointError, match=r"12 missing: model\.layers\.6\..*, …"):
        Checkpoint.open(folder)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_nan_is_found_when_read(folder: Path, edit_tensors: Callable[..., None], value: float) -> None:
    edit_tensors(lambda tensors: tensors["model.dit.proj_out.weight"].view(-1)[7:8].fill_(value))
    checkpoint = Checkpoint.open(folder)
    checkpoint.state_dict("model.vae.decoder.")
    with pytest.raises(CheckpointError, match=r"model\.dit\.proj_out\.weight holds NaN or infinity"):
        checkpoint.state_dict("model.dit.")


def test_overflow_of_the_wanted_dtype(folder: Path, edit_tensors: Callable[..., None]) -> None:
    edit_tensors(lambda tensors: tensors.update({NORM: tensors[NORM].float().add(1e6)}))
    checkpoint = Checkpoint.open(folder)
    checkpoint.state_dict("model.norm.", torch.bfloat16)
    with pytest.raises(CheckpointError, match=r"more than torch\.float16 can"):
        checkpoint.state_dict("model.norm.", torch.float16)


def test_unknown_prefix(reference_folder: Path) -> None:
    with pytest.raises(CheckpointError, match="has no tensors"):
        Checkpoint.open(reference_folder).state_dict("model.nothing.")


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def _cut_header(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:500])


def _corrupt_header(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[40:44] = b"\x00\xff{{"
    path.write_bytes(content)


def _append(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"surplus.")


def _lfs_pointer(path: Path) -> None:
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")


def _pickle(path: Path) -> None:
    path.write_bytes(pickle.dumps({"weights": list(range(100))}, protocol=2))


def _zip(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02}.")


def _edit_header(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def edit(path: Path) -> None:
        content = path.read_bytes()
        end = 8 + int.from_bytes(content[:8], "little")
        header = json.loads(content[8:end])
        change(header)
        text = json.dumps(header).encode()
        path.write_bytes(len(text).to_bytes(8, "little") + text + content[end:])

    return edit


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_truncate, "truncated: the tensors take"),
        (_cut_header, "truncated or not a safetensors file"),
        (lambda path: path.write_bytes(b""), "truncated or not a safetensors file"),
        (lambda path: path.write_bytes(b"abc"), "truncated or not a safetensors file"),
        (_corrupt_header, "corrupt safetensors header"),
        (_append, "8 bytes follow the last tensor"),
        (_lfs_pointer, "git lfs pull"),
        (_pickle, "only safetensors is read"),
        (_zip, "only safetensors is read"),
        (_edit_header(lambda h: h[NORM].update(dtype="I8")), "stored as I8"),
        (_edit_header(lambda h: h[NORM].update(shape=[127])), "does not fill its 256 bytes"),
        (_edit_header(lambda h: h[NORM].update(shape=[-128])), "the shape (-128,)"),
        (_edit_header(lambda h: h[NORM].pop("shape")), "corrupt safetensors header"),
        (_edit_header(lambda h: h.update({NORM: 3})), "corrupt safetensors header"),
        (_edit_header(lambda h: h.pop("lm_head.weight")), "was expected"),
    ],
)
def test_damaged_file(folder: Path, damage: Callable[[Path], None], message: str) -> None:
    damage(folder / "model.safetensors")
    with pytest.raises(CheckpointError) as caught:
        Checkpoint.open(folder)
    assert message in str(caught.value)
    assert "model.safetensors" in str(caught.value)


def test_missing_folder_and_file_for_a_folder(tmp_path: Path, reference_folder: Path) -> None:
    with pytest.raises(CheckpointError, match="is missing, and a checkpoint is a folder"):
        Checkpoint.open(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match="is a file"):
        Checkpoint.open(reference_folder / "model.safetensors")


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ("pytorch_model.bin", "only safetensors is read"),
        ("consolidated.00.pth", "only safetensors is read"),
        ("weights.safetensors", "rename it"),
        ("notes.txt", "has neither model.safetensors nor"),
    ],
)
def test_no_weights(folder: Path, other: str, message: str) -> None:
    (folder / "model.safetensors").rename(folder / other)
    with pytest.raises(CheckpointError) as caught:
        Checkpoint.open(folder)
    assert message in str(caught.value)


def _rewrite_index(change: Callable[[dict[str, str]], Any]) -> Callable[[Path], None]:
    def edit(index: Path) -> None:
        content = json.loads(index.read_text())
        change(content["weight_map"])
        index.write_text(json.dumps(content))

    return edit


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda index: (index.parent / "model-00002-of-00002.safetensors").unlink(), "no such file"),
        (lambda index: index.write_text("{}"), "weight_map is missing or empty"),
        (lambda index: index.write_text('{"weight_map": 3}'), "weight_map is missing or empty"),
        (
            _rewrite_index(lambda m: m.update({NORM: "../model-00001-of-00002.safetensors"})),
            "not a file of this",
        ),
        (
            _rewrite_index(lambda m: m.update({"model.more": "model-00001-of-00002.safetensors"})),
            "has no model.more",
        ),
        (_rewrite_index(lambda m: m.update({NORM: "model-00002-of-00002.safetensors"})), f"has no {NORM}"),
        (_rewrite_index(lambda m: m.pop(NORM)), f"holds {NORM}"),
    ],
)
def test_damaged_index(
    folder: Path, shard: Callable[[], Path], damage: Callable[[Path], None], message: str
) -> None:
    damage(shard())
    with pytest.raises(CheckpointError) as caught:
        Checkpoint.open(folder)
    assert message in str(caught.value)


@pytest.mark.parametrize("size", SIZES)
def test_expected_tensors_are_the_published_ones(size: str, reference_folder: Path) -> None:
    data = reference_folder.parent / f"mobile-o-{size}.tensors.json"
    published = {name: tuple(shape) for name, shape in json.loads(data.read_text()).items()}
    diffusion, (width, layers, heads, hidden) = SIZES[size]
    raw = json.loads((reference_folder / "config.json").read_text()) | {
        "vocab_size": 151936,
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "intermediate_size": hidden,
        "mm_hidden_size": 3072,
        "mm_vision_tower": "mobileclip_l_1024",
        "diffusion_name_or_path": diffusion,
    }
    del raw["layer_types"]
    vision = {
        name.removeprefix(VISION): shape for name, shape in published.items() if name.startswith(VISION)
    }
    config = MobileOConfig.from_json(raw, reference_folder)
    assert expected_tensors(config, FastViTHDLayout.from_shapes(vision)) == published


def test_files_and_tokenizer(folder: Path) -> None:
    checkpoint = Checkpoint.open(folder)
    assert {path.name for path in checkpoint.tokenizer_files} == {
        "tokenizer.json",
        "tokenizer_config.json",
        "vocab.json",
        "merges.txt",
    }
    assert folder / "generation_config.json" in checkpoint.files
    (folder / "tokenizer.json").unlink()
    (folder / "merges.txt").unlink()
    with pytest.raises(CheckpointError, match="neither tokenizer"):
        _ = Checkpoint.open(folder).tokenizer_files


def test_licence(folder: Path, edit_config: Callable[..., None]) -> None:
    assert "CC BY-NC-SA 4.0" in Checkpoint.open(folder).licence
    edit_config(mobile_o_export_random={"size": "tiny", "seed": 0})
    assert "random weights" in Checkpoint.open(folder).licence
    (folder / "LICENSE").write_text("My own terms.")
    assert Checkpoint.open(folder).licence == "My own terms."


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda index: index["weight_map"].update({"model.norm.weight": 5}), "5 is no file's name"),
        (
            lambda index: index["weight_map"].update({"model.norm.weight": "a\0b"}),
            "which is not a file of this",
        ),
        (lambda index: index.update(weight_map=["a"]), "weight_map is missing or empty"),
    ],
)
def test_an_index_that_names_no_files(
    folder: Path, shard: Callable[[], Path], change: Callable[[Any], object], message: str
) -> None:
    path = shard()
    index = json.loads(path.read_text())
    change(index)
    path.write_text(json.dumps(index))
    with pytest.raises(CheckpointError) as caught:
        Checkpoint.open(folder)
    assert message in str(caught.value)


def test_an_index_that_places_a_tensor_twice(folder: Path, shard: Callable[[], Path]) -> None:
    path = shard()
    text = path.read_text()
    path.write_text(text.replace('"weight_map": {', '"weight_map": {"model.norm.weight": "x", ', 1))
    with pytest.raises(CheckpointError, match=r"the key 'model\.norm\.weight' occurs twice"):
        Checkpoint.open(folder)
