"""Chat as a person types it: prompts and refusals on the terminal, answers where stdout goes."""

from __future__ import annotations

import json
import os
import pty
import subprocess
from pathlib import Path

from cli_harness import shown_on, start

LINES = ("Hello", "/dance", "/image no-such.png", "<image>", "And now?", "/new", "Hello", "/exit")


def typed(bundle: Path, *lines: str) -> tuple[int, list[dict[str, object]], str]:
    """The exit code, the objects on stdout, and what the terminal showed."""
    ours, theirs = pty.openpty()
    arguments = ("chat", bundle, "--target", "litert-cpu", "--max-tokens", 3, "--json")
    process = start(*arguments, stdin=theirs, stdout=subprocess.PIPE, stderr=theirs)
    os.close(theirs)
    os.write(ours, "".join(f"{line}\n" for line in lines).encode())
    with process:
        assert process.stdout is not None
        answers = [json.loads(line) for line in process.stdout]
    return process.returncode, answers, shown_on(ours)


def test_a_refused_message_is_told_and_the_conversation_goes_on(bundle: Path) -> None:
    code, answers, shown = typed(bundle, *LINES)
    assert code == 0
    assert [answer["message"] for answer in answers] == ["Hello", "And now?", "Hello"]
    first, second, fresh = answers
    assert first["tokens"] == fresh["tokens"]
    assert first["prompt_tokens"] == fresh["prompt_tokens"] != second["prompt_tokens"]
    for message in ("/dance is no command", "no-such.png: no such image file", "stands for the picture"):
        assert message in shown
    assert "Traceback" not in shown
    assert "> " in shown


def test_the_end_of_input_ends_it(bundle: Path) -> None:
    code, answers, _ = typed(bundle, "Hello", "\x04")
    assert (code, len(answers)) == (0, 1)
