"""A padded graph computes what the function computes: in each bucket, whatever lies in the padding."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from torch_executor import torch_session

from mobile_o_export.checkpoint import Checkpoint
from mobile_o_export.checkpoint.initialise import init_checkpoint
from mobile_o_export.components import COMPONENT_NAMES, CacheStyle, GraphOptions, component
from mobile_o_export.components.base import FunctionSpec
from mobile_o_export.parity.metrics import Array, measure
from mobile_o_export.reference import TorchRunner
from mobile_o_export.tensors import DType, Role

ROUNDING_DB = 110.0
"""
Two fp32 evaluations that differ in the order of their sums: each rounds to 2^-24, -144 dB, and the longest
chain here is some hundred operations deep. A wrong mask, position or normaliser lands below 60 dB.
"""

REWRITES_DB = 70.0
"""
What the gates call fp32's own rounding. The rewritten linear attention has an eps of 2^-14 instead of 1e-15,
which is all that it differs by: 76 dB on the random DiT, the worst of these.
"""

BUCKETS = (8, 24)
LENGTHS = (1, 7, 8, 9, 23, 24)
"""One position, one short of a bucket, a whole bucket, one into the next."""

CONTEXT = 40

FIXED = GraphOptions(BUCKETS, BUCKETS[-1], CONTEXT, CacheStyle.FIXED, DType.INT32)
STATE = replace(FIXED, cache=CacheStyle.STATE)
GROWING = GraphOptions((), BUCKETS[-1], CONTEXT, CacheStyle.GROWING, DType.INT64)

HEAD_WIDTHS = (192, 100, 1000)
"""Pieces that divide the 576 words of both checkpoints, that do not, and one that holds them all."""

SEQUENCE_FUNCTIONS = {"embed": "llm", "prefill": "llm", "project": "mcp", "denoise": "dit"}


@pytest.fixture(scope="module", params=["reference", "random"])
def checkpoint(
    request: pytest.FixtureRequest, reference_checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory
) -> Checkpoint:
    """The reference's own fixture, and random weights: in the fixture the vision path is nearly dead."""
    if request.param == "reference":
        return reference_checkpoint
    folder: Path = tmp_path_factory.mktemp("random") / "checkpoint"
    init_checkpoint(folder, "tiny", 7)
    return Checkpoint.open(folder)


@pytest.fixture(scope="module")
def runners(checkpoint: Checkpoint) -> dict[str, TorchRunner]:
    return {name: TorchRunner.of(checkpoint, name) for name in COMPONENT_NAMES}


@pytest.fixture
def random() -> np.random.Generator:
    return np.random.default_rng(20)


def contract(checkpoint: Checkpoint, function: str) -> FunctionSpec:
    name = SEQUENCE_FUNCTIONS.get(function, "llm")
    return next(spec for spec in component(name).functions(checkpoint) if spec.name == function)


def sampled(function: FunctionSpec, length: int, random: np.random.Generator) -> dict[str, Array]:
    """Well-formed inputs of ``length`` positions: ids in the vocabulary, a late timestep, noise elsewhere."""
    inputs: dict[str, Array] = {}
    for spec in function.inputs:
        shape = [dim for dim in spec.bind({"S": length}).shape if isinstance(dim, int)]
        if spec.role is Role.TOKENS:
            assert spec.range is not None
            inputs[spec.name] = random.integers(0, int(spec.range[1]) + 1, shape, dtype=np.int32)
        elif spec.role is Role.TIMESTEP:
            inputs[spec.name] = np.array([937.5], np.float32)
        else:
            inputs[spec.name] = random.standard_normal(shape, np.float32)
    return inputs


def assert_same(actual: dict[str, Array], expected: dict[str, Array], least_db: float = ROUNDING_DB) -> None:
    assert actual.keys() == expected.keys()
    for name in expected:
        assert actual[name].shape == expected[name].shape
        assert actual[name].dtype == expected[name].dtype
        assert measure(expected[name], actual[name]).snr_db >= least_db, name


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("function", SEQUENCE_FUNCTIONS)
def test_padded_is_unpadded_at_every_bucket(
    function: str,
    length: int,
    checkpoint: Checkpoint,
    runners: dict[str, TorchRunner],
    random: np.random.Generator,
) -> None:
    name = SEQUENCE_FUNCTIONS[function]
    inputs = sampled(contract(checkpoint, function), length, random)
    expected = runners[name].run(function, inputs)
    session, _ = torch_session(component(name), checkpoint, FIXED)
    graphs = session.graphs_for(function, length)
    assert [graph.name for graph in graphs][-1] == f"{function}_{BUCKETS[-1]}"
    for graph in graphs:
        assert_same(session.run(function, inputs, graph.name), expected)
        assert graph.name in session.graphs_run


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("function", SEQUENCE_FUNCTIONS)
def test_what_lies_in_the_padding_changes_no_bit(
    function: str, length: int, checkpoint: Checkpoint, random: np.random.Generator
) -> None:
    name = SEQUENCE_FUNCTIONS[function]
    inputs = sampled(contract(checkpoint, function), length, random)
    clean, _ = torch_session(component(name), checkpoint, FIXED)
    spoiled, executor = torch_session(component(name), checkpoint, FIXED, garbage=random)
    executor.real = length
    for graph in clean.graphs_for(function, length):
        expected = clean.run(function, inputs, graph.name)
        assert_same(spoiled.run(function, inputs, graph.name), expected)


