"""Affine integers: MLX's own numbers, worked out by hand at the edges; MLX itself where it is installed."""

from __future__ import annotations

import numpy as np
import pytest
from recipes import recipe
from torch import nn

from mobile_o_export.compression.affine import Affines, quantize
from mobile_o_export.compression.check import check_weights, least_db
from mobile_o_export.compression.compress import compress, compress_module, forms
from mobile_o_export.compression.form import Form
from mobile_o_export.compression.half import CHUNK
from mobile_o_export.errors import ExportError, GateError
from mobile_o_export.parity.gates import shipped_gates
from mobile_o_export.parity.metrics import Array, measure
from mobile_o_export.precision import Affine, Precision

BLOCK = 64
W4, W8 = Precision.parse("w4_affine_b64"), Precision.parse("w8_affine_b64")


def block(*values: float, rest: float = 0.0) -> Array:
    """One block [1, 64] that begins with ``values``."""
    found = np.full((1, BLOCK), rest, np.float32)
    found[0, : len(values)] = values
    return found


def expect(found: Affines, scale: float, offset: float, *values: int) -> None:
    assert (found.scales.dtype, found.offsets.dtype, found.values.dtype) == (np.float16, np.float16, np.uint8)
    assert (float(found.scales[0]), float(found.offsets[0])) == (scale, offset)
    assert tuple(found.values[0, : len(values)]) == values


def test_a_block_without_negatives_counts_down_from_its_largest_weight() -> None:
    # (15 - 0) / 15 is 1; the end further from zero is 15, 15 steps away.
    found = quantize(block(15, 14, 1, 0.4, 7.5, 6.5), 4)
    # 15 - 7.5 and 15 - 6.5 lie between two integers, and halves go to even ones.
    expect(found, -1.0, 15.0, 0, 1, 14, 15, 8, 8)
    assert tuple(found.restored()[0, :4]) == (15, 14, 1, 0)


def test_a_block_without_positives_counts_up_from_its_lowest_weight() -> None:
    found = quantize(block(-15, -14, -1, -0.4), 4)
    expect(found, 1.0, -15.0, 0, 1, 14, 15)


def test_a_tie_of_the_ends_belongs_to_the_largest_weight() -> None:
    # The range is 15, the steps 1; 7.5 is rint(7.5) = 8 steps from zero, which bends the scale to 7.5 / 8.
    found = quantize(block(7.5, -7.5), 4)
    expect(found, -0.9375, 7.5, 0, 15, 8)
    assert tuple(found.restored()[0, :3]) == (7.5, -6.5625, 0)


def test_zero_is_an_integer_wherever_weights_have_both_signs() -> None:
    rng = np.random.default_rng(0)
    source = rng.standard_normal((50, BLOCK)).astype(np.float16)
    source[:, 7] = 0
    for bits in (4, 8):
        restored = quantize(source, bits).restored()
        step = np.abs(quantize(source, bits).scales.astype(np.float64))
        # But for the rounding of the scale, by which every step down from the edge is off.
        assert (np.abs(restored[:, 7]) <= 0.01 * step * 2**bits / 16).all()


def test_a_block_of_zeros_stays_zero_by_the_smallest_scale() -> None:
    found = quantize(block(), 4)
    expect(found, float(np.float16(-1e-7)), 0.0, 0)
    assert not found.restored().any()


def test_a_block_of_one_value_is_that_value() -> None:
    for value in (0.25, -0.25, 3.0):
        found = quantize(block(rest=value), 4)
        # No range: the smallest scale, bent so that zero could be reached; the offset holds the value.
        assert float(found.offsets[0]) == value
        assert not found.values.any()
        assert (found.restored() == value).all()


def test_scale_and_offset_are_rounded_after_the_integers_are_chosen() -> None:
    # 2049 is no fp16 number, so that the weight itself is 2048 before anything else.
    found = quantize(block(2049), 8)
    expect(found, float(np.float16(-2048 / 255)), 2048.0, 0, 255)
    rows = (np.random.default_rng(1).standard_normal((400, BLOCK)) * 0.03).astype(np.float16)
    found = quantize(rows, 8)
    wide = rows.astype(np.float32)
    by_rounded = np.rint(
        (wide - found.offsets[:, None].astype(np.float32)) / found.scales[:, None].astype(np.float32)
    )
    # What MLX does not do, and what some weights tell apart.
    assert (np.clip(by_rounded, 0, 255) != found.values).any()


def test_restored_weights_are_multiplied_and_added_in_fp16() -> None:
    source = np.random.default_rng(2).standard_normal((64, BLOCK))
    found = quantize(source, 4)
    exact = found.values * found.scales[:, None].astype(np.float64)
    twice = (exact.astype(np.float16).astype(np.float64) + found.offsets[:, None]).astype(np.float16)
    assert np.array_equal(found.restored(), twice)
    once = (exact + found.offsets[:, None]).astype(np.float16)
    assert not np.array_equal(found.restored(), once)
    assert found.restored(np.float32).dtype == np.float32
    assert np.array_equal(found.restored(np.float32), found.restored().astype(np.float32))


@pytest.mark.parametrize("spread", ["normal", "heavy", "positive", "negative"])
@pytest.mark.parametrize("bits", [4, 8])
def test_no_weight_is_further_than_its_step(spread: str, bits: int) -> None:
    source = weights(spread)
    found = quantize(source, bits)
    step = np.abs(found.scales.astype(np.float64))[:, None]
    error = np.abs(found.restored().astype(np.float64) - source)
    # Where zero had to become an integer, the far end is up to half a step beyond the last one; then fp16.
    rounding = 2.0**-10 * np.abs(source).max(axis=1, keepdims=True) + 2.0**-24
    assert (error <= 1.02 * step + rounding).all()


