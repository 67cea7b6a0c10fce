"""The page says what the records say: no failure is hidden, no text becomes markup, nothing is fetched."""

from __future__ import annotations

import base64
import io
import math
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from report_harness import (
    DIGEST,
    FUNCTIONS,
    Page,
    changed,
    drawing,
    every_row,
    failed,
    manifest,
    page_of,
    row,
    rows,
    target,
    write_bundle,
    write_chains,
    write_evaluation,
)

from mobile_o_export import tensors
from mobile_o_export.backends.base import GraphFile
from mobile_o_export.bundle.manifest import ComponentEntry
from mobile_o_export.components.base import GraphSpec
from mobile_o_export.errors import BundleError
from mobile_o_export.parity.judge import Status
from mobile_o_export.precision import Precision
from mobile_o_export.report.contract import LETTERS, collapsed
from mobile_o_export.report.pictures import amplification
from mobile_o_export.tensors import DType, Role, TensorSpec

ANSWERS = {
    "torch": "There are three houses.",
    "phone": "There are four houses.",
    "board": "There are three houses.",
}


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """Two targets that passed, with pictures and answers."""
    folder = write_bundle(tmp_path / "bundle", manifest(), every_row())
    write_chains(folder, ANSWERS)
    return folder


def card(page: Page, name: str) -> str:
    [found] = [element.text for element in page.all("section", "card") if element.text.startswith(name)]
    return found


def test_every_target_s_verdict_is_at_the_top_as_a_sign_and_a_word(tmp_path: Path) -> None:
    found = [
        *changed(rows("phone"), **failed("off by a mile", snr_db=12.0)),
        row("board", "mcp", status="not_run", runtime="none", reason="no runtime"),
        row("board", "dit", status="not_run", runtime="none", reason="no runtime"),
    ]
    page = page_of(write_bundle(tmp_path / "bundle", manifest(), found))
    assert "✗ failed" in card(page, "phone")
    assert "○ not run" in card(page, "board")
    [overall] = page.all("p", "overall")
    assert overall.text == "✗ failed 0 of 2 targets passed, 1 failed, 1 not run · 6 of 9 outputs passed"
    [title] = page.all("title")
    assert title.text == "Mobile-O bundle 4.5.6: failed"


def test_a_passed_target_shows_the_figures_behind_it(bundle: Path) -> None:
    page = page_of(bundle)
    shown = card(page, "phone")
    assert "✓ passed" in shown
    assert "4.0 MB" in shown
    assert "25 % of 16.0 MB in fp32" in shown
    assert "71.2 dB" in shown
    assert "gate 40 dB · mcp project" in shown
    assert "PSNR 52.5 dB" in shown
    assert "1 of 1 answer passed" in shown
    assert "7 tokens the same as PyTorch’s" in shown
    assert "7 of 7 passed" in shown
    assert [section for section in page.all("section") if "listed" in section.classes] == []


def test_a_failed_row_is_listed_with_its_reason_outside_of_details(tmp_path: Path) -> None:
    found = [*changed(rows("phone"), **failed("off by a mile", snr_db=12.0)), *rows("board")]
    page = page_of(write_bundle(tmp_path / "bundle", manifest(), found))
    lines = [line for line in page.all("tr") if "off by a mile" in line.text]
    assert [line.within("details") for line in lines] == [False, True]
    assert lines[0].text.startswith("phone")
    listed = page.section("failures")
    assert listed in lines[0].parents
    order = [page.elements.index(page.section(name)) for name in ("failures", "parity", "provenance")]
    assert order == sorted(order)


def test_what_was_not_compared_fails_its_target(tmp_path: Path) -> None:
    found = [*(own for own in rows("phone") if own.component != "dit"), *rows("board")]
    page = page_of(write_bundle(tmp_path / "bundle", manifest(), found))
    assert "✗ failed" in card(page, "phone")
    assert "nothing was compared of dit" in card(page, "phone")
    assert "✓ passed" in card(page, "board")
    [overall] = page.all("p", "overall")
    assert overall.text.startswith("✗ failed")


def test_no_rows_at_all_are_a_failure(tmp_path: Path) -> None:
    page = page_of(write_bundle(tmp_path / "bundle", manifest(), []))
    [overall] = page.all("p", "overall")
    assert overall.text.startswith("✗ failed 0 of 2 targets passed")


