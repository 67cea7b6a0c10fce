"""``llm/`` of the app's folder: packing, names, types and files as MLX wants them; harm is found."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from recipes import recipe
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from shared_exports import SharedExports
from torch import nn

from mobile_o_export.backends.base import Artifact, LowerRequest
from mobile_o_export.backends.mobile_o_app import language, tokenizer
from mobile_o_export.backends.mobile_o_app.executors import LanguageExecutor, VisionExecutor
from mobile_o_export.backends.mobile_o_app.mlx import packed, read_weights, unpacked
from mobile_o_export.backends.registry import backend
from mobile_o_export.checkpoint import Checkpoint
from mobile_o_export.components.registry import component
from mobile_o_export.compression.affine import quantize
from mobile_o_export.compression.compress import Compressed
from mobile_o_export.compression.recipe import Recipe
from mobile_o_export.errors import ConfigError, GateError, MissingToolError
from mobile_o_export.parity.metrics import Array, snr_db
from mobile_o_export.plan import plan
from mobile_o_export.reference import TorchRunner
from mobile_o_export.targets import Sequence, load_target, load_targets
from mobile_o_export.tokenizer import Tokenizer

TARGET = load_target("mobile-o-app")
FILES = {*tokenizer.FILES, "config.json", "model.safetensors", "model.safetensors.index.json"}


def request(wanted: Recipe, name: str = "llm") -> LowerRequest:
    return LowerRequest(TARGET.name, component(name), wanted, TARGET.sequence, TARGET.options)


Lower = Callable[[str], Path]


@pytest.fixture(scope="module")
def lowered(
    reference_checkpoint: Checkpoint, shared: SharedExports, tmp_path_factory: pytest.TempPathFactory
) -> Lower:
    """The ``llm/`` folder of the fixture checkpoint at a precision; each is made once."""
    made: dict[str, Path] = {}

    def lower(precision: str) -> Path:
        if precision not in made:
            folder = tmp_path_factory.mktemp(precision)
            shared.lower(backend("mobile-o-app"), request(recipe(precision)), reference_checkpoint, folder)
            made[precision] = folder / "llm"
        return made[precision]

    return lower


def write(wanted: LowerRequest, checkpoint: Checkpoint, folder: Path) -> Artifact:
    return backend("mobile-o-app").lower(wanted, checkpoint, folder, lambda _: None)


# --- packing ---


@pytest.mark.parametrize(("bits", "word"), [(4, 0x87654321), (8, 0x04030201)])
def test_the_first_code_lies_in_a_word_s_lowest_bits(bits: int, word: int) -> None:
    count = 32 // bits
    codes = np.arange(1, count + 1, dtype=np.uint8)[None]
    assert packed(codes, bits).tolist() == [[word]]
    rng = np.random.default_rng(0)
    many = rng.integers(0, 2**bits, (6, 128), np.uint8)
    words = packed(many, bits)
    assert (words.dtype, words.shape) == (np.uint32, (6, 128 * bits // 32))
    assert np.array_equal(unpacked(words, bits), many)


# --- the files ---


@pytest.mark.parametrize("precision", ["w4_affine_b64", "w8_affine_b32", "fp16"])
def test_the_folder_has_the_app_s_nine_files(lowered: Lower, precision: str) -> None:
    assert {path.name for path in lowered(precision).iterdir()} == FILES


def test_names_types_and_shapes_are_mlx_s(lowered: Lower, reference_checkpoint: Checkpoint) -> None:
    folder = lowered("w4_affine_b64")
    tensors = load_file(folder / "model.safetensors")
    with safe_open(folder / "model.safetensors", framework="numpy") as file:
        assert file.metadata() == {"format": "mlx"}
    layer = "language_model.model.layers.5"
    norms = ("input_layernorm.weight", "post_attention_layernorm.weight")
    quantized = [f"mlp.{part}_proj" for part in ("gate", "up", "down")]
    quantized += [f"self_attn.{part}_proj" for part in "qkvo"]
    expected = {f"{layer}.{name}" for name in norms}
    expected |= {f"{layer}.{name}.{kind}" for name in quantized for kind in ("weight", "scales", "biases")}
    expected |= {f"{layer}.self_attn.{part}_proj.bias" for part in "qkv"}
    assert {name for name in tensors if name.startswith(layer)} == expected
    others = {name for name in tensors if ".layers." not in name}
    assert others == {
        "language_model.model.norm.weight",
        *(f"language_model.model.embed_tokens.{kind}" for kind in ("weight", "scales", "biases")),
        *(f"language_model.lm_head.{kind}" for kind in ("weight", "scales", "biases")),
        # No scales: MLX leaves a layer without them as it is.
        *(f"multi_modal_projector.linear_{index}.{kind}" for index in (0, 2) for kind in ("weight", "bias")),
    }
    for name, tensor in tensors.items():
        words = name.endswith(".weight") and name.replace(".weight", ".scales") in tensors
        assert tensor.dtype == (np.uint32 if words else np.float16)
    down = f"{layer}.mlp.down_proj"
    hidden, inner = 128, reference_checkpoint.config.language["intermediate_size"]
    assert tensors[f"{down}.weight"].shape == (hidden, inner * 4 // 32)
    assert tensors[f"{down}.scales"].shape == tensors[f"{down}.biases"].shape == (hidden, inner // 64)


def test_the_index_names_every_tensor_and_their_bytes(lowered: Lower) -> None:
    folder = lowered("w4_affine_b64")
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    tensors = load_file(folder / "model.safetensors")
    assert index["weight_map"] == dict.fromkeys(tensors, "model.safetensors")
    assert index["metadata"] == {"total_size": sum(tensor.nbytes for tensor in tensors.values())}


def test_the_configuration_has_the_keys_that_the_app_reads(lowered: Lower) -> None:
    assert json.loads((lowered("w4_affine_b64") / "config.json").read_text()) == {
        "model_type": "llava_qwen2",
        "hidden_size": 128,
        "num_hidden_layers": 6,
        "intermediate_size": 256,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-6,
        "vocab_size": 576,
        "max_position_embeddings": 2048,
        "rope_theta": 1e6,
        "tie_word_embeddings": False,
        "mm_hidden_size": 512,
        "mm_vision_tower": "mobileclip_l_256",
        # Its tokenizer has no token <image>.
        "image_token_index": 151648,
        "quantization": {"group_size": 64, "bits": 4},
    }
    assert json.loads((lowered("w8_affine_b32") / "config.json").read_text())["quantization"] == {
        "group_size": 32,
        "bits": 8,
    }
    assert "quantization" not in json.loads((lowered("fp16") / "config.json").read_text())


def test_the_codes_are_those_of_the_checkpoint_in_fp16(
    lowered: Lower, reference_checkpoint: Checkpoint
) -> None:
    tensors = load_file(lowered("w4_affine_b64") / "model.safetensors")
    source = reference_checkpoint.state_dict("model.layers.2.mlp.up_proj.", torch.float32)["weight"]
    found = quantize(source.half().numpy().reshape(-1, 64), 4)
    layer = "language_model.model.layers.2.mlp.up_proj"
    assert np.array_equal(unpacked(tensors[f"{layer}.weight"], 4).reshape(-1, 64), found.values)
    assert np.array_equal(tensors[f"{layer}.scales"].reshape(-1), found.scales)
    assert np.array_equal(tensors[f"{layer}.biases"].reshape(-1), found.offsets)


def test_mlx_restores_what_we_do(lowered: Lower) -> None:
    mx = pytest.importorskip("mlx.core")
    folder = lowered("w4_affine_b64")
    theirs = mx.load(str(folder / "model.safetensors"))
    for name, values in read_weights(folder):
        layer = name.removesuffix(".weight")
        if f"{layer}.scales" in theirs:
            parts = (theirs[f"{layer}.{kind}"] for kind in ("weight", "scales", "biases"))
            restored = np.array(mx.dequantize(*parts, group_size=64, bits=4))
            assert np.array_equal(restored, values), name


# --- what the folder computes ---


def levels(folder: Path, checkpoint: Checkpoint) -> dict[str, float]:
    """How near embed, prefill and decode of the folder are to PyTorch's, in decibels."""
    layers = checkpoint.config.conditioning_layers
    executor, torch_runner = LanguageExecutor(folder, layers), TorchRunner.of(checkpoint, "llm")
    ids = np.array([[5, 99, 402, 17, 230]], np.int32)
    found = {}
    wanted = torch_runner.run("embed", {"input_ids": ids})
    embeds = wanted["inputs_embeds"]
    found["embed"] = snr_db(embeds, executor.run("embed", {"input_ids": ids})["inputs_embeds"])
    executor.reset()
    for name, part in (("prefill", embeds[:, :4]), ("decode", embeds[:, 4:])):
        wanted = torch_runner.run(name, {"inputs_embeds": part})
        outputs = executor.run("model", {"inputs_embeds": part})
        assert {key: value.shape for key, value in outputs.items()} == {
            key: value.shape for key, value in wanted.items()
        }
        found |= {f"{name} {key}": snr_db(wanted[key], outputs[key]) for key in wanted}
    with executor:
        pass
    return found


