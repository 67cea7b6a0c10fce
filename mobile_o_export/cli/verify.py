"""``verify``: does a bundle still compute the model?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mobile_o_export.atomic import staged_file
from mobile_o_export.cli import screen
from mobile_o_export.cli.console import ProgressPrinter
from mobile_o_export.cli.model import TargetNames
from mobile_o_export.cli.paths import expanded, require_output_file
from mobile_o_export.cli.plan import Components
from mobile_o_export.cli.rows import summary


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
    json_output: Annotated[bool, typer.Option("--json", help="Print the report as JSON, schema 1.")] = False,
    junit: Annotated[
        Path | None,
        typer.Option(
            "--junit", help="Also write the report as JUnit XML.", metavar="FILE", callback=expanded
        ),
    ] = None,
) -> None:
    """Check a bundle: its hashes, then every output.

    Hash every file, run every function and compare it with its golden; with --pipeline run whole chains too,
    and show how the errors of the stages add up.

    Exit code 0 when everything passed, 1 when a gate failed, 3 when nothing failed but something could not
    be run here. A damaged bundle is a failed gate: its report has a row a damaged file, and nothing is run.
    """
    with ProgressPrinter() as progress:
        progress("bundle", "", "hashing its files")
        from mobile_o_export.bundle.manifest import DamagedBundleError
        from mobile_o_export.bundle.verify import damage_rows, verify_bundle
        from mobile_o_export.errors import GateError, MissingToolError, UsageError
        from mobile_o_export.parity.judge import Status, verdict
        from mobile_o_export.parity.report import junit_xml, report_json

        if pipeline and component:
            raise UsageError("--pipeline runs all components in turn; leave --component out.")
        if junit is not None:
            require_output_file("--junit", junit, bundle)
        damaged = None
        try:
            rows = verify_bundle(bundle, target or (), component or (), progress, chains=pipeline)
        except DamagedBundleError as error:
            damaged, rows = error, damage_rows(error)
    if junit is not None:
        with staged_file(junit, screen.message) as partial:
            partial.write_text(junit_xml(rows), encoding="utf-8")
    if json_output:
        screen.result_json(report_json(rows))
    elif damaged is None:
        screen.result(summary(rows))
        screen.result(f"\n{verdict(rows)}: {len(rows)} outputs compared")
    if damaged is not None:
        raise damaged
    if verdict(rows) is not Status.PASSED:
        failed = [row for row in rows if row.status is Status.FAILED]
        if failed or not rows:
            raise GateError(
                f"{bundle}: {len(failed)} of {len(rows)} outputs failed. Do not ship it."
                if rows
                else f"{bundle}: nothing was compared."
            )
        raise MissingToolError(
            "some targets could not be run on this machine; 'mobile-o-export doctor' says why."
        )
