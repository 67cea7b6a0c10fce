"""Intervals and differences against numbers worked out elsewhere."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngImageFile

from mobile_o_export.errors import UsageError
from mobile_o_export.evaluation.record import Answered, Drawn, ModelRun
from mobile_o_export.evaluation.run import copy_pictures
from mobile_o_export.evaluation.score import Difference, Level, Proportion, score


def answered(*answers: str, expected: str = "red") -> tuple[Answered, ...]:
    return tuple(
        Answered(image="a.png", question="?", expected=expected, answer=answer, exact=answer == expected)
        for answer in answers
    )


def drawn(folder: Path, *verdicts: bool | None, shade: int = 0) -> tuple[Drawn, ...]:
    found = []
    for index, passed in enumerate(verdicts):
        Image.new("RGB", (8, 8), (shade, shade, shade)).save(folder / f"{index}.png")
        found.append(
            Drawn(tag="counting", prompt="p", seed=index, passed=passed, reason="", picture=f"{index}.png")
        )
    return tuple(found)


def run(drawings: tuple[Drawn, ...] = (), answers: tuple[Answered, ...] = ()) -> ModelRun:
    return ModelRun(runtimes={}, drawings=drawings, answers=answers, seconds={})


def test_wilson_interval_of_a_textbook_case() -> None:
    # Agresti and Coull 1998 and any statistics package: 15 of 20 → 0.5313 to 0.8881.
    found = Proportion.count([True] * 15 + [False] * 5)
    assert found is not None
    assert found.rate == 0.75
    assert (found.low, found.high) == (pytest.approx(0.5313, abs=1e-4), pytest.approx(0.8881, abs=1e-4))


def test_an_interval_has_width_where_all_or_none_passed() -> None:
    full, none = Proportion.count([True] * 10), Proportion.count([False] * 10)
    assert full is not None
    assert none is not None
    assert (full.low, full.high) == (pytest.approx(0.7225, abs=1e-4), pytest.approx(1.0))
    assert (none.low, none.high) == (pytest.approx(0.0), pytest.approx(0.2775, abs=1e-4))


def test_nothing_to_count_has_no_rate() -> None:
    assert Proportion.count([]) is None
    assert Difference.paired([], []) is None
    assert Level.of([]) is None


def test_a_paired_difference_counts_only_tasks_that_differ() -> None:
    ours = [True] * 90 + [False] * 10
    reference = [True] * 88 + [False] * 2 + [True] * 3 + [False] * 7
    found = Difference.paired(ours, reference)
    assert found is not None
    assert (found.gained, found.lost, found.of) == (2, 3, 100)
    assert found.value == pytest.approx(-0.01)
    assert found.within_noise


def test_a_clear_loss_is_not_within_noise() -> None:
    found = Difference.paired([True] * 80 + [False] * 20, [True] * 100)
    assert found is not None
    assert not found.within_noise
    assert found.high < 0


def test_equal_runs_leave_room_for_what_was_not_asked() -> None:
    found = Difference.paired([True] * 50, [True] * 50)
    assert found is not None
    assert found.within_noise
    assert 0 < found.high < 0.05


def test_scores_next_to_a_reference(tmp_path: Path) -> None:
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    ours.mkdir()
    theirs.mkdir()
    reference = run(drawn(theirs, True, True), answered("red", "red", "blue"))
    model = run(drawn(ours, True, False, shade=51), answered("red", "blue", "blue"))
    found = score(model, ours, reference, theirs)
    assert found.drawn is not None
    assert found.by_tag["counting"] == found.drawn
    assert (found.drawn.passed, found.drawn.of) == (1, 2)
    assert found.agreement is not None
    assert (found.agreement.passed, found.agreement.of) == (2, 3)
    assert found.exact_difference is not None
    assert (found.exact_difference.gained, found.exact_difference.lost) == (0, 1)
    assert found.psnr is not None
    # A fifth of white everywhere: 10·log10(25).
    assert found.psnr.mean == pytest.approx(13.979, abs=1e-3)
    assert found.psnr.least == found.psnr.mean


def test_alone_there_is_nothing_to_compare_with(tmp_path: Path) -> None:
    found = score(run(drawn(tmp_path, None), answered("red")), tmp_path, None, tmp_path)
    assert found.drawn is None
    assert found.exact is not None
    assert found.agreement is None
    assert found.psnr is None


def test_a_picture_that_is_gone_is_told(tmp_path: Path) -> None:
    model = run(drawn(tmp_path, True))
    (tmp_path / "0.png").unlink()
    with pytest.raises(UsageError, match="Evaluate again"):
        score(model, tmp_path, run(model.drawings), tmp_path)


@pytest.mark.parametrize(
    ("sizes", "side", "said"),
    [
        ((8, 2000), None, "reference/0.png is 2000 × 2000. Evaluate again."),
        ((2000, 8), None, "0.png: is 2000 × 2000 pixels, and"),
        ((13_000, 13_000), None, "is 13000 × 13000 pixels, more than 4 million. Evaluate again."),
        ((9, 9), 8, "is 9 × 9 pixels, not 8 × 8. Evaluate again."),
    ],
)
def test_pictures_of_other_sizes_are_not_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sizes: tuple[int, int], side: int | None, said: str
) -> None:
    model = run(drawn(tmp_path, True))
    (tmp_path / "reference").mkdir()
    for folder, size in zip((tmp_path, tmp_path / "reference"), sizes, strict=True):
        Image.new("1", (size, size)).save(folder / "0.png")

    def fail(_: object) -> None:
        raise AssertionError("decoded")

    monkeypatch.setattr(PngImageFile, "load", fail)
    with pytest.raises(UsageError) as raised:
        score(model, tmp_path, run(model.drawings), tmp_path / "reference", side)
    assert said in str(raised.value)


def test_copied_pictures_get_the_names_of_their_model_s(tmp_path: Path) -> None:
    """Whatever the record calls them: another model's drawings are not replaced."""
    source, folder = tmp_path / "source", tmp_path / "folder"
    source.mkdir()
    folder.mkdir()
    model = run(drawn(source, True, False))
    content = [(source / f"{index}.png").read_bytes() for index in range(2)]
    copied = copy_pictures(model, "torch", source, folder)
    assert [found.picture for found in copied.drawings] == [
        "pictures/torch/0000.png",
        "pictures/torch/0001.png",
    ]
    assert [(folder / found.picture).read_bytes() for found in copied.drawings] == content
    (source / "1.png").unlink()
    (source / "1.png").symlink_to("0.png")
    with pytest.raises(UsageError, match=r"1\.png: is a link\. Get the bundle again\."):
        copy_pictures(model, "torch", source, folder)


@pytest.mark.parametrize(
    ("name", "said"),
    [("a\0b.png", "is not a name of a file"), ("half.png", r"cannot be read \(.*\)\. Evaluate again")],
)
def test_a_picture_that_cannot_be_read_is_told(tmp_path: Path, name: str, said: str) -> None:
    sound = drawn(tmp_path, True)
    (tmp_path / "half.png").write_bytes((tmp_path / "0.png").read_bytes()[:30])
    strange = (sound[0].model_copy(update={"picture": name}),)
    with pytest.raises(UsageError, match=said) as caught:
        score(run(strange), tmp_path, run(sound), tmp_path)
    assert caught.value.exit_code == 2
