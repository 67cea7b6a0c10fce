"""Judges whole chains: prompt to picture, picture and question to answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from mobile_o_export.parity.gates import ChainGate, Gate
from mobile_o_export.parity.judge import Judge, Row, Status, unfit
from mobile_o_export.parity.metrics import Array, measure, psnr_db, ssim
from mobile_o_export.tensors import DType, Role, TensorSpec

CHAIN = "pipeline"
"""What the rows of chains have for a component."""

TOKENS_A_TIE = 8
"""One token in so many of an answer may be a tie, and at least one."""


class ChainJudge:
    """Judges the stages of chains on one target; every stage has seen the errors of those before it."""

    def __init__(self, target: str, runtime: str, gate: ChainGate) -> None:
        self._target = target
        self._runtime = runtime
        self._gate = gate

    def stage(
        self, task: str, case: str, name: str, golden: Array, actual: Array | None, least_db: float
    ) -> Row:
        """The verdict on a stage's float32 tensor."""
        spec = TensorSpec(name, golden.shape, DType.FLOAT32, " ".join("?" * golden.ndim), Role.FEATURES)
        return self._judge(least_db).compare(task, case, spec, golden, actual)

    def latent(self, task: str, case: str, step: int, golden: Array, actual: Array | None) -> Row:
        """The verdict on the latent after ``step``, counted from 1."""
        row = self.stage(task, case, f"latent_{step:02d}", golden, actual, self._gate.latent_db)
        return row.model_copy(update={"step": step})

    def image(self, task: str, case: str, golden: Array, actual: Array | None) -> Row:
        """The verdict on the image in 0..1."""
        gate = f"PSNR ≥ {self._gate.psnr_db:g} dB, SSIM ≥ {self._gate.ssim:g}"
        if reason := unfit(np.dtype(np.float32), golden, actual):
            return self.row(task, case, "image", Status.FAILED, reason, gate)
        assert actual is not None
        peak, similarity, metrics = psnr_db(golden, actual), ssim(golden, actual), measure(golden, actual)
        reason = ""
        if not peak >= self._gate.psnr_db:
            reason = f"PSNR of {peak:.1f} dB is below the gate"
        elif not similarity >= self._gate.ssim:
            reason = f"SSIM of {similarity:.4f} is below the gate"
        row = self.row(task, case, "image", Status.FAILED if reason else Status.PASSED, reason, gate)
        return row.model_copy(
            update={
                "psnr_db": round(peak, 2),
                "ssim": round(similarity, 6),
                "max_abs": metrics.max_abs,
                "cosine": round(metrics.cosine, 9),
            }
        )

    def tokens(
        self,
        task: str,
        case: str,
        golden: Sequence[int],
        candidates: Array,
        candidate_logits: Array,
        spread: Array,
        actual: Sequence[int],
    ) -> Row:
        """The verdict on an answer, each token chosen after the golden's own tokens before it.

        So every token is compared, also behind one that differs: where the golden's logits have two tokens
        nearer to each other than the gate's ``tie``, either may be chosen. Few of an answer may be ties.

        Args:
            task: what the chain does.
            case: its name.
            golden: the tokens of PyTorch.
            candidates: int32 [tokens, n], PyTorch's most likely tokens at each position.
            candidate_logits: float32 [tokens, n], theirs.
            spread: float32 [tokens], by how much the largest logit exceeds the mean of all.
            actual: the tokens that the target chose.
        """
        tie, most = self._gate.tie, max(1, len(golden) // TOKENS_A_TIE)
        gate = "the same tokens"
        if tie:
            gate += f", but for {most} within {100 * tie:g} %"
        reason, ties = "", []
        if len(actual) != len(golden):
            reason = f"the answer has {len(actual)} tokens instead of {len(golden)}"
        for place, (wanted, got) in enumerate(zip(golden, actual, strict=False)):
            if wanted == got or reason:
                continue
            near = dict(zip(candidates[place].tolist(), candidate_logits[place].tolist(), strict=True))
            ties.append(f"token {place + 1} is {got}, not {wanted}")
            if problem := _not_a_tie(wanted, got, near, float(spread[place]), tie):
                reason = ties[-1] + problem
        if not reason and len(ties) > most:
            reason = f"{len(ties)} of {len(golden)} tokens are others: {'; '.join(ties)}"
        row = self.row(task, case, "tokens", Status.FAILED if reason else Status.PASSED, reason, gate)
        same = sum(a == b for a, b in zip(golden, actual, strict=False))
        return row.model_copy(update={"identical_tokens": same, "tied_tokens": None if reason else len(ties)})

    def row(self, task: str, case: str, output: str, status: Status, reason: str, gate: str = "") -> Row:
        """A row without a measurement."""
        return self._judge(0.0).row(task, case, output, status, reason, gate)

    def _judge(self, least_db: float) -> Judge:
        return Judge(self._target, CHAIN, self._runtime, Gate(snr_db=least_db, tokens_identical=False))


def _not_a_tie(wanted: int, got: int, near: Mapping[int, float], spread: float, tie: float) -> str:
    """Why ``got`` is no other choice for ``wanted``, or nothing; ``near`` are the likely tokens' logits."""
    if wanted not in near:
        return ", and the golden has no logit of its own token"
    if got not in near:
        return ", and it is not among the likely ones"
    gap = near[wanted] - near[got]
    return "" if gap <= tie * spread else f", whose logit leads by {100 * gap / spread:.2g} %"
