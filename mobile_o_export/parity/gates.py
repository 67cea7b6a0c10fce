"""Gates: the least that an output must reach, as data."""

from __future__ import annotations

from pathlib import Path

from mobile_o_export.precision import Precision
from mobile_o_export.strict import Strict, read_toml


class Gate(Strict):
    """What one output of a given precision must reach.

    Attributes:
        snr_db: the least signal-to-noise ratio.
        tokens_identical: for logits, whether the most likely token must be the golden's.
        reason: why the gate is looser than the precision's own, where it is.
    """

    snr_db: float
    tokens_identical: bool = True
    reason: str = ""

    def describe(self, decides_token: bool) -> str:
        """The gate in one short phrase."""
        token = " and the same token" if decides_token and self.tokens_identical else ""
        return f"≥ {self.snr_db:g} dB{token}"


class Gates(Strict):
    """A gate for each precision."""

    fp32: Gate
    w16: Gate
    fp16: Gate

    def of(self, precision: Precision) -> Gate:
        """The gate of ``precision``."""
        gate: Gate = getattr(self, precision.value)
        return gate


def shipped_gates() -> Gates:
    """The gates of ``parity/gates.toml``."""
    return read_toml(Path(__file__).with_name("gates.toml"), Gates)
