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
        """The verdict on an answer: the same tokens, up to a position where two were as good as each other.

        What follows a tie is another text, and is not compared.

        Args:
            task: what the chain does.
            case: its name.
            golden: the tokens of PyTorch.
            candidates: int32 [tokens, n], PyTorch's most likely tokens at each position.
            candidate_logits: float32 [tokens, n], theirs.
            spread: float32 [tokens], by how much the largest logit exceeds the mean of all.
            actual: the tokens of the target.
        """
        tie = self._gate.tie
        gate = "the same tokens" if tie == 0.0 else f"the same tokens, ties within {100 * tie:g} % apart"
        same = next(
            (i for i, (a, b) in enumerate(zip(golden, actual, strict=False)) if a != b),
            min(len(golden), len(actual)),
        )
        reason = ""
        if len(actual) > len(golden):
            reason = f"the answer has {len(actual)} tokens instead of {len(golden)}"
        elif same < len(golden):
            if same == len(actual):
                reason = f"the answer ends after {same} of {len(golden)} tokens"
            else:
                near = dict(zip(candidates[same].tolist(), candidate_logits[same].tolist(), strict=True))
                problem = _not_a_tie(golden[same], actual[same], near, float(spread[same]), tie)
                reason = f"token {same + 1} is {actual[same]}, not {golden[same]}{problem}" if problem else ""
        row = self.row(task, case, "tokens", Status.FAILED if reason else Status.PASSED, reason, gate)
        return row.model_copy(update={"identical_tokens": same})

    def row(self, task: str, case: str, output: str, status: Status, reason: str, gate: str = "") -> Row:
        """A row without a measurement."""
        return self._judge(0.0).row(task, case, output, status, reason, gate)

    def _judge(self, least_db: float) -> Judge:
        return Judge(self._target, CHAIN, self._runtime, Gate(snr_db=least_db, tokens_identical=False))


def _not_a_tie(wanted: int, got: int, near: Mapping[int, float], spread: float, tie: float) -> str:
    """Why ``got`` is no other choice for ``wanted``, or nothing; ``near`` are the likely tokens' logits."""
    if got not in near:
        return ", and it is not among the likely ones"
    gap = near[wanted] - near[got]
    return "" if gap <= tie * spread else f", whose logit leads by {100 * gap / spread:.2g} %"
