"""Conversations over one KV cache: what was said stays, is not read again, and is what is answered to."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mobile_o_export.checkpoint import Checkpoint
from mobile_o_export.errors import PromptTooLongError, UsageError
from mobile_o_export.parity.metrics import Array
from mobile_o_export.pipelines.answering import Answer, Stopped
from mobile_o_export.pipelines.conversation import Conversation
from mobile_o_export.pipelines.pipeline import Pipeline
from mobile_o_export.pipelines.runner import Limits
from mobile_o_export.pipelines.settings import Settings
from mobile_o_export.pipelines.workbench import Workbench
from mobile_o_export.reference import TorchRunner, torch_pipeline
from mobile_o_export.tokenizer import Tokenizer

SYSTEM = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
TURN = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
LATER_TURN = "<|im_end|>\n" + TURN
"""Qwen2's chat format, with the image in a line before the user's words."""


@pytest.fixture(scope="module")
def model(reference_checkpoint: Checkpoint) -> Iterator[Pipeline]:
    with torch_pipeline(reference_checkpoint) as pipeline:
        yield pipeline


@pytest.fixture(scope="module")
def llm(reference_checkpoint: Checkpoint) -> TorchRunner:
    return TorchRunner.of(reference_checkpoint, "llm")


@pytest.fixture(scope="module")
def picture() -> Image.Image:
    return Image.fromarray(np.random.default_rng(8).integers(0, 256, (80, 60, 3), np.uint8))


def logits_of_all(llm: TorchRunner, tokenizer: Tokenizer, parts: Sequence[str | list[int] | Array]) -> Array:
    """Float32 [V] after one prefill of everything: texts, token ids, and image features [1, N, D]."""
    embeds = []
    for part in parts:
        if isinstance(part, np.ndarray):
            embeds.append(part)
            continue
        ids = tokenizer.encode(part) if isinstance(part, str) else np.array([part], np.int32)
        embeds.append(llm.run("embed", {"input_ids": ids})["inputs_embeds"])
    logits: Array = llm.run("prefill", {"inputs_embeds": np.concatenate(embeds, axis=1)})["logits"][0, -1]
    return logits


def first_logits(answer: Answer) -> Array:
    """The first token's, after hearing the answer out."""
    first, *_ = answer
    return first.logits


def assert_same(actual: Array, expected: Array) -> None:
    assert actual.shape == expected.shape
    assert np.abs(expected).max() > 0.1
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-4)


def test_the_first_answer_is_to_the_prompt(model: Pipeline, llm: TorchRunner, tokenizer: Tokenizer) -> None:
    logits = first_logits(model.chat().ask("Hello there", max_tokens=1))
    assert_same(logits, logits_of_all(llm, tokenizer, [SYSTEM + TURN.format("Hello there")]))


@pytest.mark.parametrize("tokens", [1, 2, 5])
def test_the_second_answer_is_to_the_whole_conversation(
    model: Pipeline, llm: TorchRunner, tokenizer: Tokenizer, tokens: int
) -> None:
    """The first was cut off, so that its last token had not been read when the second question came."""
    talk = model.chat()
    answer = talk.ask("Hello there", max_tokens=tokens, stop=False)
    assert [token.id for token in answer] == answer.tokens
    assert (len(answer.tokens), answer.stopped) == (tokens, Stopped.LENGTH)
    logits = first_logits(talk.ask("And then?", max_tokens=1))
    parts = [SYSTEM + TURN.format("Hello there"), answer.tokens, LATER_TURN.format("And then?")]
    assert_same(logits, logits_of_all(llm, tokenizer, parts))


@pytest.mark.parametrize("heard", [1, 3])
def test_an_answer_that_nobody_heard_out_was_said_as_far_as_it_was_heard(
    model: Pipeline, llm: TorchRunner, tokenizer: Tokenizer, heard: int
) -> None:
    talk = model.chat()
    answer = talk.ask("Hello there", max_tokens=10, stop=False)
    for _ in zip(range(heard), answer, strict=False):
        pass
    assert (len(answer.tokens), answer.stopped) == (heard, None)
    logits = first_logits(talk.ask("And then?", max_tokens=1))
    parts = [SYSTEM + TURN.format("Hello there"), answer.tokens, LATER_TURN.format("And then?")]
    assert_same(logits, logits_of_all(llm, tokenizer, parts))


def test_an_answer_that_nobody_asked_for_was_not_said(
    model: Pipeline, llm: TorchRunner, tokenizer: Tokenizer
) -> None:
    talk = model.chat()
    talk.ask("Hello there")
    logits = first_logits(talk.ask("And then?", max_tokens=1))
    parts = [SYSTEM + TURN.format("Hello there"), LATER_TURN.format("And then?")]
    assert_same(logits, logits_of_all(llm, tokenizer, parts))


