"""The parity report: every row, and what they add up to."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any
from xml.etree import ElementTree

from mobile_o_export.legible import legible_lines
from mobile_o_export.parity.judge import Row, Status, verdict

SCHEMA = 1

_UNWRITABLE = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""What XML 1.0 has no way to write; vendors' messages and file names may hold it."""


def report_json(rows: Sequence[Row]) -> dict[str, Any]:
    """The report as ``verify --json`` prints it and a bundle carries it."""
    return {
        "schema": SCHEMA,
        "status": str(verdict(rows)),
        "drift": drift(rows),
        "rows": [row.model_dump(mode="json") for row in rows],
    }


def drift(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """How near each chain's latent is to the golden's after every step, dB; None where it has no value."""
    latents = [row for row in rows if row.step is not None]
    return [
        {
            "target": target,
            "task": task,
            "case": case,
            "snr_db": [
                row.snr_db for row in latents if (row.target, row.function, row.case) == (target, task, case)
            ],
        }
        for target, task, case in dict.fromkeys((row.target, row.function, row.case) for row in latents)
    ]


def junit_xml(rows: Sequence[Row]) -> str:
    """The report as JUnit XML: a suite a target, a test case a row."""
    root = ElementTree.Element("testsuites", name="mobile-o-export verify")
    if not rows:
        suite = ElementTree.SubElement(root, "testsuite", name="verify", tests="1", failures="1", skipped="0")
        case = ElementTree.SubElement(suite, "testcase", classname="verify", name="rows")
        ElementTree.SubElement(case, "failure", message="nothing was compared")
    for target in dict.fromkeys(row.target for row in rows):
        own = [row for row in rows if row.target == target]
        suite = ElementTree.SubElement(
            root,
            "testsuite",
            name=target,
            tests=str(len(own)),
            failures=str(sum(row.status is Status.FAILED for row in own)),
            skipped=str(sum(row.status is Status.NOT_RUN for row in own)),
        )
        for row in own:
            name = " ".join(part for part in (row.function, row.case, row.output) if part)
            case = ElementTree.SubElement(
                suite, "testcase", classname=f"{target}.{row.component}", name=name or "open"
            )
            if row.status is Status.FAILED:
                ElementTree.SubElement(case, "failure", message=row.reason)
            elif row.status is Status.NOT_RUN:
                ElementTree.SubElement(case, "skipped", message=row.reason)
    for element in root.iter():
        for key, value in element.attrib.items():
            element.set(key, _UNWRITABLE.sub("?", legible_lines(value)))
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode", xml_declaration=True) + "\n"
