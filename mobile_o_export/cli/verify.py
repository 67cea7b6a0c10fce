"""``verify``: does a bundle still compute the model?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mobile_o_export.atomic import staged_file
from mobile_o_export.cli import screen
from mobile_o_export.cli.console import ProgressPrinter
from mobile_o_export.cli.inspect import MergedLora
from mobile_o_export.cli.model import TargetNames
from mobile_o_export.cli.paths import expanded, require_output_file
from mobile_o_export.cli.plan import Components
from mobile_o_export.cli.rows import is_check, summary

if TYPE_CHECKING:
    from mobile_o_export.bundle.source import Source


def verify(
    bundle: Annotated[Path, typer.Argument(help="The bundle's folder.", metavar="BUNDLE", callback=expanded)],
    target: TargetNames = None,
    component: Components = None,
    pipeline: Annotated[
        bool,
        typer.Option(
            "--pipeline", help="Also run whole chains: prompt to picture, picture and question to answer."
        ),
    ] = False,
    expect: Annotated[
        str,
        typer.Option("--expect", help="Fail unless the bundle has this identity (sha256:…).", metavar="ID"),
    ] = "",
    checkpoint: Annotated[
        Path | None,
        typer.Option(
            "--checkpoint",
            help="Also derive everything again from this checkpoint: configuration, golden, every weight.",
            metavar="CKPT",
            callback=expanded,
        ),
    ] = None,
    lora: MergedLora = None,
    calibration: Annotated[
        list[Path] | None,
        typer.Option(
            "--calibration",
            help="With --checkpoint: further goldens that the export was calibrated on.",
            metavar="DIR",
        ),
    ] = None,
    json_output: Annotated[bool, typer.Option("--json", help="Print the report as JSON, schema 1.")] = False,
    junit: Annotated[
        Path | None,
        typer.Option(
            "--junit", help="Also write the report as JUnit XML.", metavar="FILE", callback=expanded
        ),
    ] = None,
) -> None:
    """Check a bundle: its files, then every output.

    Hash every file and hold it to what it follows from: rules, records, the golden. Then run every function,
    compare it with its golden and its level with the one that export recorded. With --pipeline run whole
    chains too, and show how the errors of the stages add up.

    A bundle whose every record was rewritten agrees with itself: --expect holds it to an identity that you
    know, --checkpoint to its source, from which everything is derived again.

    Exit code 0 when everything passed, 1 when a gate failed, 3 when nothing failed but something could not
    be run here. A damaged bundle is a failed gate: its report has a row a damaged file, and nothing is run.
    """
    with ProgressPrinter() as progress:
        progress("bundle", "", "hashing its files")
        from mobile_o_export.bundle.manifest import ID_PREFIX, DamagedBundleError, manifest_digest
        from mobile_o_export.bundle.verify import Wish, damage_rows, verify_bundle
        from mobile_o_export.errors import GateError, MissingToolError, UsageError
        from mobile_o_export.parity.judge import Status, verdict
        from mobile_o_export.parity.levels import incomparable
        from mobile_o_export.parity.report import junit_xml, report_json

        if checkpoint is None and (lora is not None or calibration):
            raise UsageError("--lora and --calibration go with --checkpoint; give the checkpoint too.")
        if pipeline and component:
            raise UsageError("--pipeline runs all components in turn; leave --component out.")
        if junit is not None:
            require_output_file("--junit", junit, bundle)
        damaged = None
        try:
            source = None if checkpoint is None else _source(checkpoint, lora, calibration or [])
            wish = Wish(target or (), component or (), pipeline, expect, source)
            rows = verify_bundle(bundle, wish, progress)
        except DamagedBundleError as error:
            damaged, rows = error, damage_rows(error)
    if junit is not None:
        with staged_file(junit, screen.message) as partial:
            partial.write_text(junit_xml(rows), encoding="utf-8")
    if json_output:
        screen.result_json(report_json(rows))
    elif damaged is None:
        screen.result(summary(rows))
        checks = sum(is_check(row) for row in rows)
        outputs = len(rows) - checks
        screen.result(f"\n{verdict(rows)}: {outputs} outputs compared, {checks} checks of files and records")
        if others := incomparable(rows):
            screen.result(f"judged by gates alone, since export had another runtime: {', '.join(others)}")
        screen.result(f"bundle: {ID_PREFIX}{manifest_digest(bundle)}")
    if damaged is not None:
        raise damaged
    if verdict(rows) is not Status.PASSED:
        failed = [row for row in rows if row.status is Status.FAILED]
        if failed:
            raise GateError(f"{bundle}: {len(failed)} of {len(rows)} rows failed. Do not ship it.")
        raise MissingToolError(
            "some targets could not be run on this machine; 'mobile-o-export doctor' says why."
        )


def _source(checkpoint: Path, lora: Path | None, calibration: list[Path]) -> Source:
    """What a bundle is to be compared with."""
    from mobile_o_export.bundle.source import Source
    from mobile_o_export.checkpoint import Checkpoint
    from mobile_o_export.golden import Golden

    return Source(Checkpoint.open(checkpoint, lora), [Golden.open(path) for path in calibration])