def test_a_target_that_skips_all_is_no_failure_of_the_others(tmp_path: Path) -> None:
    skipped = {name: ComponentEntry(skipped="too large") for name in ("mcp", "dit")}
    idle = target("board", Precision.W16, components=skipped, chain_gate=None)
    found = manifest(targets={"phone": target("phone", Precision.FP16), "board": idle})
    page = page_of(write_bundle(tmp_path / "bundle", found, rows("phone")))
    assert "○ not run" in card(page, "board")
    assert "every component is skipped" in card(page, "board")
    assert "skipped: too large" in page.section("parity").text
    [overall] = page.all("p", "overall")
    assert overall.text == "✓ passed 1 of 1 target passed · 7 of 7 outputs passed"


def test_words_from_data_never_become_markup(tmp_path: Path) -> None:
    evil = "<script>alert('x')</script>\"><img src=x onerror=y>"
    found = manifest(
        bundle_version=evil,
        made_with={evil: evil},
        targets={"phone": target("phone", Precision.FP16, description=evil, options={evil: evil})},
    )
    folder = write_bundle(tmp_path / "bundle", found, changed(rows("phone"), **failed(evil)))
    write_chains(folder, {"torch": evil, "phone": f"{evil} {evil}"}, prompt=evil)
    page = page_of(folder)
    assert page.all("script") == []
    assert [
        image for image in page.all("img") if not (image.attributes["src"] or "").startswith("data:")
    ] == []
    assert not [a for element in page.elements for a in element.attributes if a.startswith("on")]
    for place in ("failures", "pictures", "answers", "provenance"):
        assert evil in page.section(place).text.replace("�", "")
    [heading] = page.all("h1")
    assert evil in heading.text


def test_what_html_cannot_hold_is_replaced(tmp_path: Path) -> None:
    folder = write_bundle(tmp_path / "bundle", manifest(), every_row())
    write_chains(folder, {"torch": "a\x00b\ufffec\u202ed\ne", "phone": "a\x1bb"})
    page = page_of(folder)
    assert page.html.encode("utf-8")
    assert not re.search("[\x00-\x08\x0b-\x1f\u202e]", page.html)
    assert "a�b�c�d e" in page.section("answers").text


def test_half_a_character_is_no_text(tmp_path: Path) -> None:
    folder = write_bundle(tmp_path / "bundle", manifest(), every_row())
    write_chains(folder, {"torch": "a\ud800b", "phone": "c"})
    with pytest.raises(
        BundleError, match=r"chains\.json: not valid JSON: the text .* holds half a character"
    ):
        page_of(folder)


def test_the_page_is_whole_and_fetches_nothing(bundle: Path, tmp_path: Path) -> None:
    evaluation = write_evaluation(tmp_path / "evaluation", {"torch": [True], "phone": [False]})
    page = page_of(bundle, evaluation)
    assert page.html.startswith('<!DOCTYPE html>\n<html lang="en">')
    policies = [meta.attributes["content"] for meta in page.all("meta") if "http-equiv" in meta.attributes]
    assert policies == ["default-src 'none'; img-src data:; style-src 'unsafe-inline'"]
    for element in page.elements:
        for name in ("src", "href", "srcset", "xlink:href", "action"):
            value = element.attributes.get(name)
            assert value is None or value.startswith(("data:", "#")), (element.name, value)
    links = [link.attributes["href"] or "" for link in page.all("a")]
    identifiers = [element.attributes["id"] for element in page.elements if "id" in element.attributes]
    assert len(identifiers) == len(set(identifiers))
    assert {link.removeprefix("#") for link in links} <= set(identifiers)
    assert "url(" not in page.html
    assert "@import" not in page.html
    assert "see https://example.org/licence" in page.section("provenance").text
    outside = page.html.replace("https://example.org/licence", "")
    assert not re.search("https?://", outside)


def test_tables_and_pictures_are_readable_without_eyes(bundle: Path) -> None:
    page = page_of(bundle)
    tables = page.all("table")
    assert tables
    for table in tables:
        assert [caption.text for caption in page.inside(table, "caption")]
    assert all(head.attributes.get("scope") for head in page.all("th"))
    assert all(image.attributes.get("alt") for image in page.all("img"))
    named = ("aria-label", "aria-hidden")
    assert all(any(name in svg.attributes for name in named) for svg in page.all("svg"))


def test_a_difference_map_says_and_shows_the_largest_difference(bundle: Path) -> None:
    page = page_of(bundle)
    notes = [note.text for note in page.inside(page.section("pictures"), "small")]
    # 3 levels times 64 is 192; times 128 would not fit.
    assert "difference ×64, largest 3/255" in notes
    assert "no difference: every pixel is PyTorch’s" in notes
    maps = [image for image in page.all("img") if "Map of" in (image.attributes["alt"] or "")]
    shown = [pixels(image.attributes["src"] or "") for image in maps]
    expected = np.zeros(drawing().shape[:2], np.uint8)
    expected[2, 5] = 192
    np.testing.assert_array_equal(shown[0], expected)
    np.testing.assert_array_equal(shown[1], np.zeros_like(expected))


