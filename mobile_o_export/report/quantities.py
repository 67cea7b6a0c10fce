"""Numbers as the page writes them; a missing or not finite one is a dash."""

from __future__ import annotations

import math

from mobile_o_export.parity.metrics import SNR_CEILING_DB

DASH = "–"
MINUS = "−"


def decibels(value: float | None) -> str:
    """A level, ``54.1 dB``; of bit-identical arrays ``identical``."""
    if value is None or not math.isfinite(value):
        return DASH
    return "identical" if value >= SNR_CEILING_DB else f"{_signed(value, 1)} dB"


def limit(value: float | None) -> str:
    """A gate, as it was set: ``40 dB``."""
    return DASH if value is None else f"{value:g} dB"


def fixed(value: float | None, digits: int) -> str:
    """A number with so many decimals."""
    return DASH if value is None or not math.isfinite(value) else _signed(value, digits)


def significant(value: float | None) -> str:
    """A number of any magnitude with three digits."""
    return DASH if value is None or not math.isfinite(value) else f"{value:.3g}".replace("-", MINUS)


def size(size_bytes: float) -> str:
    """A size in decimal units, as stores and file managers count."""
    if size_bytes >= 1e9:
        return f"{size_bytes / 1e9:.2f} GB"
    return f"{size_bytes / 1e6:.1f} MB" if size_bytes >= 1e5 else f"{size_bytes / 1e3:.1f} kB"


def percent(part: float, digits: int = 0) -> str:
    """A share of 1, ``52 %``."""
    return f"{fixed(100 * part, digits)} %"


def points(difference: float) -> str:
    """A difference of shares with its sign, in percentage points: ``+1.2``."""
    rounded = round(100 * difference, 1)
    return f"+{rounded:.1f}" if rounded > 0 else _signed(rounded, 1)


def count(value: int, noun: str) -> str:
    """``1 file``, ``62 files``."""
    return f"{value:,} {noun}{'' if value == 1 else 's'}"


def _signed(value: float, digits: int) -> str:
    rounded = round(value, digits) + 0.0
    return f"{rounded:,.{digits}f}".replace("-", MINUS)
