"""``describe`` and ``chat``: text from the files of a bundle, as it comes."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mobile_o_export.cli import screen
from mobile_o_export.cli.console import ProgressPrinter, seconds_by_stage
from mobile_o_export.cli.model import Bundle, CheckpointOption, JsonOutput, TargetName, Truncate, open_model
from mobile_o_export.cli.paths import expanded, file_typed
from mobile_o_export.errors import UsageError

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

    from mobile_o_export.pipelines.answering import Answer
    from mobile_o_export.pipelines.pipeline import Pipeline

MaxTokens = Annotated[int, typer.Option("--max-tokens", help="The longest answer.", metavar="N")]


def describe(
    image: Annotated[Path, typer.Option("--image", help="The picture.", metavar="FILE", callback=expanded)],
    bundle: Bundle = None,
    target: TargetName = None,
    checkpoint: CheckpointOption = None,
    question: Annotated[
        str, typer.Option("--question", help="What to answer about it.")
    ] = "Describe this image.",
    max_tokens: MaxTokens = 256,
    truncate: Truncate = False,
    json_output: JsonOutput = False,
) -> None:
    """Answer a question about a picture with a bundle's files.

    The answer is the most likely one (greedy), printed as it comes.
    """
    with ProgressPrinter() as progress:
        progress("describe", "", "opening the model")
        model = open_model(bundle, target, checkpoint, lambda phrase: progress("describe", "", phrase))
        with model:
            answer = model.describe(image, question, max_tokens=max_tokens, truncate=truncate)
            _tell(answer, progress, json_output)
            progress.done("describe", "", _timing(answer))
    if json_output:
        content = {"schema": 1, "task": "describe", "image": str(image), "question": question}
        screen.result_json({**content, **_content(model, answer)})


def chat(
    bundle: Bundle = None,
    target: TargetName = None,
    checkpoint: CheckpointOption = None,
    image: Annotated[
        Path | None,
        typer.Option("--image", help="A picture to begin with.", metavar="FILE", callback=expanded),
    ] = None,
    max_tokens: MaxTokens = 256,
    truncate: Truncate = False,
    json_output: JsonOutput = False,
) -> None:
    """Talk with a bundle's files, about pictures or not.

    A line of stdin is a message. What was said stays in the KV cache: each turn reads only what is new.
    Lines that begin with a slash are commands: /image FILE shows a picture with the next message (quoted as
    in a shell, if it has spaces), /new starts over, /exit ends. With --json an object a line.
    """
    picture = None if image is None else _picture(str(image), "--image")
    interactive = sys.stdin is not None and sys.stdin.isatty()
    with ProgressPrinter() as progress:
        progress("chat", "", "opening the model")
        model = open_model(bundle, target, checkpoint, lambda phrase: progress("chat", "", phrase))
        with model:
            talk = Talk(model, picture, max_tokens, truncate)
            progress.clear()
            for line in _messages(interactive):
                try:
                    answer = talk.said(line)
                    if answer is None:
                        continue
                    _tell(answer, progress, json_output)
                except UsageError as error:
                    if not interactive:
                        raise
                    progress.done("chat", "", str(error))
                    continue
                progress.done("chat", "", _timing(answer))
                if json_output:
                    content = {"schema": 1, "task": "chat", "message": line, **_content(model, answer)}
                    screen.result_json(content, one_line=True)


class Talk:
    """A conversation as it is typed: messages and commands."""

    def __init__(self, model: Pipeline, image: Picture | None, max_tokens: int, truncate: bool) -> None:
        self._model = model
        self._image = image
        self._max_tokens = max_tokens
        self._truncate = truncate
        self._conversation = model.chat()

    def said(self, line: str) -> Answer | None:
        """The answer to a message; None for a command, which is carried out.

        Raises:
            UsageError: the command is unknown, or the message cannot be answered.
        """
        command, _, rest = line.partition(" ")
        match command:
            case "/image":
                self._image = _picture(file_typed(rest.strip(), "/image"), "/image")
            case "/new":
                self._conversation, self._image = self._model.chat(), None
            case _ if command.startswith("/"):
                raise UsageError(f"{command} is no command; there are /image FILE, /new and /exit.")
            case _:
                answer = self._conversation.ask(
                    line, self._image, max_tokens=self._max_tokens, truncate=self._truncate
                )
                # A message that was refused is typed again, about the same picture.
                self._image = None
                return answer
        return None


def _picture(name: str, option: str) -> Picture:
    """The picture in a file, read now: what is wrong with it is to be told before a question is typed."""
    from mobile_o_export.pipelines.preprocessing import load_picture

    path = expanded(Path(name)) if name else None
    if path is None:
        raise UsageError(f"{option}: say which file.")
    return load_picture(path)


def _messages(interactive: bool) -> Iterator[str]:
    """What the user says, line by line, until /exit or the end of stdin; empty lines say nothing.

    Raises:
        UsageError: stdin is no text.
    """
    try:
        for line in _typed() if interactive else sys.stdin or ():
            if line.strip() == "/exit":
                return
            if line.strip():
                yield line.strip()
    except UnicodeDecodeError as error:
        raise UsageError(f"stdin is no UTF-8 text: {error}.") from error


def _typed() -> Iterator[str]:
    """Lines from a terminal, with its editing keys."""
    while True:
        # Not by input(), which would write to stdout: there are the answers, for a file perhaps.
        screen.prompt("> ")
        try:
            yield input()
        except EOFError:
            return


def _tell(answer: Answer, progress: ProgressPrinter, json_output: bool) -> None:
    """Prints the answer as it comes; for JSON it is only computed, and its progress told."""
    for token in answer:
        if json_output:
            progress("answer", "", f"{len(answer.tokens)} tokens")
        else:
            progress.clear()
            screen.answer(token.text)
    if not json_output:
        screen.result()


def _timing(answer: Answer) -> str:
    speed = answer.tokens_per_second
    rate = "" if speed is None else f", then {speed:.1f} a second"
    return (
        f"{len(answer.tokens)} tokens, the first after {seconds_by_stage(answer.prompt_seconds)}{rate}"
        f"; ended by {answer.stopped}"
    )


def _content(model: Pipeline, answer: Answer) -> dict[str, Any]:
    """What JSON says of an answer."""
    seconds = {**answer.prompt_seconds, "decode": sum(answer.decode_seconds)}
    return {
        "target": model.target,
        "runtimes": dict(model.runtimes),
        "text": answer.text,
        "tokens": answer.tokens,
        "stopped": str(answer.stopped),
        "prompt_tokens": answer.prompt_tokens,
        "seconds": {**seconds, "total": sum(seconds.values())},
        "tokens_per_second": answer.tokens_per_second,
    }
