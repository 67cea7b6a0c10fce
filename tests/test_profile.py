"""Where the time of a command went."""

from __future__ import annotations

from itertools import chain, repeat

import pytest

from mobile_o_export.profile import Profile, Span
from mobile_o_export.progress import Done


def profile(*times: float) -> tuple[Profile, list[str]]:
    told: list[str] = []
    moments = chain([0.0], times, repeat(times[-1]))
    return Profile(lambda target, component, phrase: told.append(phrase), lambda: next(moments)), told


def test_steps_of_one_stage_are_added_up() -> None:
    made, told = profile(1, 3, 6, 10, 20)
    made("ane", "llm", "compressing weight 1 of 2")
    made("ane", "llm", "compressing weight 2 of 2")
    made("ane", "llm", "converting decode")
    made("ane", "llm", Done("lowered, 3.0 MB"))
    made("ane", "dit", "compressing weight 1 of 2")
    made.end()
    assert told[-1] == "compressing weight 1 of 2"
    assert len(told) == 5
    stages = [(stage.component, stage.name, stage.steps, stage.seconds) for stage in made.stages()]
    assert stages == [
        ("llm", "compressing weight", 2, 5),
        ("llm", "converting decode", 1, 4),
        ("dit", "compressing weight", 1, 0),
    ]


def test_jobs_side_by_side_have_steps_of_their_own_and_the_command_s_end_with_any() -> None:
    made, _ = profile(0, 1, 2, 5, 7)
    made("checkpoint", "", "computing the digest")
    made("ane", "llm", "converting decode")
    made("gpu", "dit", "converting denoise")
    made("ane", "llm", Done("lowered"))
    made("gpu", "dit", Done("lowered"))
    made.end()
    assert made.spans == [
        Span("checkpoint", "", "computing the digest", 0, 1),
        Span("ane", "llm", "converting decode", 1, 4),
        Span("gpu", "dit", "converting denoise", 2, 5),
    ]


@pytest.mark.parametrize(
    ("phrase", "stage"),
    [
        ("compressing weight 12 of 170", "compressing weight"),
        ("draw-1: step 3 of 4, conditional", "draw-1: step, conditional"),
        ("converting prefill_64", "converting prefill_64"),
        ("reading the prompt, 17 tokens", "reading the prompt, tokens"),
    ],
)
def test_a_stage_is_a_phrase_without_counts(phrase: str, stage: str) -> None:
    assert Span("", "", phrase, 0, 0).stage == stage


def test_the_trace_has_a_process_for_each_target_and_a_thread_for_each_component() -> None:
    made, _ = profile(0, 1, 2)
    made("ane", "llm", "converting decode")
    made("gpu", "llm", "converting decode")
    made.end()
    events = made.trace()["traceEvents"]
    names = {(event["pid"], event["tid"]): event["args"]["name"] for event in events if event["ph"] == "M"}
    assert names[0, 0] == "llm"
    assert names[1, 1] == "llm"
    assert [(event["pid"], event["ts"], event["dur"]) for event in events if event["ph"] == "X"] == [
        (0, 0, 2_000_000),
        (1, 1_000_000, 1_000_000),
    ]
