"""The one reader of JSON and TOML: what it refuses that the standard library lets pass, or fails on."""

from __future__ import annotations

from pathlib import Path

import pytest

from mobile_o_export.checkpoint.config import read_json as read_config
from mobile_o_export.errors import CheckpointError, ConfigError, GateError
from mobile_o_export.strict import DEEPEST, MOST_DIGITS, Strict, parse_json, read_json, read_toml


class Sample(Strict):
    a: int = 0
    b: dict[str, object] | None = None


KINDS = [
    ('{"a": 1, "a": 2}', "the key 'a' occurs twice"),
    ('{"b": {"x": {"y": 1, "y": 1}}}', "the key 'y' occurs twice"),
    ('{"a": NaN}', "NaN is not a number"),
    ('{"a": Infinity}', "Infinity is not a number"),
    ('{"a": [-Infinity]}', "-Infinity is not a number"),
    ('{"a": 1e999}', "the number 1e999 is too large"),
    ('{"a": -1e400}', "the number -1e400 is too large"),
    (f'{{"a": {"1" * 5000}}}', f"an integer has more than {MOST_DIGITS} digits"),
    (f'{{"a": {"1" * (MOST_DIGITS + 1)}}}', f"an integer has more than {MOST_DIGITS} digits"),
    (r'{"a": "x\ud800"}', r"the text 'x\ud800' holds half a character"),
    (r'{"b": {"\udc00": 1}}', r"the text '\udc00' holds half a character"),
    ("[" * (DEEPEST + 2) + "]" * (DEEPEST + 2), f"more than {DEEPEST} deep in one another"),
    ("[" * 100_000, f"more than {DEEPEST} deep in one another"),
    ("{", "Expecting property name"),
    ("", "Expecting value"),
]


@pytest.mark.parametrize(("text", "message"), KINDS, ids=[message[:40] for _, message in KINDS])
def test_what_is_no_json_of_ours(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(GateError) as caught:
        read_json(path, Sample, GateError)
    assert f"{path}: not valid JSON: " in str(caught.value)
    assert message in str(caught.value)
    assert caught.value.exit_code == 1


def test_bytes_that_are_no_utf_8(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(b'{"a": "\xff"}')
    with pytest.raises(GateError, match="not valid JSON: 'utf-8' codec can't decode byte 0xff"):
        read_json(path, Sample, GateError)


def test_what_is_json(tmp_path: Path) -> None:
    text = r'{"a": [1, -2.5, true, null, "é \ud83d\ude00"], "b": {"c": {}}}'
    assert (
        parse_json(text)
        == parse_json(text.encode())
        == {
            "a": [1, -2.5, True, None, "é 😀"],
            "b": {"c": {}},
        }
    )
    assert parse_json("[" * DEEPEST + "]" * DEEPEST)
    assert parse_json("1" * MOST_DIGITS) == int("1" * MOST_DIGITS)


def test_infinities_that_diffusers_writes(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text('{"lambda_min_clipped": -Infinity}')
    assert read_config(path) == {"lambda_min_clipped": float("-inf")}
    path.write_text('{"lambda_min_clipped": NaN}')
    with pytest.raises(CheckpointError, match=r"cannot be read as JSON \(NaN is not a number\)") as caught:
        read_config(path)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a = 1\na = 2", "Cannot overwrite a value"),
        (f"a = {'1' * 5000}", f"an integer has more than {MOST_DIGITS} digits"),
        (f"a = 0x{'f' * 600}", f"an integer has more than {MOST_DIGITS} digits"),
        (f"b = {{x = {'[' * 70}{']' * 70}}}", f"more than {DEEPEST} deep in one another"),
        ("a = " + "[" * 5000, "maximum recursion depth exceeded"),
    ],
)
def test_what_is_no_toml_of_ours(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "a.toml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        read_toml(path, Sample)
    assert f"{path}: not valid TOML: " in str(caught.value)
    assert message in str(caught.value)
    assert caught.value.exit_code == 2