def pixels(url: str) -> np.ndarray:
    with Image.open(io.BytesIO(base64.b64decode(url.removeprefix("data:image/png;base64,")))) as picture:
        return np.asarray(picture)


@pytest.mark.parametrize(("largest", "factor"), [(0, 1), (1, 128), (3, 64), (4, 32), (128, 1), (255, 1)])
def test_an_amplified_difference_still_fits(largest: int, factor: int) -> None:
    assert amplification(largest) == factor
    assert largest * factor <= 255


def test_pictures_are_embedded_as_they_are_and_small_ones_are_not_blurred(bundle: Path) -> None:
    page = page_of(bundle)
    original = base64.b64encode((bundle / "chains" / "torch.png").read_bytes()).decode()
    [shown] = [image for image in page.all("img") if "PyTorch’s drawing" in (image.attributes["alt"] or "")]
    assert shown.attributes["src"] == f"data:image/png;base64,{original}"
    assert "pixelated" in shown.classes


def test_a_target_without_a_picture_says_why(tmp_path: Path) -> None:
    found = [
        *rows("phone"),
        *rows("board")[:2],
        row(
            "board", "pipeline", function="generate", case="cube", output="", **failed("it ran out of memory")
        ),
    ]
    folder = write_bundle(tmp_path / "bundle", manifest(), found)
    write_chains(folder, ANSWERS)
    (folder / "chains/chains.json").write_text(
        (folder / "chains/chains.json").read_text().replace('"chains/board.png"', "null")
    )
    assert "no picture: it ran out of memory" in page_of(folder).section("pictures").text


def test_the_first_different_word_of_an_answer_is_marked(bundle: Path) -> None:
    page = page_of(bundle)
    marks = page.inside(page.section("answers"), "mark")
    assert [mark.text for mark in marks] == ["four"]
    assert "another text from character 11 on" in page.section("answers").text


def test_a_bundle_without_chains_says_so(tmp_path: Path) -> None:
    page = page_of(write_bundle(tmp_path / "bundle", manifest(), every_row()))
    assert "holds no pictures" in page.section("pictures").text
    assert "holds no answers" in page.section("answers").text
    assert page.all("img") == []


def test_without_an_evaluation_the_page_says_how_to_make_one(bundle: Path) -> None:
    shown = page_of(bundle).section("scores").text
    assert "were not evaluated" in shown
    assert "mobile-o-export evaluate BUNDLE --target T --out FOLDER" in shown
    assert "mobile-o-export report BUNDLE --evaluation FOLDER" in shown


def test_scores_stand_next_to_pytorch_s(bundle: Path, tmp_path: Path) -> None:
    verdicts = {"phone": [True] * 12 + [False] * 28, "torch": [True] * 38 + [False] * 2, "board": [True] * 40}
    page = page_of(bundle, write_evaluation(tmp_path / "evaluation", verdicts))
    models = [line.text for line in page.inside(page.section("scores"), "tr") if "/ 40" in line.text]
    assert [line.split()[0] for line in models[:3]] == ["PyTorch", "phone", "board"]
    assert "38 / 40 95.0 %" in models[0]
    assert "12 / 40 30.0 %" in models[1]
    assert "−65.0 lower" in models[1]
    assert "gained 0, lost 26" in models[1]
    assert "+5.0 within noise" in models[2]
    assert "against PyTorch: lower" in card(page, "phone")
    assert len(page.all("div", "examples")) == 1
    examples = [strip for strip in page.all("div", "strip") if "small" in strip.classes]
    assert len(examples) == 8
    assert "10 of 28 shown" in page.section("scores").text
    assert "40 / 40" in models[2]


def test_equal_content_gives_equal_text(bundle: Path, tmp_path: Path) -> None:
    evaluation = write_evaluation(tmp_path / "evaluation", {"torch": [True, False], "phone": [True, True]})
    assert page_of(bundle, evaluation).html == page_of(bundle, evaluation).html


def test_an_infinite_number_is_no_number(tmp_path: Path) -> None:
    found = changed(every_row(), max_abs=math.inf, **{"status": Status.FAILED})
    with pytest.raises(BundleError, match=r"parity\.json: not valid JSON: Infinity is not a number"):
        page_of(write_bundle(tmp_path / "bundle", manifest(), found))


