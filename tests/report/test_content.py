"""What is read for the report is checked: records that contradict themselves, pictures from elsewhere."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngImageFile
from report_harness import (
    FUNCTIONS,
    every_row,
    manifest,
    write_bundle,
    write_chains,
    write_evaluation,
    write_outcomes,
)

from mobile_o_export.bundle.manifest import manifest_digest
from mobile_o_export.bundle.outcomes import Outcome
from mobile_o_export.components.base import FunctionSpec
from mobile_o_export.errors import BundleError, UsageError
from mobile_o_export.evaluation.record import Evaluation
from mobile_o_export.report.answers import Parted
from mobile_o_export.report.content import gather
from mobile_o_export.report.quantities import decibels, percent, points, size
from mobile_o_export.tensors import DType, Role, TensorSpec


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return write_bundle(tmp_path / "bundle", manifest(), every_row())


def drawn(picture: str) -> Outcome:
    """A record that says ``picture``, whatever that is."""
    outcome = Outcome(target="phone", task="generate", case="cube", prompt="a cube")
    return outcome.model_copy(update={"picture": picture})


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("status", "failed", "says failed, and its rows passed"),
        ("drift", [], "drift"),
        ("schema", 2, "schema"),
        ("extra", 1, "extra"),
    ],
)
def test_a_parity_report_that_contradicts_itself_is_refused(
    bundle: Path, key: str, value: object, message: str
) -> None:
    path = bundle / "parity.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))
    with pytest.raises(BundleError, match=message):
        gather(bundle, None)


def test_a_missing_parity_report_is_refused(bundle: Path) -> None:
    (bundle / "parity.json").unlink()
    with pytest.raises(BundleError, match=r"parity\.json"):
        gather(bundle, None)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("../secret.png", "leads out of it"),
        ("chains/../../secret.png", "leads out of it"),
        ("/etc/secret.png", "is absolute"),
        ("link/secret.png", "link/secret.png: is a link"),
        ("secret.png", "secret.png: is a link"),
        ("pipe.png", "pipe.png: is not a regular file"),
        ("folder", "folder: is a folder"),
    ],
)
def test_a_picture_that_is_no_file_of_the_bundle_is_refused(bundle: Path, name: str, said: str) -> None:
    Image.new("RGB", (4, 4)).save(bundle.parent / "secret.png")
    (bundle / "link").symlink_to(bundle.parent)
    (bundle / "secret.png").symlink_to(bundle.parent / "secret.png")
    (bundle / "folder").mkdir()
    os.mkfifo(bundle / "pipe.png")
    write_outcomes(bundle, [drawn(name)])
    with pytest.raises(BundleError, match=said):
        gather(bundle, None)


@pytest.fixture
def undecoded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Decoding fails: a picture that is refused was refused by its header."""

    def fail(_: object) -> None:
        raise AssertionError("decoded")

    monkeypatch.setattr(PngImageFile, "load", fail)


@pytest.mark.parametrize(("key", "side"), [("picture", 4096), ("picture", 15), ("given", 31)])
def test_a_picture_of_another_size_than_the_model_s_is_not_decoded(
    tmp_path: Path, key: str, side: int, undecoded: None
) -> None:
    functions = {**FUNCTIONS, "vae_decoder": (image("decode", 16),), "vision_encoder": (image("encode", 32),)}
    bundle = write_bundle(tmp_path / "bundle", manifest(functions=functions), every_row())
    (bundle / "chains").mkdir()
    Image.new("1", (side, side)).save(bundle / "chains" / "a.png")
    write_outcomes(bundle, [drawn("chains/a.png").model_copy(update={"picture": None, key: "chains/a.png"})])
    expected = 32 if key == "given" else 16
    with pytest.raises(BundleError, match=rf"a\.png: is {side} × {side} pixels, not {expected} × {expected}"):
        gather(bundle, None)


def test_a_drawing_of_an_unknown_size_is_bounded(bundle: Path, undecoded: None) -> None:
    (bundle / "chains").mkdir()
    Image.new("1", (13_000, 13_000)).save(bundle / "chains" / "a.png")
    write_outcomes(bundle, [drawn("chains/a.png")])
    with pytest.raises(BundleError, match="is 13000 × 13000 pixels, more than 4 million"):
        gather(bundle, None)


def image(name: str, side: int) -> FunctionSpec:
    """A function that takes and gives a picture."""
    spec = TensorSpec("image", (1, 3, side, side), DType.FLOAT32, "B C Y X", Role.IMAGE)
    return FunctionSpec(name, (spec,), (spec,))


def test_a_missing_or_broken_picture_is_refused(bundle: Path) -> None:
    write_chains(bundle, {})
    path = bundle / "chains" / "phone.png"
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(BundleError, match=r"phone\.png: cannot be read"):
        gather(bundle, None)
    Image.new("RGB", (4, 4)).save(path, "JPEG")
    with pytest.raises(BundleError, match=r"phone\.png: cannot be read"):
        gather(bundle, None)
    path.unlink()
    with pytest.raises(BundleError, match=r"phone\.png: is missing"):
        gather(bundle, None)


