"""Compressed weights in saved packages: what the file restores, that it is small, that harm is found."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from recipes import recipe, short_sequence
from shared_exports import SharedExports

from mobile_o_export.backends.base import Artifact, LowerRequest
from mobile_o_export.backends.coreml import write
from mobile_o_export.backends.coreml.encode import Encoder
from mobile_o_export.backends.coreml.interpreter import MilProgram, load_mlpackage
from mobile_o_export.backends.registry import backend
from mobile_o_export.bundle.manifest import DamagedBundleError
from mobile_o_export.bundle.verify import Wish, verify_bundle
from mobile_o_export.calibration import Calibration
from mobile_o_export.checkpoint import Checkpoint
from mobile_o_export.components.registry import component
from mobile_o_export.compression import check
from mobile_o_export.compression.check import check_weights
from mobile_o_export.compression.compress import Compressed
from mobile_o_export.compression.palettes import Palettes
from mobile_o_export.compression.recipe import Recipe
from mobile_o_export.errors import GateError
from mobile_o_export.golden import Golden
from mobile_o_export.parity.judge import Status, verdict
from mobile_o_export.precision import Precision
from mobile_o_export.targets import load_target, load_targets

Lower = Callable[[str, Path, Recipe], Artifact]
SUB_BYTE = [
    "w1_lut",
    "w2_lut_g16",
    "w3_lut",
    "w4_lut_g16",
    "w6_lut_g16",
    "w8_lut",
    "w4_b32",
    "w8_b32",
    "w4",
    "w8",
]


@pytest.fixture(scope="module")
def request_for() -> Callable[[str, Recipe], LowerRequest]:
    target = load_target("coreml-ane")
    return lambda name, wanted: LowerRequest(
        target.name, component(name), wanted, target.sequence, target.options
    )


@pytest.fixture(scope="module")
def lower_request(
    brief_checkpoint: Checkpoint, shared: SharedExports
) -> Callable[[LowerRequest, Path], Artifact]:
    return lambda request, folder: shared.lower(backend("coreml"), request, brief_checkpoint, folder)


@pytest.fixture(scope="module")
def lower(
    lower_request: Callable[[LowerRequest, Path], Artifact],
    request_for: Callable[[str, Recipe], LowerRequest],
) -> Lower:
    return lambda name, folder, wanted: lower_request(request_for(name, wanted), folder)


@pytest.fixture(scope="module")
def lower_anew(brief_checkpoint: Checkpoint, request_for: Callable[[str, Recipe], LowerRequest]) -> Lower:
    """Whatever the session has lowered already: for tests that change how, or look at it."""

    def run(name: str, folder: Path, wanted: Recipe) -> Artifact:
        folder.mkdir(exist_ok=True)
        return backend("coreml").lower(
            request_for(name, wanted), brief_checkpoint, folder, lambda _phrase: None
        )

    return run


@pytest.fixture(scope="module")
def encoded(
    lower_anew: Lower, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], tuple[Encoder, Path]]:
    """An MCP at a precision, lowered once, to be copied: what ought to be in it, and its package."""
    made: dict[str, tuple[Encoder, Path]] = {}

    def run(name: str) -> tuple[Encoder, Path]:
        if name not in made:
            made[name] = _lowered(lower_anew, tmp_path_factory.mktemp(name), recipe(name))
        return made[name]

    return run


def weights_file(folder: Path, name: str) -> Path:
    [path] = (folder / f"{name}.mlpackage").rglob("weight.bin")
    return path


def operations(program: MilProgram, kind: str) -> set[int]:
    return {function.op_counts().get(kind, 0) for function in program.functions.values()}


@pytest.mark.parametrize("name", SUB_BYTE)
def test_each_precision_is_stored_as_what_it_says(lower: Lower, tmp_path: Path, name: str) -> None:
    artifact = lower("mcp", tmp_path, recipe(name))
    assert artifact.weights
    assert {row.precision.weight_bits for row in artifact.weights} == {Precision.parse(name).weight_bits}
    program = load_mlpackage(tmp_path / "mcp.mlpackage")
    kind = "constexpr_lut_to_dense" if "lut" in name else "constexpr_blockwise_shift_scale"
    assert operations(program, kind) == {len(artifact.weights)}


def test_calibrated_activations_are_rounded_where_their_weights_are(
    lower_request: Callable[[LowerRequest, Path], Artifact],
    request_for: Callable[[str, Recipe], LowerRequest],
    reference_checkpoint: Checkpoint,
    reference_golden: Golden,
    tmp_path: Path,
) -> None:
    statistics = Calibration(reference_checkpoint, [reference_golden]).of("mcp", lambda _: None)
    request = replace(request_for("mcp", recipe("w8a8")), statistics=statistics)
    artifact = lower_request(request, tmp_path)
    scales = {row.name: row.input_scale for row in artifact.weights if row.input_scale is not None}
    assert scales == {name: statistics[name].inputs.scale(8) for name in scales}
    assert len(scales) > 3
    program = load_mlpackage(tmp_path / "mcp.mlpackage")
    # Where several layers take the same input, one rounding may do for all of them.
    assert operations(program, "quantize") == operations(program, "dequantize")
    assert max(operations(program, "quantize")) <= len(scales)
    assert operations(program, "constexpr_blockwise_shift_scale") == {len(artifact.weights)}


def test_functions_share_compressed_weights_and_files_are_as_small_as_planned(
    lower: Lower, tmp_path: Path
) -> None:
    lower("mcp", tmp_path / "plain", recipe("fp16"))
    artifact = lower("mcp", tmp_path / "small", recipe("w4_lut_g16"))
    saved = sum(2 * np.prod(row.shape) - row.size_bytes for row in artifact.weights)
    sizes = [weights_file(tmp_path / part, "mcp").stat().st_size for part in ("plain", "small")]
    # Each blob has a header and is aligned.
    assert sizes[1] == pytest.approx(sizes[0] - saved, abs=256 * len(artifact.weights))


def test_convolutions_gathers_and_pieces_of_the_head_are_found(
    lower_request: Callable[[LowerRequest, Path], Artifact],
    request_for: Callable[[str, Recipe], LowerRequest],
    tmp_path: Path,
) -> None:
    sequence = short_sequence(load_target("coreml-ane"))

    def lower(name: str, folder: Path, wanted: Recipe) -> Artifact:
        return lower_request(replace(request_for(name, wanted), sequence=sequence), folder)

    dit = lower("dit", tmp_path / "dit", recipe("w6_lut_g16", ("*.time_embed.*", "fp16")))
    assert any(len(row.shape) == 4 for row in dit.weights)
    assert not [row for row in dit.weights if "time_embed" in row.name]
    llm = lower("llm", tmp_path / "llm", recipe("w4_lut_g16", ("*embed_tokens*", "w8")))
    names = {row.name: str(row.precision) for row in llm.weights}
    assert any("embed_tokens" in name and precision == "w8" for name, precision in names.items())
    assert any("lm_head" in name for name in names)


def test_the_same_weights_give_the_same_bytes(lower: Lower, lower_anew: Lower, tmp_path: Path) -> None:
    lower("mcp", tmp_path / "first", recipe("w4_lut_g16"))
    lower_anew("mcp", tmp_path / "second", recipe("w4_lut_g16"))
    files = [sorted((tmp_path / part).rglob("*.*")) for part in ("first", "second")]
    for one, other in zip(*files, strict=True):
        assert one.is_dir() or one.read_bytes() == other.read_bytes()


HARM = ["table or scale", "indices or integers", "order"]


@pytest.mark.parametrize("name", ["w4_lut_g16", "w8"])
@pytest.mark.parametrize("what", HARM)
def test_harm_to_the_file_fails_the_weight_check(
    encoded: Callable[[str], tuple[Encoder, Path]], tmp_path: Path, name: str, what: str
) -> None:
    encoder, sound = encoded(name)
    package = Path(shutil.copytree(sound, tmp_path / sound.name))
    compressed = encoder.weights.compressed
    check_weights(compressed, encoder.stored(package, "mcp"), "mcp")
    weight = _harm(compressed, package, what)
    with pytest.raises(GateError, match=f"mcp: the weight {weight.name} read back"):
        check_weights(compressed, encoder.stored(package, "mcp"), "mcp")


@pytest.mark.parametrize("what", HARM)
def test_harm_to_a_bundle_fails_verify(
    reference_checkpoint: Checkpoint,
    encoded: Callable[[str], tuple[Encoder, Path]],
    reference_golden: Golden,
    shared: SharedExports,
    tmp_path: Path,
    what: str,
) -> None:
    target = load_targets(["coreml-ane"], ["w8_lut_g16"])
    bundle = shared.export(reference_checkpoint, target, ["mcp"], reference_golden).bundle
    out = Path(shutil.copytree(bundle, tmp_path / "bundle"))
    assert verdict(verify_bundle(out, Wish(), lambda *_: None)) is Status.PASSED
    encoder, _ = encoded("w8_lut_g16")
    _harm(encoder.weights.compressed, out / "coreml-ane" / "mcp" / "mcp.mlpackage", what)
    with pytest.raises(DamagedBundleError, match=r"weight\.bin"):
        verify_bundle(out, Wish(), lambda *_: None)


def test_a_backend_that_encodes_something_else_cannot_export(
    lower_anew: Lower, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(check, "INTEGER_MARGIN_DB", -30.0)
    with pytest.raises(GateError, match="w8 should reach"):
        lower_anew("mcp", tmp_path, recipe("w8"))


def test_no_scale_is_written_that_an_accelerator_may_take_for_zero(
    lower_anew: Lower, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(write.PackageWriter, "least_scale", 1.0)
    rows = lower_anew("mcp", tmp_path, recipe("w8")).weights
    assert {str(row.precision) for row in rows} <= {"w8_lut_g16", "w8_lut"}
    assert len(rows) > 1


def _lowered(lower: Lower, folder: Path, wanted: Recipe) -> tuple[Encoder, Path]:
    """A lowered MCP, and what ought to be in it."""
    made: list[Encoder] = []
    original = Encoder.encode_last

    def keep(self: Encoder, pipeline: Any) -> None:
        made.append(self)
        original(self, pipeline)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Encoder, "encode_last", keep)
        lower("mcp", folder, wanted)
    return made[0], folder / "mcp.mlpackage"


def _harm(compressed: Mapping[str, Compressed], package: Path, what: str) -> Compressed:
    """Changes something of the largest weight in a saved package; that weight."""
    weight = max(compressed.values(), key=lambda found: found.source.size)
    palettes = isinstance(weight.data, Palettes)
    if what == "table or scale":
        table = weight.data.values if palettes else weight.data.scales  # type: ignore[union-attr]
        _replace(package, table.astype(np.float16).tobytes(), _one_other_half)
    else:
        stored = weight.data.indices if palettes else weight.data.values  # type: ignore[union-attr]
        flat = stored.reshape(-1).astype(np.uint8)
        if weight.form.precision.weight_bits == 4:
            flat = flat[0::2] | (flat[1::2] << 4)
        _replace(package, flat.tobytes(), _one_other_byte if what != "order" else _swapped)
    return weight


def _replace(package: Path, content: bytes, harm: Callable[[bytearray], None]) -> None:
    """Harms the one place of the weight file that holds ``content``."""
    [path] = package.rglob("weight.bin")
    whole = path.read_bytes()
    assert whole.count(content) == 1
    part = bytearray(content)
    harm(part)
    assert bytes(part) != content
    path.write_bytes(whole.replace(content, bytes(part)))


def _one_other_half(part: bytearray) -> None:
    values = np.frombuffer(part, np.float16)
    values[3] = values[3] * np.float16(1.5)


def _one_other_byte(part: bytearray) -> None:
    part[10] ^= 1


def _swapped(part: bytearray) -> None:
    half = len(part) // 2
    part[:half], part[half : 2 * half] = part[half : 2 * half], part[:half]
