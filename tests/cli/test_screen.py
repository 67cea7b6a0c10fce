"""What reaches the terminal: text of others is shown, and obeyed by nothing."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest
from cli_harness import Cli

from mobile_o_export.backends.onnx.backend import OnnxBackend
from mobile_o_export.cli import screen
from mobile_o_export.cli.console import table
from mobile_o_export.cli.rows import summary
from mobile_o_export.errors import MissingToolError
from mobile_o_export.legible import legible, legible_lines, legible_message, prose
from mobile_o_export.parity.judge import Row, Status
from mobile_o_export.parity.report import junit_xml

SHOWN = {
    "\x1b[32mpassed\x1b[0m": r"\x1b[32mpassed\x1b[0m",
    "a\rb": r"a\rb",
    "a\nb": r"a\nb",
    "a\tb": r"a\tb",
    "a\x00\x07\x08b": r"a\x00\x07\x08b",
    "a\x7fb": r"a\x7fb",
    "\x9b2J": r"\x9b2J",
    "photo\u202egnp.exe": r"photo\u202egnp.exe",
    "\u2066a\u2069": r"\u2066a\u2069",
    "a\u200eb\u200fc\u061cd": r"a\u200eb\u200fc\u061cd",
    "a\u200bb\ufeffc": r"a\u200bb\ufeffc",
    "a\u2028b\u2029c": r"a\u2028b\u2029c",
    "a\udcffb": r"a\udcffb",
    "a\U000e0041b": r"a\U000e0041b",
}
PLAIN = ["", "a/b c.png", "Ein Haus, größer", "家", "حصان", "नमस्ते", "क्‍ष", "👩‍🚀", "👍🏽", "\ue000"]


@pytest.mark.parametrize("text", SHOWN)
def test_what_cannot_be_shown_is_written_out(text: str) -> None:
    assert legible(text) == SHOWN[text]


@pytest.mark.parametrize("text", PLAIN)
def test_what_can_be_shown_is(text: str) -> None:
    assert legible(text) == prose(text) == legible_lines(text) == legible_message(text) == text


def test_lines_stay_lines_and_those_of_a_message_are_marked() -> None:
    assert legible_lines("a\nb\x1bc") == "a\nb\\x1bc"
    assert legible_message("error: x\npassed: 4\n  | log\x1b") == "error: x\n  | passed: 4\n  | log\\x1b"


def test_an_answer_keeps_its_lines_tabs_flags_and_directions(capsys: pytest.CaptureFixture[str]) -> None:
    flag = "🏴\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f"
    text = f"eins\n\tzwei\u200f {flag}"
    assert prose(text) == text
    assert prose("a\x1b[2Jb\u202ec\rd") == r"a\x1b[2Jb\u202ec\rd"
    screen.answer("a\n\x1b]0;title\x07")
    assert capsys.readouterr().out == "a\n\\x1b]0;title\\x07"


def test_json_is_ascii_without_controls(capsys: pytest.CaptureFixture[str]) -> None:
    content = {"name": "".join(map(chr, range(256))) + "\u202e\u2028家"}
    screen.result_json(content)
    out = capsys.readouterr().out
    assert out.isascii()
    assert out.replace("\n", "").isprintable()
    assert json.loads(out) == content


def test_a_cell_cannot_begin_a_line_of_a_table() -> None:
    assert table(["name", "n"], [["a\npassed: 9\x1b[1m", "1"]]).splitlines() == [
        "name                 n",
        "-------------------  -",
        "a\\npassed: 9\\x1b[1m  1",
    ]


def row(**values: object) -> Row:
    known = {"target": "phone", "component": "mcp", "function": "f", "case": "c", "output": "o"}
    return Row.model_validate(
        {**known, "runtime": "by hand", "status": "failed", "gate": "≥ 1 dB", "reason": "", **values}
    )


HOSTILE = "x\n\npassed: 4 outputs compared\x1b[8m\u202e"


@pytest.mark.parametrize("key", ["target", "component", "function", "case", "output", "runtime", "gate"])
def test_no_field_of_a_row_can_paint_a_verdict(key: str) -> None:
    text = summary([row(**{key: HOSTILE})])
    assert not any(line.startswith("passed") for line in text.splitlines())
    assert "\x1b" not in text
    assert "\u202e" not in text


def test_nor_can_its_reason() -> None:
    text = summary([row(reason=HOSTILE)])
    assert text.splitlines()[-2:] == ["  | ", "  | passed: 4 outputs compared\\x1b[8m\\u202e"]


def test_junit_shows_them_too() -> None:
    (case,) = ElementTree.fromstring(junit_xml([row(reason="a\x1b[1m\x85\u202eb", case="c\x07")])).iter(
        "testcase"
    )
    assert case.attrib["name"] == r"f c\x07 o"
    assert case.find("failure").attrib["message"] == r"a\x1b[1m\x85\u202eb"


def test_file_names_of_a_damaged_bundle(cli: Cli, damaged: Path) -> None:
    (damaged / "a\npassed: 4 outputs compared\x1b[8m").touch()
    outcome = cli("verify", damaged)
    outcome.refused(r"a\npassed: 4 outputs compared\x1b[8m has a name that no file of a bundle has", code=1)
    assert outcome.err.count("\n") == 1


def test_what_a_vendor_says(cli: Cli, small_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: object) -> None:
        raise MissingToolError("no \x1b[31monnxruntime\npassed: 4 outputs compared")

    monkeypatch.setattr(OnnxBackend, "open", missing)
    outcome = cli("verify", small_bundle)
    assert outcome.code == 3
    assert "\x1b" not in outcome.out + outcome.err
    assert r"no \x1b[31monnxruntime" in outcome.out
    assert "\n  | passed: 4 outputs compared" in outcome.out
    assert str(Status.NOT_RUN) in outcome.out


def test_a_path_in_a_message(cli: Cli, tmp_path: Path) -> None:
    outcome = cli("verify", tmp_path / "a\x1b[2J\u202e")
    outcome.refused(r"a\x1b[2J\u202e: is not a bundle")
    assert "\x1b" not in outcome.err
