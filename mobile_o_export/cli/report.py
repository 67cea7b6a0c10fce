"""``report``: everything that is known of a bundle, on one page for people."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mobile_o_export.atomic import staged_file
from mobile_o_export.cli import screen
from mobile_o_export.cli.console import ProgressPrinter
from mobile_o_export.cli.paths import expanded, require_output_file, require_replaceable


def report(
    bundle: Annotated[Path, typer.Argument(help="The bundle's folder.", metavar="BUNDLE", callback=expanded)],
    out: Annotated[
        Path, typer.Option("--out", help="The page's file, .html.", metavar="FILE", callback=expanded)
    ],
    evaluation: Annotated[
        Path | None,
        typer.Option(
            "--evaluation",
            help="Show the task scores in this folder, which 'evaluate --out' wrote.",
            metavar="FOLDER",
            callback=expanded,
        ),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file if it is there.")] = False,
) -> None:
    """Write what is known of a bundle as one HTML page.

    Verdicts, parity of every output, sizes, drift, pictures and answers side by side, task scores, the I/O
    contract and where all of it came from. The page needs nothing else and fetches nothing. It shows what
    export found; the files are hashed first, so that it is these that it speaks of.
    """
    with ProgressPrinter() as progress:
        progress("report", "", "hashing the bundle's files")
        from mobile_o_export.bundle.manifest import DamagedBundleError, damage, read_manifest
        from mobile_o_export.report.content import gather
        from mobile_o_export.report.page import page

        require_output_file("--out", out, bundle)
        require_replaceable("--out", out, overwrite)
        if problems := damage(bundle, read_manifest(bundle)):
            raise DamagedBundleError(bundle, problems)
        progress("report", "", "writing the page")
        text = page(gather(bundle, evaluation))
        with staged_file(out, lambda phrase: progress.done("disk", "", phrase)) as partial:
            partial.write_text(text, encoding="utf-8")
    screen.result(out)
