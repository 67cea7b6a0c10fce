"""Prompts: the user's words in the model's template, as long as they may be."""

from __future__ import annotations

import re

import pytest

from mobile_o_export.errors import PromptTooLongError, UsageError
from mobile_o_export.pipelines import tasks
from mobile_o_export.pipelines.prompts import IMAGE_TOKEN, Task, Templates
from mobile_o_export.tokenizer import Tokenizer

IMAGE_TOKENS = 16
EVERY_TASK = pytest.mark.parametrize("task", list(Task))
WITH_IMAGE = {Task.EDIT, Task.DESCRIBE, Task.NEXT_TURN_WITH_IMAGE}
TEMPLATES = Templates()


def fitted(
    tokenizer: Tokenizer, text: str, longest: int, task: Task = Task.CHAT, truncate: bool = False
) -> tasks.Prompt:
    return tasks.fitted_prompt(tokenizer, TEMPLATES, task, text, IMAGE_TOKENS, "a target", longest, truncate)


def whole(tokenizer: Tokenizer, text: str, task: Task = Task.CHAT) -> tasks.Prompt:
    """The prompt of ``text`` where there is room for everything."""
    return tasks.tokenize(tokenizer, TEMPLATES.fill(task, text), IMAGE_TOKENS)


def words(tokenizer: Tokenizer, prompt: tasks.Prompt, task: Task = Task.CHAT) -> str:
    """What of the user's text is in ``prompt``."""
    after = [] if prompt.after is None else prompt.after[0].tolist()
    # Special tokens are not decoded, so the template's own text is what is left of it.
    before, _, end = re.sub(r"<\|\w+\|>|<image>", "", getattr(TEMPLATES, task)).partition("{text}")
    said = tokenizer.decode([*prompt.before[0].tolist(), *after])
    assert said.startswith(before)
    assert said.endswith(end)
    return said[len(before) : len(said) - len(end)]


@EVERY_TASK
def test_a_prompt_is_the_template_with_the_user_s_words(tokenizer: Tokenizer, task: Task) -> None:
    prompt = fitted(tokenizer, "a red cube", 1000, task)
    assert words(tokenizer, prompt, task) == "a red cube"
    tokens = prompt.before.shape[1] + (0 if prompt.after is None else prompt.after.shape[1])
    assert (prompt.after is not None) == (task in WITH_IMAGE)
    assert prompt.length == tokens + IMAGE_TOKENS * (task in WITH_IMAGE)


@pytest.mark.parametrize("truncate", [False, True])
@pytest.mark.parametrize("text", ["", " ", "\n\t ", "\u3000\u2003"])
def test_an_empty_prompt_is_refused(tokenizer: Tokenizer, text: str, truncate: bool) -> None:
    with pytest.raises(UsageError, match=r"^the prompt is empty\. Say what to draw, change or answer\.$"):
        fitted(tokenizer, text, 1000, truncate=truncate)


@EVERY_TASK
@pytest.mark.parametrize(
    "text", [IMAGE_TOKEN, f"look at {IMAGE_TOKEN} again", f"a {IMAGE_TOKEN}{IMAGE_TOKEN}"]
)
def test_the_picture_s_placeholder_is_refused(tokenizer: Tokenizer, task: Task, text: str) -> None:
    with pytest.raises(UsageError, match=r"^the prompt holds <image>, which stands .*Leave it out\.$"):
        fitted(tokenizer, text, 1000, task)


@EVERY_TASK
def test_a_prompt_may_be_as_long_as_there_is_room(tokenizer: Tokenizer, task: Task) -> None:
    text = "a red cube on a table, " * 20
    length = whole(tokenizer, text, task).length
    for truncate in (False, True):
        prompt = fitted(tokenizer, text, length, task, truncate)
        assert prompt.length == length
        assert words(tokenizer, prompt, task) == text


