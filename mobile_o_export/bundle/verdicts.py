"""``parity.json``: the verdict on every output, and of which bundle it is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final, Literal, Self

from pydantic import ConfigDict, Field, model_validator

from mobile_o_export.bundle.manifest import PARITY_REPORT, Manifest
from mobile_o_export.digests import json_digest
from mobile_o_export.parity.judge import Row, Status, verdict
from mobile_o_export.parity.report import drift, report_json
from mobile_o_export.strict import Finite, Strict

SCHEMA: Final = 1


class Drift(Strict):
    """How near one chain's latent was to the golden's after every step."""

    target: str
    task: str
    case: str
    snr_db: tuple[Finite | None, ...]


class ParityReport(Strict):
    """The file; its status and drift have to follow from its rows.

    Attributes:
        judged: digest of the bundle that the rows speak of, see :func:`judged_digest`.
    """

    model_config = ConfigDict(populate_by_name=True)

    version: Literal[1] = Field(default=SCHEMA, alias="schema")
    judged: str
    status: Status
    drift: tuple[Drift, ...]
    rows: tuple[Row, ...]

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.status is not verdict(self.rows):
            raise ValueError(f"says {self.status}, and its rows {verdict(self.rows)}")
        if self.drift != tuple(Drift.model_validate(item) for item in drift(self.rows)):
            raise ValueError("its drift is not that of its rows")
        return self


def judged_digest(manifest: Manifest) -> str:
    """Hex SHA-256 of all that a bundle says and holds but the verdict on it.

    It covers every other file by the manifest's list of digests: a verdict whose ``judged`` is another was
    given on another bundle.
    """
    content = manifest.model_dump(mode="json")
    content["files"].pop(PARITY_REPORT, None)
    return json_digest(content)


def write_verdicts(folder: Path, manifest: Manifest, rows: tuple[Row, ...]) -> None:
    """Writes the verdict ``rows`` on the bundle in ``folder``, whose ``manifest`` lists all other files."""
    content = {**report_json(rows), "judged": judged_digest(manifest)}
    (folder / PARITY_REPORT).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
