"""``report``: a page that a browser shows whole, from the file alone."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from cli_harness import Cli, finish, start

from mobile_o_export.bundle.manifest import read_manifest
from mobile_o_export.bundle.outcomes import Outcomes

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
QUIET = ("--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update")


@pytest.fixture(scope="module")
def html(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("report") / "report.html"
    done = finish(start("report", bundle, "--out", out))
    assert (done.code, done.out) == (0, f"{out}\n"), done.err
    return out


@dataclass
class Seen:
    """What a page did while it was open."""

    messages: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    scrolls: bool = False
    text: str = ""
    broken_images: int = 0
    pdf_bytes: int = 0


@pytest.fixture(scope="module")
def executable() -> str:
    found = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if found is None:
        if os.environ.get("CI") == "true":
            pytest.fail("CI has to open the report in a browser: install chromium")
        pytest.skip("no chromium here")
    return found


@pytest.fixture(scope="module", params=[1280, 360], ids=["desk", "phone"])
def seen(request: pytest.FixtureRequest, executable: str, html: Path) -> Seen:
    from playwright.sync_api import sync_playwright

    found = Seen()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=list(QUIET))
        page = browser.new_page(viewport={"width": request.param, "height": 900})
        page.on("console", lambda message: found.messages.append(message.text))
        page.on("pageerror", lambda error: found.messages.append(str(error)))
        page.on("request", lambda sent: found.requests.append(sent.url))
        page.goto(html.as_uri(), wait_until="load")
        page.evaluate("for (const d of document.querySelectorAll('details')) d.open = true")
        page.wait_for_timeout(200)
        found.scrolls = page.evaluate("document.documentElement.scrollWidth > window.innerWidth")
        found.text = page.inner_text("body")
        found.broken_images = page.evaluate(
            "[...document.images].filter(i => !i.complete || i.naturalWidth === 0).length"
        )
        found.pdf_bytes = len(page.pdf())
        browser.close()
    return found


def test_nothing_is_complained_of_and_nothing_fetched(seen: Seen, html: Path) -> None:
    assert seen.messages == []
    assert [url for url in seen.requests if not url.startswith("data:")] == [html.as_uri()]


def test_the_page_fits_its_window_and_prints(seen: Seen) -> None:
    assert not seen.scrolls
    assert seen.pdf_bytes > 20_000


def test_every_target_is_there_with_its_verdict_and_pictures(seen: Seen, bundle: Path) -> None:
    for target in read_manifest(bundle).targets:
        assert target in seen.text
    assert "passed" in seen.text.lower()
    assert seen.broken_images == 0


def test_the_page_holds_a_picture_of_every_drawn_chain(html: Path, bundle: Path) -> None:
    outcomes = Outcomes.read(bundle).outcomes
    drawn = [outcome for outcome in outcomes if outcome.picture is not None]
    targets = {outcome.target for outcome in outcomes}
    assert targets == {"torch", *read_manifest(bundle).targets}
    assert len(drawn) % len(targets) == 0
    assert html.read_text(encoding="utf-8").count("data:image/png;base64,") >= len(drawn)


def test_a_file_in_the_way_is_kept(cli: Cli, bundle: Path, tmp_path: Path) -> None:
    out = tmp_path / "report.html"
    out.write_text("mine")
    cli("report", bundle, "--out", out).refused("exists already", "--overwrite")
    assert out.read_text() == "mine"
    assert cli("report", bundle, "--out", out, "--overwrite").code == 0
    assert out.read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


def test_a_damaged_bundle_gets_no_report(cli: Cli, bundle: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(bundle, tmp_path / "bundle", copy_function=os.link))
    (copy / "parity.json").unlink()
    (copy / "parity.json").write_text("{}")
    cli("report", copy, "--out", tmp_path / "report.html").refused("parity.json was changed", code=1)
    assert not (tmp_path / "report.html").exists()


def test_wrong_folders_are_told(cli: Cli, bundle: Path, tmp_path: Path) -> None:
    out = tmp_path / "r.html"
    cli("report", bundle, "--out", out, "--evaluation", tmp_path).refused("evaluate --out")
    cli("report", tmp_path, "--out", out).refused("is not a bundle")
    cli("report", bundle, "--out", bundle / "report.html").refused("lies in the bundle")
    cli("report", bundle, "--out", tmp_path / "none" / "r.html").refused("its folder does not exist")
    assert not any(tmp_path.iterdir())
