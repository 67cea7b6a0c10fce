"""A third of the mutation campaign: what hashes alone would let pass is caught, by checks or by outputs.

``benchmarks/mutations.py`` runs all of it.
"""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from campaign import campaign
from corruptions import Corruption, NothingToChange, copied, seal
from mutations import CHECKS, PASSED, caught_by, harmed

SEED, SHARE = 16, 3
PARTS = ("bundle", "coreml-ane", "litert-cpu", "tensorrt-orin", "onnx-cpu", "mobile-o-app")


def part_of(corruption: Corruption) -> str:
    return corruption.target or "bundle"


@pytest.fixture(scope="module")
def found(campaign_bundle: Path) -> list[Corruption]:
    return campaign(campaign_bundle)


def test_the_campaign_is_large_and_leaves_no_part_out(found: list[Corruption], campaign_bundle: Path) -> None:
    assert len(found) >= 150
    assert {part_of(corruption) for corruption in found} == set(PARTS)
    assert [corruption.name for corruption in found if corruption.harmless] == [
        "manifest: another bundle_version",
        *(f"manifest: {target}: its description" for target in PARTS[1:]),
    ]
    places = {name.split("/")[0] for name in listed(campaign_bundle)}
    touched = " ".join(corruption.name for corruption in found)
    # The manifest's own corruptions are named for what they say; its digest follows from it.
    assert {place for place in places if place not in touched} == {"manifest.json", "manifest.sha256"}


def listed(bundle: Path) -> list[str]:
    return [path.relative_to(bundle).as_posix() for path in bundle.rglob("*") if path.is_file()]


def test_a_copy_that_is_sealed_again_passes(campaign_bundle: Path, tmp_path: Path) -> None:
    """So that corruptions fail for what they change, and not for how."""
    copy = copied(campaign_bundle, tmp_path / "bundle")
    seal(copy, verdict=True)
    assert caught_by(copy, Corruption("none", lambda *_: None, "litert-cpu", "mcp")) == (PASSED, "")


@pytest.mark.parametrize("part", PARTS)
def test_every_corruption_is_caught(
    part: str, found: list[Corruption], campaign_bundle: Path, tmp_path: Path
) -> None:
    own = [corruption for corruption in found if part_of(corruption) == part and not corruption.harmless]
    chosen = random.Random(SEED).sample(own, -(-len(own) // SHARE))
    missed = []
    for index, corruption in enumerate(chosen):
        try:
            copy = harmed(campaign_bundle, corruption, tmp_path / str(index), SEED + index)
        except NothingToChange:
            continue
        what, reason = caught_by(copy, corruption)
        if what == PASSED or not reason:
            missed.append(corruption.name)
    assert missed == []


def test_a_verdict_on_other_files_is_noticed_where_hashes_alone_were_recomputed(
    campaign_bundle: Path, tmp_path: Path
) -> None:
    copy = copied(campaign_bundle, tmp_path / "bundle")
    manifest = Corruption("manifest", next(c for c in campaign(copy) if "bundle_version" in c.name).edit)
    import numpy as np

    manifest.edit(copy, np.random.default_rng(0))
    seal(copy, verdict=False)
    what, reason = caught_by(copy, manifest)
    assert (what, reason) == (
        CHECKS,
        "bundle verdict parity.json: is the verdict on another manifest, or on other files",
    )
