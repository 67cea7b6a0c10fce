"""Checks of what a bundle holds beside its components: each file against the rule that it follows from."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory

from mobile_o_export.backends.registry import backend
from mobile_o_export.bundle.findings import BUNDLE, Finding, by_rule
from mobile_o_export.bundle.layout import LICENCE_NOTICE, TOKENIZER_FILE
from mobile_o_export.bundle.manifest import (
    CONFIG_FOLDER,
    EVALUATION_FOLDER,
    GOLDEN_FOLDER,
    MANIFEST,
    MANIFEST_SCHEMA,
    PARITY_REPORT,
    TOKENIZER_FOLDER,
    VECTORS_FOLDER,
    Damage,
    Manifest,
    json_schema,
)
from mobile_o_export.bundle.outcomes import OUTCOMES_FOLDER, other_outcomes
from mobile_o_export.bundle.vectors import other_vectors
from mobile_o_export.bundle.verdicts import ParityReport, judged_digest
from mobile_o_export.errors import BundleError, ExportError
from mobile_o_export.golden import GOLDEN_FILES, Golden
from mobile_o_export.members import Members
from mobile_o_export.parity.levels import versions_in
from mobile_o_export.pipelines.settings import SCHEDULER, SETTINGS, SchedulerNumbers, Settings
from mobile_o_export.tokenizer import Tokenizer

MACOS = "macOS"
"""In the name of a runtime that is the system's own."""


def check_bundle(folder: Path, manifest: Manifest, golden: Golden, report: ParityReport) -> Iterator[Finding]:
    """Every check that concerns no single component, in the order of the documentation's table."""
    whole = partial(Finding, BUNDLE)
    yield whole("verdict", PARITY_REPORT, "given on these files", tuple(_judged(manifest, report)))
    yield whole("files", "every file", "known to the layout", tuple(_strays(manifest)))
    yield whole("golden", "its index", "fits the manifest", tuple(_misrecorded(folder, manifest, golden)))
    yield whole("checkpoint", "copied files", "as copied", tuple(_not_copied(manifest)))
    members = Members(folder, BundleError)
    same = members.has(MANIFEST_SCHEMA) and members.read(MANIFEST_SCHEMA) == json_schema().encode()
    schema = [] if same else [Damage(MANIFEST_SCHEMA, "is not the manifest's")]
    ruled = partial(by_rule, manifest, BUNDLE)
    yield ruled("schema", MANIFEST_SCHEMA, "this version's, byte for byte", schema)
    try:
        settings = Settings.read(members.tree(CONFIG_FOLDER))
        tokenizer = Tokenizer(members.tree(TOKENIZER_FOLDER))
    except ExportError as error:
        yield whole(
            CONFIG_FOLDER, "settings and tokenizer", "can be read", (Damage(CONFIG_FOLDER, str(error)),)
        )
        return
    yield ruled(CONFIG_FOLDER, "schedules", "computed again, to the last bit", _unscheduled(settings))
    yield ruled(
        VECTORS_FOLDER,
        "every vector",
        "computed again",
        other_vectors(folder / VECTORS_FOLDER, settings, tokenizer),
    )
    yield whole(
        OUTCOMES_FOLDER,
        "pictures and answers",
        "PyTorch's are the golden's, others as near as recorded",
        tuple(other_outcomes(folder, golden, tokenizer, report.rows)),
    )
    for name in manifest.targets:
        yield by_rule(
            manifest,
            name,
            "files",
            "build files",
            "this version's, byte for byte",
            _unfinished(folder, manifest, name),
        )


def _judged(manifest: Manifest, report: ParityReport) -> Iterator[Damage]:
    if report.judged != judged_digest(manifest):
        yield Damage(PARITY_REPORT, "is the verdict on another manifest, or on other files")
    known = {version.partition("+")[0] for version in manifest.made_with.values()}
    for runtime in dict.fromkeys(row.runtime for row in report.rows):
        # A Mac's own Core ML has the system's version.
        if MACOS not in runtime and (strange := sorted(versions_in(runtime) - known)):
            yield Damage(
                PARITY_REPORT, f"names {runtime}, and nothing of version {strange[0]} made the bundle"
            )


def _strays(manifest: Manifest) -> Iterator[Damage]:
    """Files that no part of the layout has a place for; a bundle is no place for what nobody checks."""
    fixed = {PARITY_REPORT, MANIFEST_SCHEMA, LICENCE_NOTICE}
    fixed |= {f"{CONFIG_FOLDER}/{name}" for name in SETTINGS}
    fixed |= {f"{GOLDEN_FOLDER}/{name}" for name in GOLDEN_FILES}
    # What is in these is held to their own indices.
    folders = {EVALUATION_FOLDER, OUTCOMES_FOLDER, TOKENIZER_FOLDER, VECTORS_FOLDER}
    parts = {
        name
        for entry in manifest.targets.values()
        for part in entry.components.values()
        for name in part.files
    }
    for name in manifest.files:
        first, *rest = PurePosixPath(name).parts
        if name in fixed or name in parts or (rest and first in folders):
            continue
        entry = manifest.targets.get(first)
        beside = () if entry is None else backend(entry.backend).finishing(entry.options)
        if rest not in [[own] for own in beside]:
            yield Damage(name, "belongs to nothing that an export writes")


