"""What checks of a bundle find that are not comparisons with a golden, and the rows that say so."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from mobile_o_export import __version__
from mobile_o_export.bundle.manifest import Damage, Manifest
from mobile_o_export.parity.judge import NO_RUNTIME, Row, Status

OURS = "mobile-o-export"

BUNDLE = "bundle"
"""What rows about the bundle as a whole have for a target."""


@dataclass(frozen=True)
class Finding:
    """One thing that was checked.

    Attributes:
        target: of the bundle, or ``bundle``.
        component: of the target, or the part of the bundle.
        checked: what it is about: a file, or several in a few words.
        rule: what has to hold.
        problems: where it does not.
        undecided: why it cannot be decided here.
    """

    target: str
    component: str
    checked: str
    rule: str
    problems: tuple[Damage, ...] = ()
    undecided: str = ""

    def rows(self) -> list[Row]:
        """A failed row a problem; else one row, passed or not run."""
        if self.problems:
            return [self._row(found.file, Status.FAILED, found.reason) for found in self.problems]
        status = Status.NOT_RUN if self.undecided else Status.PASSED
        return [self._row(self.checked, status, self.undecided)]

    def _row(self, output: str, status: Status, reason: str) -> Row:
        return Row(
            target=self.target,
            component=self.component,
            function="",
            case="",
            output=output,
            runtime=NO_RUNTIME,
            status=status,
            gate=self.rule,
            reason=reason,
        )


def made_here(manifest: Manifest) -> bool:
    """Whether this version of the package made the bundle, by its own account."""
    return manifest.made_with.get(OURS) == __version__


def by_rule(
    manifest: Manifest, target: str, component: str, checked: str, rule: str, problems: Iterable[Damage]
) -> Finding:
    """A finding about what this package writes: another version may rightly write it otherwise."""
    found = tuple(problems)
    if found and not made_here(manifest):
        maker = manifest.made_with.get(OURS)
        reason = (
            f"{found[0].file} {found[0].reason}; mobile-o-export {maker or '(unknown)'} made it, and this is "
            f"{__version__}: install that version to check it"
        )
        return Finding(target, component, checked, rule, undecided=reason)
    return Finding(target, component, checked, rule, found)
