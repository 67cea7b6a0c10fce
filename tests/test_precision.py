"""Precisions have one name each, and a name means one thing."""

from __future__ import annotations

import json

import pytest
from pydantic import BaseModel, ValidationError

from mobile_o_export.precision import Integer, Palette, Precision

NAMES = (
    *("fp32", "fp16", "w16", "w8", "w4", "w4_b32", "w8_b64", "w8_dyn", "w4_b32_dyn", "w8a8", "w8a16"),
    *("w4_affine_b64", "w8_affine_b32"),
    *(f"w{bits}_lut{group}" for bits in (1, 2, 3, 4, 6, 8) for group in ("", "_g8", "_g16")),
)


@pytest.mark.parametrize("name", NAMES)
def test_a_name_survives_the_way_there_and_back(name: str) -> None:
    assert str(Precision.parse(name)) == name
    assert Precision.parse(str(Precision.parse(name))) == Precision.parse(name)


def test_names_mean_different_things() -> None:
    assert len({Precision.parse(name) for name in NAMES}) == len(NAMES)


def test_what_names_say() -> None:
    assert Precision.parse("w6_lut_g16").weights == Palette(6, 16)
    assert Precision.parse("w4_lut").weights == Palette(4, None)
    assert Precision.parse("w4_b32").weights == Integer(4, 32)
    assert Precision.parse("w8").weights == Integer(8, None)
    assert [Precision.parse(name).weight_bits for name in ("fp32", "fp16", "w16", "w3_lut")] == [
        32,
        16,
        16,
        3,
    ]
    assert [Precision.parse(name).floating for name in ("fp32", "w16", "w8", "w8_lut")] == [
        True,
        True,
        False,
        False,
    ]


@pytest.mark.parametrize(
    "name",
    [
        "",
        "int8",
        "w5_lut",
        "w7_lut",
        "w9_lut",
        "w6",
        "w16_lut",
        "w4_g16",
        "w4_lut_g0",
        "w4_b",
        "w04",
        "W8",
        "w8 ",
        "fp8",
    ],
)
def test_other_names_are_refused_with_examples(name: str) -> None:
    with pytest.raises(ValueError, match=r"is unknown\. Use fp32, fp16, w16, w8, w4_b32"):
        Precision.parse(name)


def test_files_hold_the_name() -> None:
    class Holder(BaseModel):
        precision: Precision

    found = Holder.model_validate({"precision": "w4_lut_g16"})
    assert found.precision == Precision.parse("w4_lut_g16")
    assert json.loads(found.model_dump_json()) == {"precision": "w4_lut_g16"}
    assert found.model_dump(mode="json") == {"precision": "w4_lut_g16"}
    for wrong in ("w5_lut", 8, None):
        with pytest.raises(ValidationError, match="precision"):
            Holder.model_validate({"precision": wrong})
    assert Holder.model_json_schema()["properties"]["precision"]["type"] == "string"