@pytest.mark.parametrize(
    ("precision", "least"), [("fp16", 55.0), ("w8_affine_b32", 30.0), ("w4_affine_b64", 6.0)]
)
def test_transformers_computes_the_model_from_nothing_but_the_folder(
    lowered: Lower, reference_checkpoint: Checkpoint, precision: str, least: float
) -> None:
    found = levels(lowered(precision), reference_checkpoint)
    assert min(found.values()) > least, found


def test_tied_embeddings_are_stored_once(tied_checkpoint: Checkpoint, tmp_path: Path) -> None:
    write(request(recipe("w8_affine_b64")), tied_checkpoint, tmp_path)
    names = load_file(tmp_path / "llm" / "model.safetensors")
    assert not [name for name in names if "lm_head" in name]
    assert json.loads((tmp_path / "llm" / "config.json").read_text())["tie_word_embeddings"] is True
    assert min(levels(tmp_path / "llm", tied_checkpoint).values()) > 30


def test_the_vision_encoder_needs_the_projector_in_the_folder(tmp_path: Path) -> None:
    class Package:
        runtime = "none"

    with pytest.raises(MissingToolError, match=r"projector is in llm/, which was not exported\. Export the"):
        VisionExecutor(Package(), tmp_path / "llm")  # type: ignore[arg-type]