def test_what_blocks_are_quantised_together_changes_nothing() -> None:
    rows = weights("normal")
    many = np.tile(rows, (-(-CHUNK // rows.size) + 1, 1))
    found, few = quantize(many, 4), quantize(rows, 4)
    assert len(many) * BLOCK > CHUNK
    assert np.array_equal(found.values, np.tile(few.values, (len(many) // len(rows), 1)))
    assert np.array_equal(found.scales, np.tile(few.scales, len(many) // len(rows)))


def test_four_bits_with_an_offset_beat_four_bits_without_one_on_skewed_weights() -> None:
    source = weights("positive").astype(np.float32)
    affine = Form.of(W4, source.shape)
    plain = Form.of(Precision.parse("w4_b64"), source.shape)
    levels = [measure(source, compress("w", source, form).restored()).snr_db for form in (affine, plain)]
    assert levels[0] > levels[1] + 5


def test_what_fp16_cannot_hold_is_refused() -> None:
    for wrong in (np.nan, np.inf, 1e6):
        with pytest.raises(ExportError, match="cannot be quantized"):
            quantize(block(wrong), 4)
    with pytest.raises(ValueError, match="4 or 8 bits, not 6"):
        quantize(block(), 6)


def test_the_form_counts_a_scale_and_an_offset_a_block() -> None:
    form = Form.of(W4, (48, 128))
    assert form.groups == (48, 2)
    assert form.size_bytes == 48 * 128 // 2 + 4 * 48 * 2
    assert Form.of(W8, (48, 128)).size_bytes == 48 * 128 + 4 * 48 * 2
    assert form.precision.weights == Affine(4, 64)


def test_gates_go_by_the_bits() -> None:
    gates = shipped_gates()
    assert (gates.of([W4]), gates.of([W8])) == (gates.w4.function, gates.w8.function)


def test_what_blocks_do_not_divide_stays_floating_point() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fits = nn.Linear(128, 16)
            self.odd = nn.Linear(96, 16)
            self.kernel = nn.Conv2d(64, 16, 3)

    module = Odd()
    assert set(forms(module, recipe("w4_affine_b64"), "here")) == {"fits.weight"}
    assert not Form.exists(W4, (16, 96))
    with pytest.raises(ValueError, match="do not divide"):
        Form.of(W4, (16, 96))
    before = module.odd.weight.detach().clone()
    assert set(compress_module(module, recipe("w4_affine_b64"), "here")) == {"fits.weight"}
    assert (module.odd.weight == before).all()


def test_harm_to_one_number_is_found_when_weights_are_read_back() -> None:
    source = np.random.default_rng(3).standard_normal((16, 128)).astype(np.float32)
    stored = compress("w", source, Form.of(W4, source.shape))
    (row,) = check_weights({"w": stored}, [("w", "here", stored.restored())], "llm")
    assert row.snr_db > row.least_db == least_db(W4)
    data = stored.data
    assert isinstance(data, Affines)

    def changed(**parts: Array) -> Array:
        found = {"values": data.values, "scales": data.scales, "offsets": data.offsets, **parts}
        return Affines(**found).restored().reshape(source.shape)

    code, scale, offset = data.values.copy(), data.scales.copy(), data.offsets.copy()
    code[3, 5] ^= 1
    scale[2] = np.nextafter(scale[2], np.float16(np.inf))
    offset[9] = np.nextafter(offset[9], np.float16(np.inf))
    harmed = [changed(values=code), changed(scales=scale), changed(offsets=offset)]
    harmed += [changed(scales=data.scales[::-1]), stored.restored()[::-1]]
    for restored in harmed:
        with pytest.raises(GateError, match=r"differs from what was compressed|dB from its source"):
            check_weights({"w": stored}, [("w", "here", restored)], "llm")


def weights(spread: str) -> Array:
    """fp16 [512, 64]."""
    rng = np.random.default_rng(4)
    found = {
        "normal": lambda: rng.standard_normal((512, BLOCK)) * 0.02,
        "heavy": lambda: rng.standard_t(2, (512, BLOCK)) * 0.05,
        "tiny": lambda: rng.standard_normal((512, BLOCK)) * 1e-6,
        "positive": lambda: rng.random((512, BLOCK)),
        "negative": lambda: -rng.random((512, BLOCK)),
        "zero": lambda: np.zeros((8, BLOCK)),
        "constant": lambda: np.full((8, BLOCK), 0.3),
    }[spread]()
    return found.astype(np.float16)


@pytest.mark.parametrize("spread", ["normal", "heavy", "tiny", "positive", "negative", "zero", "constant"])
@pytest.mark.parametrize("bits", [4, 8])
def test_mlx_makes_the_same_of_it(spread: str, bits: int) -> None:
    mx = pytest.importorskip("mlx.core")
    source = weights(spread)
    codes, scales, offsets = mx.quantize(mx.array(source), group_size=BLOCK, bits=bits)
    found = quantize(source, bits)
    shifts = np.arange(32 // bits, dtype=np.uint32) * bits
    theirs = (np.array(codes)[:, :, None] >> shifts) & (2**bits - 1)
    assert np.array_equal(theirs.reshape(source.shape), found.values)
    assert np.array_equal(np.array(scales)[:, 0], found.scales)
    assert np.array_equal(np.array(offsets)[:, 0], found.offsets)
    restored = mx.dequantize(codes, scales, offsets, group_size=BLOCK, bits=bits)
    assert np.array_equal(np.array(restored), found.restored())
