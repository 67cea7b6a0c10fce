"""A head tied to the table of embeddings: the same numbers twice, looked up here and multiplied there."""

from __future__ import annotations

from pathlib import Path

import pytest
from recipes import short_sequence
from shared_exports import SharedExports

from mobile_o_export.backends.base import LowerRequest
from mobile_o_export.backends.registry import backend
from mobile_o_export.calibration import Calibration
from mobile_o_export.checkpoint import Checkpoint
from mobile_o_export.components.registry import component
from mobile_o_export.compression.recipe import Recipe
from mobile_o_export.golden import Golden
from mobile_o_export.parity.metrics import snr_db
from mobile_o_export.precision import Precision
from mobile_o_export.reference import TorchRunner
from mobile_o_export.session import Session
from mobile_o_export.targets import load_target

HEAD, TABLE = "qwen.lm_head.weight", "qwen.model.embed_tokens.weight"


@pytest.mark.parametrize(
    ("target_name", "precision", "least"),
    [
        ("coreml-ane", "w6_lut_g16", 18),
        ("coreml-gpu", "w8", 30),
        ("coreml-gpu", "w8a8", 22),
        ("litert-cpu", "w8_dyn", 22),
        ("litert-npu", "w8a16", 30),
        ("onnx-cpu", "w8_b32", 30),
        ("tensorrt-orin-int8", "w8a8", 22),
    ],
)
def test_a_tied_head_is_compressed_and_computes_the_model(
    tied_checkpoint: Checkpoint,
    reference_golden: Golden,
    shared: SharedExports,
    tmp_path: Path,
    target_name: str,
    precision: str,
    least: float,
) -> None:
    target, part = load_target(target_name), component("llm")
    vendor = backend(target.backend)
    request = LowerRequest(
        target.name,
        part,
        Recipe(floating=target.floating, default=Precision.parse(precision)),
        short_sequence(target),
        target.options,
        # Prompts as good as any: the golden's own, of the checkpoint before it was tied.
        Calibration(tied_checkpoint, [reference_golden]).of("llm", lambda _: None),
    )
    artifact = shared.lower(vendor, request, tied_checkpoint, tmp_path)
    rows = {row.name: row for row in artifact.weights}
    assert TABLE in rows
    assert any(name.startswith(HEAD.removesuffix(".weight")) for name in rows)
    if precision == "w8a8":
        assert rows[HEAD].input_scale is not None
        assert rows[TABLE].input_scale is None

    cases = reference_golden.cases("llm")
    (looked_up,) = (case for case in cases if case.name == "cat-embed-0")
    (multiplied,) = (case for case in cases if case.name == "cat-prompt")
    steps = [*looked_up.steps, *multiplied.steps[:2]]
    assert {"inputs_embeds", "logits"} <= {name for step in steps for name in step.outputs}
    reference, specs = TorchRunner.of(tied_checkpoint, "llm"), [graph.spec for graph in artifact.graphs]
    with vendor.open(artifact, tmp_path, "llm") as executor:
        session = Session(part.functions(tied_checkpoint), specs, executor)
        for step in steps:
            given = reference_golden.inputs(step)
            wanted, found = reference.run(step.function, given), session.run(step.function, given)
            for name in step.outputs:
                assert snr_db(wanted[name], found[name]) > least, (step.function, name)