def test_an_evaluation_of_other_weights_is_refused(bundle: Path, tmp_path: Path) -> None:
    evaluation = write_evaluation(tmp_path / "evaluation", {"phone": [True]}, checkpoint="sha256:" + "f" * 64)
    with pytest.raises(UsageError, match="evaluates another checkpoint"):
        gather(bundle, evaluation)


def test_an_evaluation_of_another_export_is_refused(bundle: Path, tmp_path: Path) -> None:
    evaluation = write_evaluation(tmp_path / "other", {"phone": [True]}, bundle="f" * 64)
    with pytest.raises(UsageError, match="another export"):
        gather(bundle, evaluation)
    own = write_evaluation(tmp_path / "own", {"phone": [True]}, bundle=manifest_digest(bundle))
    assert gather(bundle, own).evaluation is not None


def test_an_evaluation_of_no_model_is_refused(bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="holds no model's run"):
        gather(bundle, write_evaluation(tmp_path / "evaluation", {}))


def test_an_evaluation_on_different_tasks_is_refused(bundle: Path, tmp_path: Path) -> None:
    evaluation = write_evaluation(tmp_path / "evaluation", {"torch": [True, True], "phone": [True]})
    with pytest.raises(UsageError, match="different tasks"):
        gather(bundle, evaluation)


def test_examples_show_disputed_tasks_first(bundle: Path, tmp_path: Path) -> None:
    right = [True] * 20
    disputed = [index not in (13, 17) for index in range(20)]
    evaluation = write_evaluation(tmp_path / "evaluation", {"phone": disputed, "torch": right})
    content = gather(bundle, evaluation).evaluation
    assert content is not None
    assert list(content.runs) == ["torch", "phone"]
    seeds = [example.task.seed for example in content.examples]
    assert len(seeds) == 8
    assert {0, 1, 13, 17} <= set(seeds)
    assert [question.task.question for question in content.questions] == ["question 13?", "question 17?"]
    assert content.questions_left_out == 0


def test_questions_have_their_pictures_where_the_bundle_holds_the_tasks(bundle: Path, tmp_path: Path) -> None:
    from mobile_o_export.evaluation.tasks import Tasks

    folder = bundle / "evaluation"
    folder.mkdir()
    Image.new("RGB", (8, 8), "red").save(folder / "0.png")
    questions = folder / "questions.jsonl"
    questions.write_text(json.dumps({"image": "0.png", "question": "question 0?", "answer": "red"}))
    evaluation = write_evaluation(tmp_path / "evaluation", {"phone": [False], "torch": [True]})
    assert [question.picture for question in _questions(bundle, evaluation)] == [None]
    record = Evaluation.read(evaluation)
    settings = record.settings.model_copy(update={"tasks": Tasks.read(None, questions).digest})
    record.model_copy(update={"settings": settings}).write(evaluation)
    [question] = _questions(bundle, evaluation)
    assert question.picture is not None
    assert question.picture.pixels()[0, 0].tolist() == [255, 0, 0]


def _questions(bundle: Path, evaluation: Path):
    content = gather(bundle, evaluation).evaluation
    assert content is not None
    return content.questions


@pytest.mark.parametrize(
    ("reference", "actual", "parts"),
    [
        ("a red cube", "a red ball", ("a red ", "ball", "")),
        ("a red cube", "a reed cube", ("a ", "reed", " cube")),
        ("a red cube", "a red", ("a red", "", "")),
        ("a red", "a red cube", ("a red", " cube", "")),
        ("a redder cube", "a red cube", ("a ", "red", " cube")),
        ("houses", "hous", ("", "hous", "")),
        ("", "word", ("", "word", "")),
        ("word", "", ("", "", "")),
    ],
)
def test_an_answer_parts_at_the_first_different_word(
    reference: str, actual: str, parts: tuple[str, str, str]
) -> None:
    parted = Parted.at_first_difference(reference, actual)
    assert parted is not None
    assert (parted.same, parted.different, parted.rest) == parts


def test_equal_answers_do_not_part() -> None:
    assert Parted.at_first_difference("the same", "the same") is None


def test_numbers_are_written_for_people() -> None:
    assert [decibels(value) for value in (None, 54.06, 200.0, -3.0)] == [
        "–",
        "54.1 dB",
        "identical",
        "−3.0 dB",
    ]
    assert [points(value) for value in (0.012, -0.034, 0.0, -0.0001)] == ["+1.2", "−3.4", "0.0", "0.0"]
    assert [size(value) for value in (11_000, 2_849_282, 1.5e9)] == ["11.0 kB", "2.8 MB", "1.50 GB"]
    assert percent(0.5234) == "52 %"
