"""``verify``: does a bundle still compute the model?"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from mobile_o_export.cli.console import ProgressPrinter
from mobile_o_export.cli.plan import Components
from mobile_o_export.cli.rows import summary


def verify(
    bundle: Annotated[Path, typer.Argument(help="The bundle's folder.", metavar="BUNDLE")],
    target: Annotated[
        list[str] | None, typer.Option("--target", help="Only this target; may be repeated.", metavar="T")
    ] = None,
    component: Components = None,
    json_output: Annotated[bool, typer.Option("--json", help="Print the report as JSON, schema 1.")] = False,
    junit: Annotated[
        Path | None, typer.Option("--junit", help="Also write the report as JUnit XML.", metavar="FILE")
    ] = None,
) -> None:
    """Check every file's hash, run every function and compare it with its golden.

    Exit code 0 when everything passed, 1 when a gate failed, 3 when nothing failed but something could not
    be run here.
    """
    from mobile_o_export.bundle.verify import verify_bundle
    from mobile_o_export.errors import GateError, MissingToolError, UsageError
    from mobile_o_export.parity.judge import Status, verdict
    from mobile_o_export.parity.report import junit_xml, report_json

    if junit is not None and not junit.parent.is_dir():
        raise UsageError(f"{junit}: its folder does not exist. Make it first.")
    printer = ProgressPrinter()
    try:
        rows = verify_bundle(bundle, target or (), component or (), printer)
    finally:
        printer.close()
    if junit is not None:
        junit.write_text(junit_xml(rows))
    if json_output:
        print(json.dumps(report_json(rows), indent=1))
    else:
        print(summary(rows))
        print(f"\n{verdict(rows)}: {len(rows)} outputs compared")
    if verdict(rows) is not Status.PASSED:
        failed = [row for row in rows if row.status is Status.FAILED]
        if failed or not rows:
            raise GateError(
                f"{len(failed)} of {len(rows)} outputs failed." if rows else "nothing was compared."
            )
        raise MissingToolError(
            "some targets could not be run on this machine; 'mobile-o-export doctor' says why."
        )
