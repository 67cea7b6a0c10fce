"""Whole chains are judged stage by stage, and each way of being wrong is a failed row that says so."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest

from mobile_o_export.components.registry import COMPONENT_NAMES
from mobile_o_export.parity.chain import CHAIN, ChainJudge
from mobile_o_export.parity.gates import ChainGate, Gate, shipped_gates
from mobile_o_export.parity.judge import Row, Status
from mobile_o_export.parity.metrics import SNR_CEILING_DB, Array, psnr_db, ssim
from mobile_o_export.precision import Precision

GATE = ChainGate(
    image_features_db=40.0,
    hidden_states_db=40.0,
    conditioning_db=40.0,
    logits_db=40.0,
    latent_db=30.0,
    psnr_db=35.0,
    ssim=0.98,
    tie=0.01,
)


@pytest.fixture
def judge() -> ChainJudge:
    return ChainJudge("here", "by hand", GATE)


@pytest.fixture
def photo() -> Array:
    """[1, 3, 16, 20] in 0..1, no symmetry."""
    return np.random.default_rng(4).uniform(0.2, 0.8, (1, 3, 16, 20)).astype(np.float32)


def grey(value: float) -> Array:
    return np.full((1, 3, 12, 14), value)


@pytest.mark.parametrize(
    ("offset", "expected"),
    # 10·log10(1 / offset²)
    [(1.0, 0.0), (0.1, 20.0), (-0.1, 20.0), (0.01, 40.0), (10**-2.5, 50.0), (1e-9, 180.0)],
)
def test_the_psnr_of_a_constant_offset(offset: float, expected: float) -> None:
    assert psnr_db(grey(0.5), grey(0.5 + offset)) == pytest.approx(expected, abs=1e-6)


def test_the_psnr_of_one_wrong_pixel(photo: Array) -> None:
    """One of 960 values is off by 0.5: a mean square of 0.25 / 960."""
    actual = photo.astype(np.float64)
    actual[0, 1, 2, 3] -= 0.5
    assert psnr_db(photo, actual) == pytest.approx(10 * math.log10(960 / 0.25))


def test_the_psnr_of_equal_images_is_the_ceiling(photo: Array) -> None:
    assert psnr_db(photo, photo.copy()) == SNR_CEILING_DB
    assert psnr_db(grey(0.5), grey(0.5 + 1e-12)) == SNR_CEILING_DB


def test_the_ssim_of_equal_images_is_one(photo: Array) -> None:
    assert ssim(photo, photo.copy()) == pytest.approx(1.0, abs=1e-12)
    assert ssim(grey(0.0), grey(0.0)) == pytest.approx(1.0, abs=1e-12)


def test_the_ssim_of_a_constant_offset() -> None:
    """Without contrast only the luminance term is left, with C1 = 0.01²."""
    expected = (2 * 0.5 * 0.6 + 1e-4) / (0.5**2 + 0.6**2 + 1e-4)
    assert ssim(grey(0.5), grey(0.6)) == pytest.approx(expected, abs=1e-9)


def slow_ssim(x: Array, y: Array) -> float:
    """Wang et al. 2004, equations 13 to 15, a window at a time; the images are [Y, X]."""
    near = [math.exp(-(d**2) / (2 * 1.5**2)) for d in range(-5, 6)]
    weights = {(i, j): near[i] * near[j] / sum(near) ** 2 for i, j in itertools.product(range(11), repeat=2)}
    values = []
    for top, left in itertools.product(range(x.shape[0] - 10), range(x.shape[1] - 10)):
        window = [
            (w, float(x[top + i, left + j]), float(y[top + i, left + j])) for (i, j), w in weights.items()
        ]
        mean_x, mean_y = sum(w * a for w, a, _ in window), sum(w * b for w, _, b in window)
        variance_x = sum(w * (a - mean_x) ** 2 for w, a, _ in window)
        variance_y = sum(w * (b - mean_y) ** 2 for w, _, b in window)
        covariance = sum(w * (a - mean_x) * (b - mean_y) for w, a, b in window)
        values.append(
            (2 * mean_x * mean_y + 0.01**2)
            * (2 * covariance + 0.03**2)
            / ((mean_x**2 + mean_y**2 + 0.01**2) * (variance_x + variance_y + 0.03**2))
        )
    return sum(values) / len(values)


@pytest.mark.parametrize(
    "change",
    [
        lambda photo: photo[:, :, ::-1],
        lambda photo: 1 - photo,
        lambda photo: photo * np.float32(0.9),
        lambda photo: photo + np.float32(0.05) * np.sin(np.arange(20, dtype=np.float32)),
    ],
    ids=["flipped", "inverted", "darker", "striped"],
)
def test_the_ssim_is_the_paper_s(photo: Array, change: Callable[[Array], Array]) -> None:
    """Each channel by itself; the mean over all windows of all channels."""
    other = change(photo)
    expected = sum(slow_ssim(photo[0, channel], other[0, channel]) for channel in range(3)) / 3
    assert -1.0 < expected < 0.999
    assert ssim(photo, other) == pytest.approx(expected, abs=1e-9)


def test_the_ssim_sees_what_the_psnr_does_not() -> None:
    """A flat image for a faintly striped one: 40 dB, and nothing of its structure."""
    stripes = grey(0.5) + 0.01 * (-1.0) ** np.arange(14)
    assert psnr_db(stripes, grey(0.5)) == pytest.approx(40.0)
    assert ssim(stripes, grey(0.5)) < 0.95


def amplified(golden: Array, snr_db: float) -> Array:
    """``golden`` with an amplitude error of that level."""
    return (golden * (1 + 10 ** (-snr_db / 20))).astype(np.float32)


STAGES: dict[str, Callable[[ChainJudge, Array, Array | None], Row]] = {
    "stage": lambda judge, golden, actual: judge.stage("edit", "case", "conditional", golden, actual, 40.0),
    "latent": lambda judge, golden, actual: judge.latent("edit", "case", 7, golden, actual),
    "image": lambda judge, golden, actual: judge.image("edit", "case", golden, actual),
}
EVERY_STAGE = pytest.mark.parametrize("stage", STAGES)


@EVERY_STAGE
def test_a_row_says_what_it_is_about(judge: ChainJudge, photo: Array, stage: str) -> None:
    row = STAGES[stage](judge, photo, photo.copy())
    assert (row.target, row.component, row.function, row.case) == ("here", CHAIN, "edit", "case")
    assert (row.runtime, row.status, row.reason) == ("by hand", Status.PASSED, "")
    assert row.output == {"stage": "conditional", "latent": "latent_07", "image": "image"}[stage]
    assert row.step == (7 if stage == "latent" else None)
    assert (row.psnr_db, row.ssim) == ((200.0, 1.0) if stage == "image" else (None, None))
    assert (row.snr_db, row.max_abs, row.cosine) == (None if stage == "image" else 200.0, 0.0, 1.0)
    assert (
        row.gate
        == {
            "stage": "≥ 40 dB",
            "latent": "≥ 30 dB",
            "image": "PSNR ≥ 35 dB, SSIM ≥ 0.98",
        }[stage]
    )


@EVERY_STAGE
@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda _photo: None, "the output is missing"),
        (lambda photo: photo[:, :, :-1], "shape [1, 3, 15, 20] instead of [1, 3, 16, 20]"),
        (lambda photo: photo[0], "shape [3, 16, 20] instead of [1, 3, 16, 20]"),
        (lambda photo: photo.swapaxes(2, 3), "shape [1, 3, 20, 16] instead of [1, 3, 16, 20]"),
        (lambda photo: photo.astype(np.float16), "dtype float16 instead of float32"),
        (lambda photo: photo.astype(np.float64), "dtype float64 instead of float32"),
        (lambda photo: np.where(photo == photo.max(), np.nan, photo), "1 of 960 values are NaN or infinite"),
        (lambda photo: np.where(photo == photo.max(), np.inf, photo), "1 of 960 values are NaN or infinite"),
        (lambda photo: np.full_like(photo, np.nan), "960 of 960 values are NaN or infinite"),
        (lambda photo: photo[:, ::-1], "is below the gate"),
        (lambda photo: photo[..., ::-1], "is below the gate"),
        (lambda photo: np.zeros_like(photo), "is below the gate"),
        (lambda photo: amplified(photo, 20.0), "is below the gate"),
    ],
)
def test_each_fault_fails(
    judge: ChainJudge, photo: Array, stage: str, change: Callable[[Array], Array | None], reason: str
) -> None:
    row = STAGES[stage](judge, photo, change(photo))
    assert row.status is Status.FAILED
    assert reason in row.reason


@EVERY_STAGE
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_golden_that_is_not_finite_fails(judge: ChainJudge, photo: Array, stage: str, value: float) -> None:
    spoilt = np.where(photo == photo.max(), np.float32(value), photo)
    row = STAGES[stage](judge, spoilt, photo)
    assert row.status is Status.FAILED
    assert "golden itself" in row.reason


@pytest.mark.parametrize(
    ("stage", "snr_db", "status"),
    [
        ("stage", 40.1, Status.PASSED),
        ("stage", 39.9, Status.FAILED),
        ("latent", 30.1, Status.PASSED),
        ("latent", 29.9, Status.FAILED),
    ],
)
def test_the_gate_is_where_it_says(
    judge: ChainJudge, photo: Array, stage: str, snr_db: float, status: Status
) -> None:
    row = STAGES[stage](judge, photo, amplified(photo, snr_db))
    assert row.snr_db == pytest.approx(snr_db, abs=0.02)
    assert row.status is status


@pytest.mark.parametrize(("level", "status"), [(35.1, Status.PASSED), (34.9, Status.FAILED)])
def test_the_image_s_gate_is_its_psnr(judge: ChainJudge, photo: Array, level: float, status: Status) -> None:
    row = judge.image("edit", "case", photo, photo + np.float32(10 ** (-level / 20)))
    assert row.psnr_db == pytest.approx(level, abs=0.02)
    assert row.ssim is not None
    assert row.ssim > 0.98
    assert row.status is status
    assert row.reason == ("" if status is Status.PASSED else "PSNR of 34.9 dB is below the gate")


def test_and_its_ssim(judge: ChainJudge) -> None:
    stripes = (grey(0.5) + 0.01 * (-1.0) ** np.arange(14)).astype(np.float32)
    row = judge.image("edit", "case", stripes, grey(0.5).astype(np.float32))
    assert row.psnr_db == pytest.approx(40.0, abs=0.01)
    assert row.status is Status.FAILED
    assert row.reason.startswith("SSIM of 0.")
    assert row.reason.endswith(" is below the gate")


GOLDEN = [5, 6, 7, 8]
CANDIDATES = np.array([[5, 9], [6, 9], [7, 9], [8, 9]], np.int32)
LOGITS = np.array([[20.0, 10.0], [20.0, 19.9], [20.0, 19.7], [20.0, 20.0]], np.float32)
SPREAD = np.full(4, 20.0, np.float32)
"""The second best lags by half of the spread, by 0.5 %, by 1.5 % and not at all."""


def tokens(actual: list[int], tie: float = 0.01) -> Row:
    judge = ChainJudge("here", "by hand", GATE.model_copy(update={"tie": tie}))
    return judge.tokens("describe", "case", GOLDEN, CANDIDATES, LOGITS, SPREAD, actual)


def test_identical_tokens_pass() -> None:
    row = tokens(GOLDEN)
    assert (row.target, row.component, row.function, row.case) == ("here", CHAIN, "describe", "case")
    assert (row.output, row.runtime, row.status) == ("tokens", "by hand", Status.PASSED)
    assert (row.identical_tokens, row.reason) == (4, "")


@pytest.mark.parametrize(
    ("tie", "gate"), [(0.0, "the same tokens"), (0.01, "the same tokens, but for 1 within 1 %")]
)
def test_the_gate_says_what_is_a_tie(tie: float, gate: str) -> None:
    assert tokens(GOLDEN, tie).gate == gate


@pytest.mark.parametrize(
    ("actual", "tie", "same", "reason"),
    [
        ([9, 6, 7, 8], 0.01, 3, "token 1 is 9, not 5, whose logit leads by 50 %"),
        ([5, 9, 7, 8], 0.0, 3, "token 2 is 9, not 6, whose logit leads by 0.5 %"),
        ([5, 9, 7, 8], 0.004, 3, "token 2 is 9, not 6, whose logit leads by 0.5 %"),
        ([5, 6, 9, 8], 0.01, 3, "token 3 is 9, not 7, whose logit leads by 1.5 %"),
        ([5, 4, 7, 8], 0.99, 3, "token 2 is 4, not 6, and it is not among the likely ones"),
        ([5, 6, 7, -1], 0.99, 3, "token 4 is -1, not 8, and it is not among the likely ones"),
        ([5, 6, 7], 0.99, 3, "the answer has 3 tokens instead of 4"),
        ([], 0.99, 0, "the answer has 0 tokens instead of 4"),
        ([5, 6, 7, 8, 8], 0.99, 4, "the answer has 5 tokens instead of 4"),
        # A tie hides nothing of what follows it.
        ([5, 9, 4, 8], 0.01, 2, "token 3 is 4, not 7, and it is not among the likely ones"),
        # Each would be one: together they are too many of four.
        ([5, 9, 7, 9], 0.01, 2, "2 of 4 tokens are others: token 2 is 9, not 6; token 4 is 9, not 8"),
        ([9, 5, 7, 8], 0.4, 2, "token 1 is 9, not 5, whose logit leads by 50 %"),
    ],
)
def test_other_tokens_fail(actual: list[int], tie: float, same: int, reason: str) -> None:
    row = tokens(actual, tie)
    assert (row.status, row.identical_tokens, row.reason) == (Status.FAILED, same, reason)


@pytest.mark.parametrize(
    ("actual", "tie"),
    [
        ([5, 9, 7, 8], 0.006),
        ([5, 9, 7, 8], 0.01),
        ([5, 6, 9, 8], 0.016),
        # Not the least bit apart: either is the largest.
        ([5, 6, 7, 9], 0.0),
    ],
)
def test_a_tie_passes_and_is_counted(actual: list[int], tie: float) -> None:
    row = tokens(actual, tie)
    assert (row.status, row.identical_tokens, row.tied_tokens, row.reason) == (Status.PASSED, 3, 1, "")


def test_no_token_that_the_golden_says_nothing_of_is_a_tie() -> None:
    judge = ChainJudge("here", "by hand", GATE.model_copy(update={"tie": 0.99}))
    strange = CANDIDATES.copy()
    strange[1] = [3, 9]
    row = judge.tokens("describe", "case", GOLDEN, strange, LOGITS, SPREAD, [5, 9, 7, 8])
    assert row.reason == "token 2 is 9, not 6, and the golden has no logit of its own token"


def test_a_row_of_what_could_not_be_run(judge: ChainJudge) -> None:
    row = judge.row("edit", "case", "", Status.NOT_RUN, "no runtime")
    assert (row.component, row.function, row.status, row.reason) == (
        CHAIN,
        "edit",
        Status.NOT_RUN,
        "no runtime",
    )
    assert row.gate == ""


def whole(*precisions: Precision, **own: tuple[list[Precision], Gate]) -> ChainGate:
    """The gate of a target whose components all have these precisions, but for ``own``."""
    gates = shipped_gates()
    shared = list(precisions), gates.of(precisions)
    return gates.of_chain(dict.fromkeys(COMPONENT_NAMES, shared) | own)


@pytest.mark.parametrize(
    ("precision", "least_psnr_db", "most_tie"),
    # What the project promises of its targets; the file may ask for more.
    [(Precision.FP32, 50.0, 0.0), (Precision.W16, 50.0, 0.0), (Precision.FP16, 35.0, 0.01)],
)
def test_the_shipped_gates_keep_the_promise(
    precision: Precision, least_psnr_db: float, most_tie: float
) -> None:
    gate = whole(precision)
    assert gate.psnr_db >= least_psnr_db
    assert gate.tie <= most_tie
    assert 0.9 < gate.ssim <= 1.0
    assert min(gate.image_features_db, gate.hidden_states_db, gate.conditioning_db) >= 30.0
    assert min(gate.logits_db, gate.latent_db) >= 30.0


@pytest.mark.parametrize(
    ("precisions", "coarsest"),
    [
        ([Precision.FP32] * 5, "fp32"),
        ([Precision.FP32, Precision.W16], "w16"),
        ([Precision.W16, Precision.FP32], "w16"),
        ([Precision.FP32, Precision.FP16, Precision.W16], "fp16"),
        ([Precision.FP16], "fp16"),
        ([Precision.FP16, Precision.parse("w8")], "w8"),
        ([Precision.parse("w8_lut"), Precision.parse("w6_lut_g16")], "w6"),
        ([Precision.parse("w4_b32"), Precision.parse("w6_lut_g16")], "w4"),
        ([Precision.parse("w2_lut"), Precision.FP32], "w4"),
        ([Precision.parse("w8"), Precision.parse("w8a16")], "a16"),
    ],
)
def test_a_chain_s_gate_is_that_of_its_coarsest_component(precisions: list[Precision], coarsest: str) -> None:
    assert whole(*precisions) == getattr(shipped_gates(), coarsest).chain


def test_a_stage_is_held_to_the_coarsest_component_up_to_it() -> None:
    gates = shipped_gates()
    w4, w8 = Precision.parse("w4_b32"), Precision.parse("w8")
    found = whole(Precision.FP16, vision_encoder=([w8], gates.of([w8])), mcp=([w4], gates.of([w4])))
    eight, four = gates.w8.chain, gates.w4.chain
    assert found.image_features_db == eight.image_features_db
    assert (found.hidden_states_db, found.logits_db) == (eight.hidden_states_db, eight.logits_db)
    assert (found.tie, found.conditioning_db) == (eight.tie, four.conditioning_db)
    assert (found.latent_db, found.psnr_db, found.ssim) == (four.latent_db, four.psnr_db, four.ssim)


@pytest.mark.parametrize("least_db", [12.0, 30.0])
def test_no_stage_is_asked_for_more_than_a_component_s_own_looser_gate(least_db: float) -> None:
    own = Gate(snr_db=least_db, reason="measured")
    w8 = Precision.parse("w8")
    found, plain = whole(w8, llm=([w8], own)), shipped_gates().w8.chain
    later = ("hidden_states_db", "logits_db", "conditioning_db", "latent_db")
    assert found == plain.model_copy(update=dict.fromkeys(later, least_db))


def test_a_stricter_gate_of_a_component_s_own_is_its_own_affair() -> None:
    w8 = Precision.parse("w8")
    assert whole(w8, llm=([w8], Gate(snr_db=60.0))) == shipped_gates().w8.chain


def test_a_target_of_one_component_has_a_whole_gate() -> None:
    gates = shipped_gates()
    assert gates.of_chain({"vae_decoder": ([Precision.W16], gates.of([Precision.W16]))}) == gates.w16.chain


def test_no_gate_of_a_coarser_precision_asks_for_more() -> None:
    """So that the coarsest is the same for every stage."""
    gates = shipped_gates()
    for finer, coarser in itertools.pairwise(
        [gates.fp32, gates.w16, gates.fp16, gates.w8, gates.w6, gates.w4]
    ):
        for name, least in coarser.chain:
            wanted = getattr(finer.chain, name)
            assert wanted <= least if name == "tie" else wanted >= least, name
