"""Gates: the least that an output must reach, as data."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from pydantic import Field

from mobile_o_export.precision import Activations, Precision
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


class ChainGate(Strict):
    """What each stage of a whole chain must reach, errors of the stages before it included.

    Attributes:
        image_features_db, hidden_states_db, conditioning_db, logits_db: the least signal-to-noise ratios.
        latent_db: the least after every step.
        psnr_db, ssim: the least of the image.
        tie: how near two tokens' logits must be for either to be taken, as a part of their largest's
            distance from the mean; 0 asks for the very same tokens.
    """

    image_features_db: float
    hidden_states_db: float
    conditioning_db: float
    logits_db: float
    latent_db: float
    psnr_db: float
    ssim: float
    tie: float = Field(ge=0.0, lt=1.0)


class PrecisionGates(Strict):
    """The gates of one precision: of a function alone, and of the stages of a chain."""

    function: Gate
    chain: ChainGate


class Gates(Strict):
    """Gates for each precision."""

    fp32: PrecisionGates
    w16: PrecisionGates
    fp16: PrecisionGates
    w8: PrecisionGates
    w6: PrecisionGates
    w4: PrecisionGates
    a8: PrecisionGates
    a16: PrecisionGates

    def of(self, precisions: Iterable[Precision]) -> Gate:
        """What one function's outputs must reach: as much as the coarsest of its ``precisions`` can."""
        return min(
            (self._gates(precision).function for precision in precisions), key=lambda gate: gate.snr_db
        )

    def of_chain(self, precisions: Iterable[Precision]) -> ChainGate:
        """What a chain over components of these ``precisions`` must reach: as much as the coarsest can."""
        gates = [self._gates(precision).chain for precision in precisions]
        return min(gates, key=lambda gate: gate.latent_db)

    def _gates(self, precision: Precision) -> PrecisionGates:
        gates: PrecisionGates = getattr(self, _class(precision))
        return gates


def _class(precision: Precision) -> str:
    """The name of the gates of ``precision``: fewer than 4 bits are judged like 4."""
    if precision.floating:
        return str(precision)
    bits = precision.weight_bits
    if bits == 8 and precision.activations in (Activations.INT8, Activations.DYNAMIC):
        return "a8"
    if precision.activations is Activations.INT16:
        return "a16"
    return "w8" if bits == 8 else "w6" if bits == 6 else "w4"


def shipped_gates() -> Gates:
    """The gates of ``parity/gates.toml``."""
    return read_toml(Path(__file__).with_name("gates.toml"), Gates)