# --- harm ---


def swapped_nibbles(tensors: dict[str, Array], layer: str) -> None:
    words = tensors[f"{layer}.weight"]
    tensors[f"{layer}.weight"] = (words >> np.uint32(4) & 0x0F0F0F0F) | (words & 0x0F0F0F0F) << np.uint32(4)


def one_code(tensors: dict[str, Array], layer: str) -> None:
    tensors[f"{layer}.weight"][3, 2] ^= np.uint32(1 << 16)


def one_scale(tensors: dict[str, Array], layer: str) -> None:
    scales = tensors[f"{layer}.scales"]
    scales[1, 0] = np.nextafter(scales[1, 0], np.float16(np.inf))


def swapped_scales_and_offsets(tensors: dict[str, Array], layer: str) -> None:
    names = f"{layer}.scales", f"{layer}.biases"
    tensors[names[0]], tensors[names[1]] = tensors[names[1]], tensors[names[0]]


def rows_in_another_order(tensors: dict[str, Array], layer: str) -> None:
    tensors[f"{layer}.scales"] = tensors[f"{layer}.scales"][::-1].copy()


def scales_of_another_type(tensors: dict[str, Array], layer: str) -> None:
    tensors[f"{layer}.scales"] = tensors[f"{layer}.scales"].astype(np.float32)


