"""The chat template and the tasks' user texts, exactly as the model was trained on."""

from __future__ import annotations

from enum import StrEnum
from typing import Literal, Self

from pydantic import model_validator

from mobile_o_export.strict import Strict

IMAGE_TOKEN = "<image>"
"""Stands for the image features; it has no token id of its own."""

START_OF_TURN = "<|im_start|>"
END_OF_TURN = "<|im_end|>"
"""Ends the system's text, a user's and an assistant's; what an answer stops at."""

STOPS = (END_OF_TURN, "<|endoftext|>")

SLOT = "{text}"
"""Where the user's own words go in a template."""

_SYSTEM = f"{START_OF_TURN}system\nYou are a helpful assistant.{END_OF_TURN}\n"


def _turn(user: str) -> str:
    """One user turn in Qwen's template, up to where the assistant begins."""
    return f"{START_OF_TURN}user\n{user}{END_OF_TURN}\n{START_OF_TURN}assistant\n"


class Task(StrEnum):
    """What a prompt asks for; each has a template of its own."""

    GENERATE = "generate"
    EDIT = "edit"
    DESCRIBE = "describe"
    CHAT = "chat"
    NEXT_TURN = "next_turn"
    """What follows an answer in a conversation that goes on."""
    NEXT_TURN_WITH_IMAGE = "next_turn_with_image"


_WITH_IMAGE = (Task.EDIT, Task.DESCRIBE, Task.NEXT_TURN_WITH_IMAGE)


class Templates(Strict):
    """``config/prompts.json``: a template a task; ``{text}`` is the user's, ``<image>`` the features."""

    image_token: Literal["<image>"] = "<image>"
    generate: str = _SYSTEM + _turn(f"Please generate image based on the following caption: {SLOT}")
    edit: str = _SYSTEM + _turn(
        f"{IMAGE_TOKEN}\nPlease edit the provided image according to the following description: {SLOT}"
    )
    describe: str = _SYSTEM + _turn(f"{IMAGE_TOKEN}\n{SLOT}")
    chat: str = _SYSTEM + _turn(SLOT)
    next_turn: str = f"{END_OF_TURN}\n" + _turn(SLOT)
    next_turn_with_image: str = f"{END_OF_TURN}\n" + _turn(f"{IMAGE_TOKEN}\n{SLOT}")

    @model_validator(mode="after")
    def _have_slots(self) -> Self:
        for task in Task:
            template: str = getattr(self, task.value)
            for slot, wanted in ((SLOT, 1), (IMAGE_TOKEN, int(task in _WITH_IMAGE))):
                if template.count(slot) != wanted:
                    raise ValueError(f"{task.value}: holds {slot} {template.count(slot)} times, not {wanted}")
        return self

    def fill(self, task: Task, text: str) -> str:
        """The prompt of ``task`` with the user's ``text``."""
        template: str = getattr(self, task.value)
        return template.replace(SLOT, text)