@EVERY_TASK
def test_one_token_more_is_refused(tokenizer: Tokenizer, task: Task) -> None:
    text = "a red cube on a table, " * 20
    length = whole(tokenizer, text, task).length
    image = rf", {IMAGE_TOKENS} of them the image's," if task in WITH_IMAGE else ""
    message = (
        rf"^the prompt has {length} tokens{image} and a target has room for {length - 1}\. Shorten it, let "
        r"it be cut with --truncate, or export with a longer \[sequence\]\.$"
    )
    with pytest.raises(PromptTooLongError, match=message):
        fitted(tokenizer, text, length - 1, task)


@EVERY_TASK
@pytest.mark.parametrize("missing", [1, 2, 7, 100])
def test_what_is_too_long_is_cut_at_its_end(tokenizer: Tokenizer, task: Task, missing: int) -> None:
    text = "a red cube on a table, " * 20
    longest = whole(tokenizer, text, task).length - missing
    prompt = fitted(tokenizer, text, longest, task, truncate=True)
    # The word that was cut may be divided otherwise than in the text, into one token more or less.
    assert longest - 1 <= prompt.length <= longest
    kept = words(tokenizer, prompt, task)
    assert text.startswith(kept)
    assert 0 < len(kept) < len(text)


LONG_TEXTS = {
    "emoji": "👩🏽‍🚀🇯🇵🎈" * 9,
    "chinese": "一只红色的狐狸在雪地里" * 5,
    "hindi": "नमस्ते, यह एक परीक्षण है " * 4,
    "accents": "Grüße, façade naïve — 25 °C; " * 4,
}


@pytest.mark.parametrize("script", LONG_TEXTS)
def test_no_character_is_cut(tokenizer: Tokenizer, script: str) -> None:
    """At every length that leaves something: what is kept is the text's own beginning, to the last byte."""
    text = LONG_TEXTS[script]
    length = whole(tokenizer, text).length
    shortest = whole(tokenizer, text[0]).length
    assert length - shortest > 50
    lengths = set()
    for longest in range(shortest, length):
        prompt = fitted(tokenizer, text, longest, truncate=True)
        assert prompt.length <= longest
        kept = words(tokenizer, prompt)
        assert kept
        assert text.startswith(kept)
        lengths.add(len(kept))
    assert len(lengths) > 20


@EVERY_TASK
def test_a_limit_that_is_too_small_for_the_template_is_refused(tokenizer: Tokenizer, task: Task) -> None:
    template = whole(tokenizer, "", task).length
    message = (
        rf"^a target has room for {template - 1} tokens, and this task's template alone needs about \d+\."
    )
    with pytest.raises(PromptTooLongError, match=message):
        fitted(tokenizer, "a red cube", template - 1, task, truncate=True)


def test_what_is_kept_is_not_empty(tokenizer: Tokenizer) -> None:
    """A text that begins with blanks is not cut to blanks, which are refused where they are given."""
    text = "            a red cube on a table"
    longest = whole(tokenizer, "    ").length
    with pytest.raises(UsageError):
        fitted(tokenizer, text, longest, truncate=True)


@EVERY_TASK
@pytest.mark.parametrize(
    "text", ["{text}", "a {text} b", "{0} {} {{}} {image_token} %s $x", "{", "\\1 \\g<0>"]
)
def test_braces_are_the_user_s_own(task: Task, text: str) -> None:
    before, slot, after = getattr(TEMPLATES, task).partition("{text}")
    assert slot
    assert TEMPLATES.fill(task, text) == before + text + after


@EVERY_TASK
def test_every_template_has_one_place_for_the_words_and_one_for_the_picture_it_needs(task: Task) -> None:
    template = getattr(TEMPLATES, task)
    assert template.count("{text}") == 1
    assert template.count(IMAGE_TOKEN) == (task in WITH_IMAGE)
    assert template.endswith("<|im_end|>\n<|im_start|>assistant\n")
    first = "<|im_end|>\n<|im_start|>user\n" if task.startswith("next_turn") else "<|im_start|>system\nYou"
    assert template.startswith(first)
