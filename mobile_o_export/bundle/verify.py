"""Verifies a bundle: its files against their rules and records, its outputs against goldens and levels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from mobile_o_export.bundle.chains import chains_over, verify_chains
from mobile_o_export.bundle.findings import BUNDLE, Finding, made_here
from mobile_o_export.bundle.manifest import (
    GOLDEN_FOLDER,
    PARITY_REPORT,
    Damage,
    DamagedBundleError,
    Manifest,
    damage,
    read_manifest,
    require_expected,
)
from mobile_o_export.bundle.outcomes import OUTCOMES_FOLDER, OutcomeCheck
from mobile_o_export.bundle.parts import check_chain_gate, check_component
from mobile_o_export.bundle.replay import finished, verify_component
from mobile_o_export.bundle.rules import check_bundle
from mobile_o_export.bundle.runners import chosen_components
from mobile_o_export.bundle.source import Source
from mobile_o_export.bundle.verdicts import ParityReport
from mobile_o_export.components.registry import COMPONENT_NAMES
from mobile_o_export.errors import BundleError, GoldenError, MissingToolError, UsageError
from mobile_o_export.golden import Golden
from mobile_o_export.members import Members
from mobile_o_export.parity.chain import CHAIN
from mobile_o_export.parity.judge import NO_RUNTIME, Row, Status, verdict
from mobile_o_export.parity.levels import Scope, held
from mobile_o_export.progress import Done, Progress
from mobile_o_export.snapshot import Snapshot

FILES = "files"
"""What rows about a damaged bundle have for a component; their target is ``bundle``."""


@dataclass(frozen=True)
class Wish:
    """What to verify, and against what.

    Attributes:
        targets, components: by name; all where none are named.
        chains: whether to run whole chains as well.
        expected: the identity that the bundle has to have, hex SHA-256 of its manifest; any where empty.
        source: the checkpoint that it has to follow from; the bundle's own records where there is none.
    """

    targets: Sequence[str] = ()
    components: Sequence[str] = ()
    chains: bool = False
    expected: str = ""
    source: Source | None = None


@dataclass(frozen=True)
class Opened:
    """An intact bundle, and what of it is to be verified.

    Attributes:
        chosen: targets and components.
        chained: targets whose chains are to be run.
    """

    folder: Path
    manifest: Manifest
    golden: Golden
    report: ParityReport
    chosen: tuple[tuple[str, str], ...]
    chained: tuple[str, ...]


def verify_bundle(folder: Path, wish: Wish, progress: Progress) -> list[Row]:
    """The verdict on every output of the chosen targets and components, and on all that binds the bundle.

    Raises:
        BundleError: there is no bundle in ``folder``.
        DamagedBundleError: it is not the expected one; a file is missing, changed or added; the golden or the
            record of verdicts is unusable; or a file changed while it was verified.
        UsageError: a named target or component is not in the bundle, or skipped in it; or chains are
            wanted, and the components are not all there.
    """
    before = Snapshot.of(folder)
    bundle = _opened(folder, wish)
    try:
        rows = [*_checked(bundle, progress)]
        judged = _judged(bundle, progress)
        targets, components = {target for target, _ in bundle.chosen}, {name for _, name in bundle.chosen}
        scope = Scope(targets, components, wish.chains)
        rows += held(judged, bundle.report.rows, scope, own=made_here(bundle.manifest))
        if not judged:
            nothing = Damage("outputs", "none was compared")
            rows += Finding(BUNDLE, "outputs", "outputs", "some are compared", (nothing,)).rows()
        if wish.source is not None:
            rows += _derived(bundle, wish.source, progress)
    except GoldenError as error:
        raise _unusable(folder, GOLDEN_FOLDER, error) from error
    if changes := before.changes():
        raise DamagedBundleError(
            folder,
            [
                Damage(change.path.relative_to(folder).as_posix(), f"{change.reason} while it was verified")
                for change in changes
            ],
        )
    return rows


def checks(folder: Path, wish: Wish) -> Iterator[Row]:
    """Of :func:`verify_bundle` what needs no output to be computed, one by one; raises as it does."""
    try:
        yield from _checked(_opened(folder, wish), lambda *_: None)
    except GoldenError as error:
        raise _unusable(folder, GOLDEN_FOLDER, error) from error


def _unusable(folder: Path, name: str, error: Exception) -> DamagedBundleError:
    return DamagedBundleError(folder, [Damage(name, f"is unusable ({error})")])


def _opened(folder: Path, wish: Wish) -> Opened:
    """The bundle in ``folder`` after its hashes were computed."""
    manifest = read_manifest(folder)
    require_expected(folder, wish.expected)
    chosen = chosen_components(folder, manifest, wish.targets, wish.components)
    if problems := damage(folder, manifest):
        raise DamagedBundleError(folder, problems)
    try:
        golden = Golden.open(folder / GOLDEN_FOLDER)
        golden.require_checkpoint(manifest.checkpoint.digest)
    except GoldenError as error:
        raise _unusable(folder, GOLDEN_FOLDER, error) from error
    try:
        report = Members(folder, BundleError).json(PARITY_REPORT, ParityReport)
    except BundleError as error:
        raise _unusable(folder, PARITY_REPORT, error) from error
    chained = _chained(folder, manifest, golden, wish.targets) if wish.chains else ()
    return Opened(folder, manifest, golden, report, chosen, tuple(chained))


def _judged(bundle: Opened, progress: Progress) -> list[Row]:
    """The verdicts on outputs: of every chosen component, then of whole chains."""
    folder, manifest, golden = bundle.folder, bundle.manifest, bundle.golden
    rows: list[Row] = []
    for target, component in bundle.chosen:
        found = verify_component(folder, manifest, golden, target, component, progress)
        progress(target, component, finished(found))
        rows += found
    for target in bundle.chained:
        check = OutcomeCheck(folder)
        found = verify_chains(folder, manifest, golden, target, progress, check.add)
        progress(target, CHAIN, finished(found))
        rows += found
        rule = "what the files draw and answer now"
        kept = Finding(target, OUTCOMES_FOLDER, "pictures and answers", rule, tuple(check.problems))
        rows += kept.rows()
    return rows


def _checked(bundle: Opened, progress: Progress) -> Iterator[Row]:
    """What can be said of the bundle without computing an output."""
    folder, manifest = bundle.folder, bundle.manifest
    progress(BUNDLE, "", "checking its files against their rules")
    for finding in check_bundle(folder, manifest, bundle.golden, bundle.report):
        yield from finding.rows()
    for target in dict.fromkeys(target for target, _ in bundle.chosen):
        yield from check_chain_gate(folder, manifest, target).rows()
    for target, component in bundle.chosen:
        progress(target, component, "restoring its constants")
        try:
            found = check_component(folder, manifest, target, component)
        except MissingToolError as error:
            found = [Finding(target, component, "files", "restored as exported", undecided=str(error))]
        for finding in found:
            yield from finding.rows()


def _derived(bundle: Opened, source: Source, progress: Progress) -> list[Row]:
    """What the checkpoint says of the bundle."""
    folder, manifest, golden = bundle.folder, bundle.manifest, bundle.golden
    progress("checkpoint", "", "computing its digest")
    rows = [row for finding in source.check_bundle(manifest) for row in finding.rows()]
    names = [name for name in COMPONENT_NAMES if name in {component for _, component in bundle.chosen}]
    rows += source.judge(manifest, golden, names, bool(bundle.chained), progress)
    for target, component in bundle.chosen:
        findings = source.check_component(folder, manifest, golden, target, component, progress)
        found = [row for finding in findings for row in finding.rows()]
        progress(target, component, Done(f"lowered again, {verdict(found)}"))
        rows += found
    return rows


def _chained(folder: Path, manifest: Manifest, golden: Golden, targets: Sequence[str]) -> list[str]:
    """The targets whose chains are to be run: those named, or all that have the components of a task.

    Raises:
        UsageError: a named one has not, or none has.
    """
    able = [name for name, entry in manifest.targets.items() if chains_over(golden, entry.exported)]
    chosen = list(dict.fromkeys(targets or able))
    if not chosen or not set(chosen) <= set(able):
        where = ", ".join(name for name in targets or manifest.targets if name not in able)
        raise UsageError(
            f"{folder}: no task has all its components on {where}, so there is no chain to run. Leave "
            "--pipeline out, or choose another target."
        )
    return chosen


def damage_rows(error: DamagedBundleError) -> list[Row]:
    """A failed row a damaged file, for reports."""
    return [
        Row(
            target=BUNDLE,
            component=FILES,
            function="",
            case="",
            output=found.file,
            runtime=NO_RUNTIME,
            status=Status.FAILED,
            gate="as exported",
            reason=found.reason,
        )
        for found in error.damage
    ]
