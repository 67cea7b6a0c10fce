"""A status as a sign and a word, so that it can be read without colour."""

from __future__ import annotations

from mobile_o_export.parity.judge import Status
from mobile_o_export.report.markup import Html, tag

SIGNS = {Status.PASSED: "✓", Status.FAILED: "✗", Status.NOT_RUN: "○"}
WORDS = {Status.PASSED: "passed", Status.FAILED: "failed", Status.NOT_RUN: "not run"}


def sign(status: Status) -> Html:
    """The sign alone, for the eye only: a word has to stand beside it."""
    return tag("span", SIGNS[status], class_="sign", aria_hidden="true")


def badge(status: Status) -> Html:
    """Sign and word."""
    return tag("span", sign(status), " ", WORDS[status], class_=f"badge {status.value}")
