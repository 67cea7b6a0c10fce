"""The chat template and the three tasks' user texts, exactly as the model was trained on."""

from __future__ import annotations

IMAGE_TOKEN = "<image>"
"""Stands for the image features; it has no token id of its own."""

SYSTEM = "You are a helpful assistant."


def chat(user: str) -> str:
    """One user turn in Qwen's template, up to where the assistant begins."""
    return (
        f"<|im_start|>system\n{SYSTEM}<|im_end|>\n<|im_start|>user\n{user}<|im_end|>\n<|im_start|>assistant\n"
    )


def generation(caption: str) -> str:
    """The prompt of text-to-image."""
    return chat(f"Please generate image based on the following caption: {caption}")


def editing(instruction: str) -> str:
    """The prompt of editing; the image stands where ``IMAGE_TOKEN`` does."""
    return chat(
        f"{IMAGE_TOKEN}\nPlease edit the provided image according to the following description: {instruction}"
    )


def understanding(question: str) -> str:
    """The prompt of a question about an image."""
    return chat(f"{IMAGE_TOKEN}\n{question}")