def test_the_third_answer_too(model: Pipeline, llm: TorchRunner, tokenizer: Tokenizer) -> None:
    talk = model.chat()
    parts: list[str | list[int] | Array] = []
    for text, template in (("One", SYSTEM + TURN), ("Two", LATER_TURN), ("Three", LATER_TURN)):
        answer = talk.ask(text, max_tokens=3, stop=False)
        parts.append(template.format(text))
        assert_same(first_logits(answer), logits_of_all(llm, tokenizer, parts))
        assert len(answer.tokens) == 3
        parts.append(answer.tokens)


def test_pictures_are_seen_in_every_turn(
    model: Pipeline, llm: TorchRunner, tokenizer: Tokenizer, picture: Image.Image
) -> None:
    talk = model.chat()
    first = talk.ask("What is it?", picture, max_tokens=3, stop=False)
    assert len(list(first)) == 3
    second = talk.ask("And this?", picture.rotate(90, expand=True), max_tokens=1)
    assert first.image_features is not None
    assert second.image_features is not None
    assert not np.array_equal(first.image_features, second.image_features)
    parts = [
        SYSTEM + "<|im_start|>user\n",
        first.image_features,
        "\nWhat is it?<|im_end|>\n<|im_start|>assistant\n",
        first.tokens,
        "<|im_end|>\n<|im_start|>user\n",
        second.image_features,
        "\nAnd this?<|im_end|>\n<|im_start|>assistant\n",
    ]
    assert_same(first_logits(second), logits_of_all(llm, tokenizer, parts))


def test_beginning_another_conversation_ends_the_first(model: Pipeline) -> None:
    first = model.chat()
    assert len(list(first.ask("Hello", max_tokens=2, stop=False))) == 2
    assert len(list(model.chat().ask("Good evening", max_tokens=2, stop=False))) == 2
    with pytest.raises(UsageError, match=r"^the conversation was broken off: .* Begin a new conv"):
        first.ask("And then?")


def test_an_answer_ends_where_another_conversation_begins(model: Pipeline) -> None:
    heard = iter(model.chat().ask("Hello", max_tokens=5, stop=False))
    next(heard)
    model.chat().ask("Good evening")
    with pytest.raises(UsageError, match="the conversation was broken off"):
        next(heard)


def test_drawing_ends_a_conversation(model: Pipeline) -> None:
    talk = model.chat()
    assert len(list(talk.ask("Hello", max_tokens=2, stop=False))) == 2
    model.generate("a cube", steps=1)
    with pytest.raises(UsageError, match="the conversation was broken off"):
        talk.ask("And then?")


VOCABULARY = 576
END = 555
WORDS = [300, 301, 302, 303, 304, 305, 306, 307]


class Script:
    """An LLM that says what it is told to, and remembers its calls: (function, positions)."""

    runtime = "a script"

    def __init__(self, tokens: Sequence[int]) -> None:
        self._tokens = iter(tokens)
        self.calls: list[tuple[str, int]] = []

    def run(self, function: str, inputs: Mapping[str, Array]) -> dict[str, Array]:
        (values,) = inputs.values()
        self.calls.append((function, values.shape[1]))
        if function == "embed":
            return {"inputs_embeds": values.astype(np.float32)[..., None]}
        # Every position of a prompt that is decoded takes a word, though only the last one's logits count.
        logits = np.zeros((1, 1, VOCABULARY), np.float32)
        logits[0, 0, next(self._tokens)] = 1.0
        return {"logits": logits}

    def count(self, function: str) -> int:
        return sum(called == function for called, _ in self.calls)


class Scripted:
    """Runners of a script's LLM and nothing else."""

    def __init__(self, script: Script, limits: Limits) -> None:
        self.script = script
        self.limits = limits

    def require(self, names: Sequence[str]) -> None:
        assert list(names) == ["llm"]

    @contextmanager
    def open(self, name: str) -> Iterator[Script]:
        assert name == "llm"
        yield self.script


class Stage:
    """Conversations over scripts."""

    def __init__(self, tokenizer: Tokenizer, settings: Settings) -> None:
        self._tokenizer = tokenizer
        self._settings = settings
        self.prompt = tokenizer.encode(SYSTEM + TURN.format("Hello")).shape[1]

    def open(self, tokens: Sequence[int], prompt: int = 100, context: int = 200) -> tuple[Script, Workbench]:
        script = Script(tokens)
        runners = Scripted(script, Limits("a script", prompt, context))
        return script, Workbench(runners, self._tokenizer, self._settings, keep=True, say=lambda _: None)

    def __call__(
        self, tokens: Sequence[int], prompt: int = 100, context: int = 200
    ) -> tuple[Script, Conversation]:
        script, bench = self.open(tokens, prompt, context)
        return script, Conversation(bench)

    def later(self, text: str) -> int:
        """How long the prompt of a later turn is."""
        return self._tokenizer.encode(LATER_TURN.format(text)).shape[1]