@pytest.mark.parametrize(
    "harm",
    [
        swapped_nibbles,
        one_code,
        one_scale,
        swapped_scales_and_offsets,
        rows_in_another_order,
        scales_of_another_type,
    ],
)
def test_harm_to_one_layer_is_found_when_it_is_read_back(
    harm: Callable[[dict[str, Array], str], None],
    reference_checkpoint: Checkpoint,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    true = language.quantized_tensors

    def harmed(name: str, weight: Compressed) -> dict[str, Array]:
        # Copies: what is written may be a view of what it is compared with.
        tensors = {key: values.copy() for key, values in true(name, weight).items()}
        if name.endswith("layers.3.self_attn.v_proj.weight"):
            harm(tensors, name.removesuffix(".weight"))
        return tensors

    monkeypatch.setattr(language, "quantized_tensors", harmed)
    with pytest.raises(GateError, match=r"layers\.3\.self_attn\.v_proj"):
        write(request(recipe("w4_affine_b64")), reference_checkpoint, tmp_path)


def test_a_model_of_another_shape_is_no_model(lowered: Lower, tmp_path: Path) -> None:
    folder = tmp_path / "llm"
    shutil.copytree(lowered("fp16"), folder)
    tensors = load_file(folder / "model.safetensors")
    del tensors["language_model.model.norm.weight"]
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(GateError, match=r"is not the Qwen2 of config\.json"):
        LanguageExecutor(folder, 4)


# --- the tokenizer ---


def test_missing_tokenizer_files_say_what_the_others_do(reference_folder: Path, tmp_path: Path) -> None:
    only = [reference_folder / name for name in ("tokenizer.json", "tokenizer_config.json")]
    tokenizer.write_tokenizer(only, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == set(tokenizer.FILES)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / name).read_bytes() == (reference_folder / name).read_bytes()
    assert json.loads((tmp_path / "vocab.json").read_text()) == json.loads(
        (reference_folder / "vocab.json").read_text()
    )
    assert (tmp_path / "merges.txt").read_text().split("\n")[1:] == (
        reference_folder / "merges.txt"
    ).read_text().split("\n")[1:]
    assert json.loads((tmp_path / "added_tokens.json").read_text())["<|im_end|>"] == 555
    assert Tokenizer(tmp_path).id_of("<|im_start|>") == 554
    assert Tokenizer(tmp_path).id_of("<image>") is None


def test_a_tokenizer_of_vocabulary_and_merges_becomes_a_whole_one(
    reference_folder: Path, tmp_path: Path
) -> None:
    only = [reference_folder / name for name in ("vocab.json", "merges.txt", "tokenizer_config.json")]
    tokenizer.write_tokenizer(only, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == set(tokenizer.FILES)
    whole = json.loads((tmp_path / "tokenizer.json").read_text())
    assert whole["model"]["vocab"].items() >= json.loads((tmp_path / "vocab.json").read_text()).items()


# --- refusals ---


@pytest.mark.parametrize(
    ("precision", "reason"),
    [
        ("llm=w4", "fp16 and affine integers of one kind"),
        ("llm=w4_b64", "fp16 and affine integers of one kind"),
        ("llm=fp32", "fp16 and affine integers of one kind"),
        ("llm=w4_affine_b16", "groups of 32, 64, 128 weights, not of 16"),
        ("dit=w4_affine_b64", "Core ML packages are written without offsets"),
        ("dit=w8_dyn", "mobile-o-app does not do w8_dyn"),
        ("llm=w16", "mobile-o-app does not do w16"),
    ],
)
def test_what_the_app_could_not_read_is_refused(
    reference_checkpoint: Checkpoint, precision: str, reason: str
) -> None:
    items = plan(reference_checkpoint, load_targets(["mobile-o-app"], [precision]))
    (refused,) = [item for item in items if item.refusal]
    assert refused.component == precision.partition("=")[0]
    assert reason in refused.refusal


@pytest.mark.parametrize("target", ["coreml-ane", "litert-cpu", "onnx-cpu", "tensorrt-orin"])
def test_other_targets_do_no_offsets(reference_checkpoint: Checkpoint, target: str) -> None:
    items = plan(reference_checkpoint, load_targets([target], ["llm=w4_affine_b64"]), ["llm"])
    assert "does not do w4_affine_b64" in items[0].refusal


def test_rows_that_blocks_do_not_divide_are_refused(reference_checkpoint: Checkpoint) -> None:
    class Odd:
        def load(self, checkpoint: Checkpoint) -> nn.Module:
            return nn.Sequential(nn.Linear(128, 64), nn.Linear(96, 64))

    reasons = [
        language.language_refusal(recipe(*wanted), Odd(), reference_checkpoint)  # type: ignore[arg-type]
        for wanted in (("w4_affine_b64",), ("w4_affine_b32",), ("w4_affine_b64", ("1.*", "fp16")))
    ]
    assert reasons == [
        "1.weight has rows of 96 weights, which w4_affine_b64 does not divide into blocks",
        "",
        "",
    ]


@pytest.mark.parametrize(
    "sequence", [Sequence(lengths=(64, 384), context=1024), Sequence(max_length=64, context=1024)]
)
def test_lengths_that_the_app_would_not_feed_are_refused(
    reference_checkpoint: Checkpoint, sequence: Sequence
) -> None:
    target = TARGET.model_copy(update={"sequence": sequence})
    with pytest.raises(ConfigError, match="prompts have 77 positions or more"):
        plan(reference_checkpoint, [target])
