"""Quantities as users write them."""

from __future__ import annotations

import math
import re

from mobile_o_export.errors import UsageError

UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


def size_bytes(option: str, text: str) -> int:
    """``900MB`` → 900 000 000; ``option`` is where the user wrote it.

    Raises:
        UsageError: it is no size.
    """
    found = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([KMG]?I?B?)\s*", text.upper())
    unit = "" if found is None else found[2] if found[2] in UNITS else f"{found[2]}B"
    size = float(found[1]) * UNITS[unit] if found and unit in UNITS else 0.0
    if not 1 <= size < math.inf:
        raise UsageError(f"{option} {text!r} is no size. Write 900MB, 1.1GB or a number of bytes.")
    return round(size)