@pytest.fixture
def stage(tokenizer: Tokenizer, model_settings: Settings) -> Stage:
    assert END in model_settings.numbers.stop_token_ids
    assert not set(WORDS) & set(model_settings.numbers.stop_token_ids)
    return Stage(tokenizer, model_settings)


def test_a_stop_token_ends_the_answer_and_is_no_part_of_it(stage: Stage, tokenizer: Tokenizer) -> None:
    _, talk = stage([*WORDS[:3], END])
    answer = talk.ask("Hello")
    assert [token.id for token in answer] == answer.tokens == WORDS[:3]
    assert answer.stopped is Stopped.END
    assert answer.text == tokenizer.decode(WORDS[:3])


@pytest.mark.parametrize("end", [553, 555])
def test_every_stop_token_ends_it(stage: Stage, end: int) -> None:
    _, talk = stage([end])
    answer = talk.ask("Hello")
    assert list(answer) == []
    assert (answer.tokens, answer.text, answer.stopped) == ([], "", Stopped.END)


def test_a_stop_token_may_be_passed_over(stage: Stage) -> None:
    _, talk = stage([300, END, 301])
    answer = talk.ask("Hello", max_tokens=3, stop=False)
    assert [token.id for token in answer] == [300, END, 301]
    assert answer.stopped is Stopped.LENGTH


def test_the_longest_answer(stage: Stage) -> None:
    script, talk = stage(WORDS)
    answer = talk.ask("Hello", max_tokens=4)
    assert [token.id for token in answer] == WORDS[:4]
    assert answer.stopped is Stopped.LENGTH
    assert script.count("decode") == 3


def test_an_answer_ends_when_the_cache_is_full(stage: Stage) -> None:
    """Prompt and three tokens fill it; the fourth is what the last of them makes likely, and is not read."""
    script, talk = stage(WORDS, context=stage.prompt + 3)
    answer = talk.ask("Hello", max_tokens=100)
    assert [token.id for token in answer] == WORDS[:4]
    assert answer.stopped is Stopped.CONTEXT
    assert script.count("decode") == 3


def test_a_prompt_that_fills_the_cache_still_has_an_answer(stage: Stage) -> None:
    script, talk = stage(WORDS, context=stage.prompt)
    answer = talk.ask("Hello", max_tokens=100)
    assert [token.id for token in answer] == WORDS[:1]
    assert (answer.stopped, script.count("decode")) == (Stopped.CONTEXT, 0)


def test_a_later_prompt_fits_what_the_cache_has_left(stage: Stage) -> None:
    """Its tokens, and the last one of the answer before it."""
    spoken = 2
    room = stage.later("Go on")
    script, talk = stage([300] * 100, context=stage.prompt + spoken + room)
    assert len(list(talk.ask("Hello", max_tokens=spoken))) == spoken
    answer = talk.ask("Go on")
    assert (len(list(answer)), answer.stopped) == (1, Stopped.CONTEXT)
    assert stage.prompt + script.count("decode") == stage.prompt + spoken + room


def test_a_later_prompt_that_does_not_fit_is_refused_and_changes_nothing(stage: Stage) -> None:
    spoken, shorter = 2, stage.later("Go on")
    script, talk = stage([300] * 100, context=stage.prompt + spoken + shorter)
    assert len(list(talk.ask("Hello", max_tokens=spoken))) == spoken
    calls = len(script.calls)
    length = stage.later("Go on and on and on")
    message = rf"^the prompt has {length} tokens and the conversation has room for {shorter}\."
    with pytest.raises(PromptTooLongError, match=message):
        talk.ask("Go on and on and on")
    assert len(script.calls) == calls
    assert len(list(talk.ask("Go on"))) == 1


def test_a_full_conversation_says_that_it_is_full(stage: Stage) -> None:
    """Not that there is "room for -1", or that a longer export would help."""
    _, talk = stage(WORDS, context=stage.prompt + 3)
    assert len(list(talk.ask("Hello", max_tokens=100))) == 4
    with pytest.raises(PromptTooLongError, match=r"(?i)new conversation") as refusal:
        talk.ask("Go on")
    assert "-1" not in str(refusal.value)


