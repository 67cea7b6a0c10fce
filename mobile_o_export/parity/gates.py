"""Gates: the least that an output must reach, as data."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

from pydantic import Field

from mobile_o_export.precision import Activations, Precision
from mobile_o_export.strict import Finite, Strict, read_toml


class Gate(Strict):
    """What one output of a given precision must reach.

    Attributes:
        snr_db: the least signal-to-noise ratio.
        tokens_identical: for logits, whether the most likely token must be the golden's.
        reason: why the gate is looser than the precision's own, where it is.
    """

    snr_db: Finite
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

    image_features_db: Finite
    hidden_states_db: Finite
    conditioning_db: Finite
    logits_db: Finite
    latent_db: Finite
    psnr_db: Finite
    ssim: Finite
    tie: float = Field(ge=0.0, lt=1.0)


LEVELS = ("image_features_db", "hidden_states_db", "conditioning_db", "logits_db", "latent_db")
"""Of ``ChainGate``, the signal-to-noise ratios."""

_SEEN = ("vision_encoder",)
_READ = (*_SEEN, "llm")
_DRAWN = (*_READ, "mcp", "dit")
_SHOWN = (*_DRAWN, "vae_decoder")
UP_TO: Mapping[str, tuple[str, ...]] = {
    "image_features_db": _SEEN,
    "hidden_states_db": _READ,
    "logits_db": _READ,
    "tie": _READ,
    "conditioning_db": (*_READ, "mcp"),
    "latent_db": _DRAWN,
    "psnr_db": _SHOWN,
    "ssim": _SHOWN,
}
"""Of each of ``ChainGate``, the components whose errors a chain has gathered there."""


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

    def effective(self, precisions: Iterable[Precision], own: Gate | None) -> Gate:
        """``own`` where a target has one, else that of ``precisions``.

        Raises:
            ValueError: ``own`` is looser than that, and does not say why.
        """
        usual = self.of(precisions)
        if own is None:
            return usual
        looser = own.snr_db < usual.snr_db or usual.tokens_identical > own.tokens_identical
        if looser and not own.reason:
            raise ValueError(
                f"a gate looser than {usual.snr_db:g} dB, that of its weights' precisions, needs a reason"
            )
        return own

    def of_chain(self, components: Mapping[str, tuple[Collection[Precision], Gate]]) -> ChainGate:
        """What a chain must reach: at each stage as much as the coarsest component up to it can.

        Args:
            components: each that the target has, its precisions and its gate. One that is looser than its
                precisions' own holds for the stages after it as well, which cannot be better.
        """
        asked = {name: self._asked(precisions, gate) for name, (precisions, gate) in components.items()}
        loosest = {}
        for field, names in UP_TO.items():
            # A target without any of them has no chain that comes this far, and still a whole gate.
            gathered = asked.keys() & names or asked.keys()
            values = [getattr(asked[name], field) for name in gathered]
            loosest[field] = max(values) if field == "tie" else min(values)
        return ChainGate(**loosest)

    def _asked(self, precisions: Collection[Precision], own: Gate) -> ChainGate:
        """What a chain that has only this component's errors must reach."""
        coarsest = min(
            map(self._gates, precisions),
            # Precisions whose functions have the same gate need not have the same in a chain.
            key=lambda gates: (gates.function.snr_db, gates.chain.hidden_states_db),
        )
        if own.snr_db >= coarsest.function.snr_db:
            return coarsest.chain
        bounded = {field: min(getattr(coarsest.chain, field), own.snr_db) for field in LEVELS}
        return coarsest.chain.model_copy(update=bounded)

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
