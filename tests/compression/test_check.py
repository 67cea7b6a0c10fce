"""The weight check fails for every way in which a file could hold other weights."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from mobile_o_export.compression.check import LLOYD_MAX_DB, check_weights
from mobile_o_export.compression.compress import Compressed, compress
from mobile_o_export.compression.form import Form
from mobile_o_export.digests import array_digest
from mobile_o_export.errors import GateError
from mobile_o_export.parity.metrics import Array
from mobile_o_export.precision import Precision

NAMES = (
    "w1_lut",
    "w2_lut_g16",
    "w3_lut_g16",
    "w4_lut_g16",
    "w6_lut",
    "w8_lut_g16",
    "w8",
    "w4",
    "w4_b32",
    "w8_b32",
)


def compressed(name: str) -> Compressed:
    weight = np.random.default_rng(0).normal(scale=0.03, size=(64, 512)).astype(np.float16).astype(np.float32)
    return compress("layer.weight", weight, Form.of(Precision.parse(name), weight.shape))


def check(weight: Compressed, restored: Array) -> None:
    check_weights({weight.name: weight}, [(weight.name, "here", restored)], "part")


@pytest.mark.parametrize("name", NAMES)
def test_every_precision_reaches_what_is_expected_of_it(name: str) -> None:
    weight = compressed(name)
    stored = [(weight.name, place, weight.restored()) for place in ("one", "two")]
    [row] = check_weights({weight.name: weight}, stored, "part")
    assert (row.name, str(row.precision), row.shape) == ("layer.weight", name, (64, 512))
    assert row.least_db <= row.snr_db < row.least_db + 13
    assert row.size_bytes == weight.form.size_bytes
    assert (row.sha256, row.places) == (array_digest(weight.restored()), ("one", "two"))


@pytest.mark.parametrize("bits", LLOYD_MAX_DB)
def test_palettes_of_normal_weights_are_at_the_lloyd_max_bound(bits: int) -> None:
    weight = compressed(f"w{bits}_lut")
    [row] = check_weights({weight.name: weight}, [(weight.name, "here", weight.restored())], "part")
    assert row.snr_db == pytest.approx(LLOYD_MAX_DB[bits], abs=0.2 if bits < 8 else 0.8)


def rolled(values: Array) -> Array:
    return np.roll(values, 1, axis=1)


def transposed(values: Array) -> Array:
    return np.ascontiguousarray(values.T).reshape(values.shape)


def one_entry(values: Array) -> Array:
    """One value of a palette is another; here all weights that had it."""
    found = values.copy()
    found[found == found.max()] *= np.float16(1.01)
    return found


def one_channel_scaled(values: Array) -> Array:
    found = values.copy()
    found[5] *= np.float16(1.02)
    return found


def one_number(values: Array) -> Array:
    found = values.copy()
    found[7, 9] = np.nextafter(found[7, 9], np.float16(1))
    return found


def not_a_number(values: Array) -> Array:
    found = values.copy()
    found[7, 9] = np.nan
    return found


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (rolled, r"dB from its source"),
        (transposed, r"dB from its source"),
        (np.negative, r"dB from its source"),
        (np.zeros_like, r"dB from its source"),
        (one_entry, r"differs from what was compressed in \d+ of 32768"),
        (one_channel_scaled, r"differs from what was compressed in \d+ of 32768"),
        (one_number, r"differs from what was compressed in 1 of 32768"),
        (not_a_number, r"holds NaN"),
        (lambda values: values[:32], r"has the shape \(32, 512\), not \(64, 512\)"),
    ],
)
@pytest.mark.parametrize("name", ["w4_lut_g16", "w6_lut", "w8", "w4_b32"])
def test_other_weights_fail(name: str, harm: Callable[[Array], Array], message: str) -> None:
    weight = compressed(name)
    with pytest.raises(GateError, match=rf"part: the weight layer.weight read back from the file.*{message}"):
        check(weight, harm(weight.restored()))


def test_a_weight_that_the_file_does_not_hold_fails() -> None:
    weight = compressed("w8")
    with pytest.raises(GateError, match=r"does not hold the compressed weight layer\.weight"):
        check_weights({weight.name: weight}, [], "part")


def test_one_of_several_copies_being_wrong_fails() -> None:
    weight = compressed("w8")
    copies = [
        (weight.name, "one", weight.restored()),
        (weight.name, "two", one_number(weight.restored())),
    ]
    with pytest.raises(GateError, match="differs"):
        check_weights({weight.name: weight}, copies, "part")


def test_a_precision_that_its_weights_cannot_bear_fails() -> None:
    """int4 with a scale a channel, and in each channel one weight that is far larger than the rest."""
    weight = np.random.default_rng(0).normal(scale=0.01, size=(64, 512)).astype(np.float32)
    weight[:, 0] = 0.3
    found = compress("outliers", weight, Form.of(Precision.parse("w4"), weight.shape))
    with pytest.raises(
        GateError, match=r"is \d+\.\d dB from its source, and w4 should reach .* Give it another"
    ):
        check(found, found.restored())