def test_what_was_said_is_not_read_again(stage: Stage) -> None:
    """One prefill a conversation; then a position a decoded token, prompts of later turns included."""
    script, talk = stage([300] * 100)
    assert len(list(talk.ask("Hello", max_tokens=4))) == 4
    assert script.calls == [
        ("embed", stage.prompt),
        ("prefill", stage.prompt),
        *[("embed", 1), ("decode", 1)] * 3,
    ]
    script.calls.clear()
    assert len(list(talk.ask("Go on", max_tokens=3))) == 3
    later = stage.later("Go on")
    assert sorted(script.calls[:2]) == [("embed", 1), ("embed", later)]
    # The answer's last token, the prompt, and two tokens of the three.
    assert script.calls[2:] == [("decode", 1)] * (1 + later) + [("embed", 1), ("decode", 1)] * 2


def test_after_a_stop_token_only_the_prompt_is_read(stage: Stage) -> None:
    """The template says how a turn ends; the token that was chosen is not read beside it."""
    script, talk = stage([300, END, *[301] * 100])
    assert len(list(talk.ask("Hello"))) == 1
    script.calls.clear()
    assert len(list(talk.ask("Go on", max_tokens=1))) == 1
    later = stage.later("Go on")
    assert script.calls == [("embed", later), *[("decode", 1)] * later]


def test_a_new_conversation_prefills_again(stage: Stage) -> None:
    script, bench = stage.open([300] * 100)
    for count in (1, 2):
        assert len(list(Conversation(bench).ask("Hello", max_tokens=2))) == 2
        assert script.count("prefill") == count


def test_a_long_prompt_is_embedded_in_pieces(stage: Stage) -> None:
    """A later turn may be longer than the graphs' longest prompt."""
    text = "a red cube on a table, " * 4
    later = stage.later(text)
    limit = stage.prompt
    assert limit < later < 2 * limit
    script, talk = stage([300] * 200, prompt=limit)
    assert len(list(talk.ask("Hello", max_tokens=1))) == 1
    script.calls.clear()
    assert len(list(talk.ask(text, max_tokens=1))) == 1
    embeds = [length for function, length in script.calls if function == "embed"]
    assert sorted(embeds) == [1, later - limit, limit]


@pytest.mark.parametrize("tokens", [0, -1])
def test_an_answer_of_no_tokens_is_refused(stage: Stage, tokens: int) -> None:
    script, talk = stage(WORDS)
    with pytest.raises(UsageError, match=rf"^an answer of {tokens} tokens says nothing\. Ask for 1"):
        talk.ask("Hello", max_tokens=tokens)
    assert script.calls == []


def test_pieces_add_up_to_the_text(stage: Stage, tokenizer: Tokenizer) -> None:
    balloon = tokenizer.encode("a 🎈!")[0].tolist()
    _, talk = stage([*balloon, END])
    answer = talk.ask("Hello")
    assert "".join(token.text for token in answer) == answer.text == "a 🎈!"


@pytest.mark.parametrize("end", [[], [END]], ids=["length", "end"])
def test_a_character_that_was_cut_off_is_replaced(stage: Stage, tokenizer: Tokenizer, end: list[int]) -> None:
    """Wherever it was cut off, so that the text is that of the tokens."""
    half = tokenizer.encode("a 🎈")[0].tolist()[:-1]
    _, talk = stage([*half, *end])
    answer = talk.ask("Hello", max_tokens=len(half) + len(end))
    assert [token.id for token in answer] == half
    assert answer.text == tokenizer.decode(half) == "a \ufffd"


@pytest.mark.parametrize(("heard", "heard_of_next"), [(0, 0), (1, 0), (0, 1), (1, 1)])
def test_an_answer_is_over_when_the_next_question_was_asked(
    stage: Stage, heard: int, heard_of_next: int
) -> None:
    """Begun or gone on with too late, it would take the next one's tokens."""
    _, talk = stage([300] * 100)
    first = iter(talk.ask("Hello"))
    for _ in range(heard):
        next(first)
    second = iter(talk.ask("Go on"))
    for _ in range(heard_of_next):
        next(second)
    with pytest.raises(UsageError):
        next(first)


def test_speed_is_of_the_tokens_after_the_first(stage: Stage) -> None:
    _, talk = stage([300] * 100)
    one = talk.ask("Hello", max_tokens=1)
    assert len(list(one)) == 1
    assert (one.decode_seconds, one.tokens_per_second) == ([], None)
    four = talk.ask("Go on", max_tokens=4)
    assert len(list(four)) == 4
    assert len(four.decode_seconds) == 3
    four.decode_seconds[:] = [0.5, 0.25, 0.25]
    assert four.tokens_per_second == 3.0


def test_a_picture_that_is_none_is_told_before_anything_is_read(model: Pipeline, tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    path.write_bytes(b"")
    talk = model.chat()
    with pytest.raises(UsageError, match="cannot be read as an image"):
        talk.ask("What is it?", path)
    assert len(list(talk.ask("Hello", max_tokens=1, stop=False))) == 1