def _misrecorded(folder: Path, manifest: Manifest, golden: Golden) -> Iterator[Damage]:
    """How the golden's index and the bundle disagree: it was recorded under other settings, say."""
    index = golden.index
    place = f"{GOLDEN_FOLDER}/golden.json"
    for name, functions in manifest.functions.items():
        recorded = index.components.get(name)
        if recorded is None or recorded.functions != functions:
            yield Damage(place, f"has another contract of {name} than the manifest")
    try:
        members = Members(folder, BundleError)
        found = Settings.read(members.tree(CONFIG_FOLDER)).digests()
    except ExportError as error:
        yield Damage(CONFIG_FOLDER, str(error))
        return
    for name in sorted(found.keys() | index.settings.keys()):
        if found.get(name) != index.settings.get(name):
            yield Damage(f"{CONFIG_FOLDER}/{name}", "is not what the golden was recorded under")
    shipped = {
        name.removeprefix(f"{TOKENIZER_FOLDER}/"): entry.sha256
        for name, entry in manifest.files.items()
        if name.startswith(f"{TOKENIZER_FOLDER}/")
    }
    for name, digest in index.tokenizer.items():
        if shipped.get(name) != digest:
            yield Damage(f"{TOKENIZER_FOLDER}/{name}", "is not what the golden was recorded with")
    for name in sorted(shipped.keys() - index.tokenizer.keys()):
        if name != TOKENIZER_FILE or not _is_derived(folder, index.tokenizer):
            yield Damage(f"{TOKENIZER_FOLDER}/{name}", "does not follow from the tokenizer's other files")


def _is_derived(folder: Path, sources: Iterable[str]) -> bool:
    """Whether ``tokenizer.json`` is the one that the ``sources`` beside it make."""
    members = Members(folder, BundleError)
    with TemporaryDirectory(prefix="mobile-o-tokenizer-") as work:
        for name in sources:
            (Path(work) / name).write_bytes(members.read(f"{TOKENIZER_FOLDER}/{name}"))
        Tokenizer(Path(work)).save(Path(work) / TOKENIZER_FILE)
        again = Members(Path(work), BundleError).text(TOKENIZER_FILE)
        return bool(json.loads(again) == json.loads(members.text(f"{TOKENIZER_FOLDER}/{TOKENIZER_FILE}")))


def _not_copied(manifest: Manifest) -> Iterator[Damage]:
    """Files that are said to have been copied from the checkpoint's folder, and are others now."""
    sources = manifest.checkpoint.sources
    for name, digest in sources.items():
        entry = manifest.files.get(name)
        if entry is None or entry.sha256 != digest:
            yield Damage(name, "is not what was copied from the checkpoint's folder")
    for name in manifest.files:
        if name.startswith(f"{EVALUATION_FOLDER}/") and name not in sources:
            yield Damage(name, "was not copied from the checkpoint's folder")
    if LICENCE_NOTICE not in sources:
        yield Damage(LICENCE_NOTICE, "is not said to come with the weights")


def _unscheduled(settings: Settings) -> Iterator[Damage]:
    again = SchedulerNumbers.from_config(settings.scheduler.config)
    if settings.scheduler != again:
        steps = [
            name for name, own in again.schedules.items() if settings.scheduler.schedules.get(name) != own
        ]
        what = f"the schedule of {steps[0]} steps" if steps else "its text or its list of schedules"
        yield Damage(f"{CONFIG_FOLDER}/{SCHEDULER}", f"{what} is not what its configuration gives")


def _unfinished(folder: Path, manifest: Manifest, target: str) -> Iterator[Damage]:
    """Files that concern all components of a target together, against what is written again."""
    entry = manifest.targets[target]
    graphs = {name: part.graphs for name, part in entry.components.items() if part.graphs}
    if not graphs:
        return
    vendor = backend(entry.backend)
    if entry.least_runtimes != vendor.least_runtimes(entry.options):
        yield Damage(MANIFEST, f"names other runtimes for {target} than this version does")
    with TemporaryDirectory(prefix="mobile-o-target-") as work:
        vendor.finish(Path(work), graphs, entry.options)
        shipped, again = Members(folder, BundleError), Members(Path(work), BundleError)
        for name in vendor.finishing(entry.options):
            place = f"{target}/{name}"
            if not shipped.has(place) or shipped.read(place) != again.read(name):
                yield Damage(place, "is not what the manifest and this version make")
