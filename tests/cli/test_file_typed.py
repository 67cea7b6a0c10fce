"""A file's name in a line that is typed: as it stands, or as a shell reads it."""

from __future__ import annotations

from pathlib import Path

import pytest

from mobile_o_export.cli.paths import file_typed
from mobile_o_export.errors import UsageError


@pytest.fixture(autouse=True)
def _among_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("my photo.png", "plain.png", "'quoted'.png"):
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("typed", "name"),
    [
        ('"my photo.png"', "my photo.png"),
        ("'my photo.png'", "my photo.png"),
        (r"my\ photo.png", "my photo.png"),
        ("my photo.png", "my photo.png"),
        ('"my"" photo.png"', "my photo.png"),
        ("plain.png", "plain.png"),
        ("'quoted'.png", "'quoted'.png"),
        ("missing.png", "missing.png"),
        ("", ""),
    ],
)
def test_names(typed: str, name: str) -> None:
    assert file_typed(typed, "/image") == name


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        ('"my photo.png', r"/image: .* cannot be read as a file's name \(No closing quotation\)"),
        ("two words.png", "/image: two words.png is 2 words. Put quotation marks around a name with spaces"),
    ],
)
def test_what_is_no_name(typed: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        file_typed(typed, "/image")