def test_a_mask_that_hides_nothing_is_seen_to_matter(
    checkpoint: Checkpoint, random: np.random.Generator
) -> None:
    """The tests above can fail: the same padding with its mask at 1 gives another result."""
    for function in ("project", "denoise"):
        name = SEQUENCE_FUNCTIONS[function]
        inputs = sampled(contract(checkpoint, function), 7, random)
        (output,) = contract(checkpoint, function).outputs
        session, executor = torch_session(component(name), checkpoint, FIXED)
        right = session.run(function, inputs)[output.name]
        graph = session.graphs_for(function, 7)[0]
        whole = sampled(contract(checkpoint, function), BUCKETS[0], random)
        for key, value in inputs.items():
            whole[key][tuple(slice(0, size) for size in value.shape)] = value
        mask = np.ones((1, BUCKETS[0]), np.float32)
        feed = dict(zip((spec.name for spec in graph.inputs), (*whole.values(), mask), strict=True))
        wrong = executor.run(graph.name, feed)[output.name]
        cut = wrong[:, :7] if function == "project" else wrong
        assert measure(right, cut).snr_db < 60.0


@pytest.mark.parametrize("options", [FIXED, STATE, GROWING], ids=lambda options: options.cache)
@pytest.mark.parametrize("prompt", [1, 7, 8, 9, 24])
def test_decode_after_prefill_is_one_longer_prefill(
    prompt: int,
    options: GraphOptions,
    checkpoint: Checkpoint,
    runners: dict[str, TorchRunner],
    random: np.random.Generator,
) -> None:
    steps = 5
    embeds = sampled(contract(checkpoint, "prefill"), prompt + steps, random)["inputs_embeds"]
    whole = runners["llm"].run("prefill", {"inputs_embeds": embeds})
    for garbage in (None, random) if options.lengths else (None,):
        session, _ = torch_session(component("llm"), checkpoint, options, garbage)
        starts = [graph.name for graph in session.graphs_for("prefill", prompt)]
        for start in starts:
            outputs = session.run("prefill", {"inputs_embeds": embeds[:, :prompt]}, start)
            hidden = [outputs["hidden_states"]]
            for index in range(prompt, prompt + steps):
                outputs = session.run("decode", {"inputs_embeds": embeds[:, index : index + 1]})
                hidden.append(outputs["hidden_states"])
            found = {"logits": outputs["logits"], "hidden_states": np.concatenate(hidden, axis=2)}
            assert_same(found, whole)


@pytest.mark.parametrize("options", [FIXED, STATE, GROWING], ids=lambda options: options.cache)
def test_a_second_prompt_sees_nothing_of_the_first(
    options: GraphOptions, checkpoint: Checkpoint, random: np.random.Generator
) -> None:
    first, second = (
        sampled(contract(checkpoint, "prefill"), length, random)["inputs_embeds"] for length in (20, 4)
    )
    fresh, _ = torch_session(component("llm"), checkpoint, options)
    used, _ = torch_session(component("llm"), checkpoint, options)
    used.run("prefill", {"inputs_embeds": first})
    used.run("decode", {"inputs_embeds": first[:, :1]})
    for session in (fresh, used):
        session.run("prefill", {"inputs_embeds": second[:, :3]})
    expected, found = (session.run("decode", {"inputs_embeds": second[:, 3:]}) for session in (fresh, used))
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value)


def test_decode_runs_up_to_the_last_position_of_the_cache(
    checkpoint: Checkpoint, runners: dict[str, TorchRunner], random: np.random.Generator
) -> None:
    embeds = sampled(contract(checkpoint, "prefill"), CONTEXT, random)["inputs_embeds"]
    whole = runners["llm"].run("prefill", {"inputs_embeds": embeds})
    session, _ = torch_session(component("llm"), checkpoint, FIXED, garbage=random)
    session.run("prefill", {"inputs_embeds": embeds[:, : BUCKETS[-1]]})
    for index in range(BUCKETS[-1], CONTEXT):
        outputs = session.run("decode", {"inputs_embeds": embeds[:, index : index + 1]})
    assert_same({"logits": outputs["logits"]}, {"logits": whole["logits"]})


@pytest.mark.parametrize("name", COMPONENT_NAMES)
def test_rewrites_for_half_precision_change_nothing_in_fp32(
    name: str, checkpoint: Checkpoint, runners: dict[str, TorchRunner], random: np.random.Generator
) -> None:
    plain, rewritten = (
        torch_session(component(name), checkpoint, replace(FIXED, half_safe=half))[0]
        for half in (False, True)
    )
    for function in component(name).functions(checkpoint):
        inputs = sampled(function, 1 if function.name == "decode" else 8, random)
        expected = runners[name].run(function.name, inputs)
        assert_same(plain.run(function.name, inputs), expected)
        assert_same(rewritten.run(function.name, inputs), expected, REWRITES_DB)


@pytest.mark.parametrize("width", HEAD_WIDTHS)
def test_a_head_in_pieces_gives_the_same_logits(
    width: int, checkpoint: Checkpoint, runners: dict[str, TorchRunner], random: np.random.Generator
) -> None:
    inputs = sampled(contract(checkpoint, "prefill"), 9, random)
    expected = runners["llm"].run("prefill", inputs)
    session, _ = torch_session(component("llm"), checkpoint, replace(FIXED, head_chunk=width))
    assert_same(session.run("prefill", inputs), expected)