def test_a_missing_number_is_a_dash(tmp_path: Path) -> None:
    found = changed(every_row(), snr_db=None, max_abs=None, cosine=None, **{"status": Status.FAILED})
    page = page_of(write_bundle(tmp_path / "bundle", manifest(), found))
    [line] = [own for own in page.all("tr", "failed") if own.within("details")]
    assert line.text == "mcp project case out ✗ failed – – – ≥ 40 dB –"
    body = page.html[page.html.index("<body>") :]
    assert not re.search(
        r"\b(nan|inf|infinity|none)\b", re.sub(r'="[^"]*"', "", body).replace(">none<", ""), re.I
    )
    assert not re.search(r'="[^"]*\b(nan|inf)\b[^"]*"', body)


def test_drift_breaks_where_a_step_has_no_value(tmp_path: Path) -> None:
    found = [
        own.model_copy(update={"snr_db": None}) if (own.target, own.step) == ("phone", 2) else own
        for own in every_row()
    ]
    page = page_of(write_bundle(tmp_path / "bundle", manifest(), found))
    [chart] = page.all("svg", "chart")
    lines = [e.attributes["d"] or "" for e in page.inside(chart, "path") if "line" in e.classes]
    assert [line.count("M") for line in lines] == [2, 1]
    assert [line.count("L") for line in lines] == [0, 2]
    words = [words.text for words in page.inside(chart, "text")]
    assert {"gate 45 dB: phone", "gate 50 dB: board", "phone", "board"} <= set(words)


def test_sizes_stand_next_to_fp32_where_the_parameters_are_known(tmp_path: Path) -> None:
    entry = manifest().checkpoint.model_copy(update={"component_parameters": {"dit": 3_000_000}})
    page = page_of(write_bundle(tmp_path / "bundle", manifest(checkpoint=entry), every_row()))
    lines = [line.text for line in page.inside(page.section("sizes"), "tr")]
    assert "dit 2.0 MB 12.0 MB 17 %" in lines
    assert "mcp 2.0 MB – –" in lines
    assert "total 4.0 MB – –" in lines


def test_the_contract_names_every_tensor_and_graph(bundle: Path) -> None:
    page = page_of(bundle)
    lines = [line.text for line in page.inside(page.section("contract"), "tr")]
    assert "mcp.project in hidden 1 × S × 96 float32 B S D hidden states −1 … 1 a meaning" in lines
    assert "dit denoise_64 dit/dit.bin, in it main denoise latent 1 × 8 × 8 × 8 float32" in " ".join(lines)


def test_the_legend_is_the_package_s() -> None:
    letters = re.findall(r"(?:^|\s\s)([A-Z])(?:,|  )", tensors.__doc__ or "", re.M)
    letters += re.findall(r"([A-Z]), ([A-Z])  ", tensors.__doc__ or "")[0]
    assert set(letters) == set(LETTERS)


def test_many_tensors_of_one_kind_are_one_line(tmp_path: Path) -> None:
    caches = tuple(
        TensorSpec(f"past.{layer}.{part}", (1, 2, "P", 8), DType.FLOAT16, "B H P E", Role.CACHE)
        for layer in range(6)
        for part in ("key", "value")
    )
    single = TensorSpec("position", (1,), DType.INT32, "B", Role.POSITION)
    assert [(name, number) for name, _, number in collapsed((single, *caches))] == [
        ("position", 1),
        ("past.{0…5}.key", 6),
        ("past.{0…5}.value", 6),
    ]
    [function] = FUNCTIONS["mcp"]
    spec = GraphSpec("one", (function.name,), (*function.inputs, single, *caches), function.outputs)
    graph = GraphFile(spec, "m.onnx", "")
    parts = dict(target("phone", Precision.FP16).components)
    parts["mcp"] = parts["mcp"].model_copy(update={"graphs": (graph,)})
    found = manifest(targets={"phone": target("phone", Precision.FP16, components=parts)})
    page = page_of(write_bundle(tmp_path / "bundle", found, rows("phone")))
    assert "past.{0…5}.key 1 × 2 × P × 8 float16, 6 tensors" in page.section("contract").text


def test_provenance_names_what_the_bundle_was_made_from(bundle: Path) -> None:
    shown = page_of(bundle).section("provenance").text
    recorded = (bundle / "manifest.sha256").read_text().split()[0]
    for part in (DIGEST, recorded, "4,000,000", "torch 2.13.0", "static, 64 tokens", "opset = 20", "1 file"):
        assert part in shown
