"""How an export is spread over machines: options of ``export``."""

from __future__ import annotations

import re
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mobile_o_export.errors import UsageError

if TYPE_CHECKING:
    from mobile_o_export.exporting.shares import Share

MOST_SHARES = 1000

Jobs = Annotated[
    int,
    typer.Option(
        "--jobs", help="Do so much at once on this machine, each in a process of its own.", min=1, metavar="N"
    ),
]


class Executor(StrEnum):
    """Where components are made."""

    LOCAL = "local"
    RAY = "ray"


def parsed_share(text: str) -> Share:
    """``2/5``, the second of five.

    Raises:
        UsageError: it is no such thing.
    """
    from mobile_o_export.exporting.shares import Share

    found = re.fullmatch(r"([0-9]{1,4})/([0-9]{1,4})", text)
    index, count = (int(found[1]), int(found[2])) if found else (0, 0)
    if not 1 <= index <= count <= MOST_SHARES:
        raise UsageError(f"--shard {text} is no share. Write 1/3 for the first of three.")
    return Share(index, count)


def require_one_executor(executor: Executor, jobs: int) -> None:
    """Raises UsageError where ``--jobs`` is for another machine."""
    if executor is Executor.RAY and jobs > 1:
        raise UsageError(
            "--jobs is of this machine; with --executor ray, the cluster says how many run at once."
        )


def require_consistent(out: Path | None, share: Share | None, executor: Executor, jobs: int) -> None:
    """Raises UsageError where options contradict each other, or ``--out`` is missing."""
    if share is None and out is None:
        raise UsageError("Missing option '--out'. Give the folder of the bundle.")
    if share is not None and out is not None:
        raise UsageError("a share makes no bundle: leave out --out; the export after all shares makes it.")
    if executor is Executor.RAY and share is not None:
        raise UsageError("--shard and --executor ray are two ways to one end; give one of them.")
    require_one_executor(executor, jobs)
