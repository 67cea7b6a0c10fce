"""Text and token ids: what is streamed adds up to what is decoded, in every script."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from mobile_o_export.errors import CheckpointError
from mobile_o_export.tokenizer import Tokenizer

TEXTS = [
    "a red cube",
    "Grüße aus Žilina — 25 °C",
    "e\u0301 is not é; \ufb01 is a ligature",
    "一只红色的狐狸在雪地里，东京タワー",
    "안녕하세요 세계",
    "السلام عليكم",
    "नमस्ते, यह परीक्षण है",
    "שָׁלוֹם",
    "👩🏽‍🚀🇯🇵 and a 🎈",
    "𝔉𝔯𝔞𝔨𝔱𝔲𝔯 𓀀",
    "two  spaces,\ta tab\r\nand a new line ",
    "\u200b\u00a0\ufeff",
    "the replacement \ufffd itself, \ufffd\ufffd",
]


def ids_of(tokenizer: Tokenizer, text: str) -> list[int]:
    ids = tokenizer.encode(text)
    assert (ids.dtype, ids.shape[0]) == (np.int32, 1)
    found: list[int] = ids[0].tolist()
    return found


@pytest.mark.parametrize("text", TEXTS)
def test_a_text_survives(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.decode(ids_of(tokenizer, text)) == text


@pytest.mark.parametrize("text", TEXTS)
def test_streamed_pieces_add_up_to_the_text(tokenizer: Tokenizer, text: str) -> None:
    stream = tokenizer.stream()
    pieces = [stream.add(token) for token in ids_of(tokenizer, text)]
    assert "".join(pieces) + stream.rest() == text


def test_a_character_comes_whole(tokenizer: Tokenizer) -> None:
    ids = ids_of(tokenizer, "🎈!")
    assert len(ids) == 5
    stream = tokenizer.stream()
    assert [stream.add(token) for token in ids] == ["", "", "", "🎈", "!"]


@pytest.mark.parametrize("seed", range(4))
def test_what_no_writer_would_write_is_streamed_as_it_is_decoded(tokenizer: Tokenizer, seed: int) -> None:
    """A model with random weights says any bytes, and ids that are padding of the vocabulary."""
    for ids in np.random.default_rng(seed).integers(0, 576, (500, 12)).tolist():
        stream = tokenizer.stream()
        pieces = [stream.add(token) for token in ids]
        assert "".join(pieces) + stream.rest() == tokenizer.decode(ids), ids


@pytest.mark.parametrize("kept", [1, 2, 3])
def test_a_character_that_was_cut_off_is_replaced_at_the_end(tokenizer: Tokenizer, kept: int) -> None:
    ids = ids_of(tokenizer, "a🎈")
    stream = tokenizer.stream()
    assert [stream.add(token) for token in ids[: 1 + kept]] == ["a", *[""] * kept]
    assert stream.rest() == "\ufffd"
    assert tokenizer.decode(ids[: 1 + kept]) == "a\ufffd"


def test_nothing_is_left_of_whole_characters(tokenizer: Tokenizer) -> None:
    stream = tokenizer.stream()
    assert stream.rest() == ""
    for token in ids_of(tokenizer, "a🎈"):
        stream.add(token)
    assert stream.rest() == ""


def test_special_tokens_are_left_out(tokenizer: Tokenizer) -> None:
    ids = ids_of(tokenizer, "<|im_start|>a b<|im_end|>")
    assert len(ids) == 4
    stream = tokenizer.stream()
    pieces = [stream.add(token) for token in ids]
    assert (pieces, stream.rest()) == (["", "a", " b", ""], "")
    assert tokenizer.decode(ids) == "a b"


def test_two_streams_are_apart(tokenizer: Tokenizer) -> None:
    first, second = tokenizer.stream(), tokenizer.stream()
    byte, *_ = ids_of(tokenizer, "🎈")
    assert first.add(byte) == ""
    assert second.rest() == ""
    assert first.rest() == "\ufffd"


@pytest.mark.parametrize(
    ("text", "ends"),
    [
        ("", []),
        ("a cat", [1, 5]),
        ("  two", [1, 3, 4, 5]),
        # One character a token or several tokens a character, all of which end where it does.
        ("aé", [1, 2, 2]),
        ("🎈b", [1, 1, 1, 1, 2]),
        ("e\u0301", [1, 2, 2]),
    ],
)
def test_where_tokens_end(tokenizer: Tokenizer, text: str, ends: list[int]) -> None:
    assert tokenizer.ends(text) == ends


@pytest.mark.parametrize("text", TEXTS)
def test_every_token_has_an_end_and_the_last_is_the_text_s(tokenizer: Tokenizer, text: str) -> None:
    ends = tokenizer.ends(text)
    assert len(ends) == len(ids_of(tokenizer, text))
    assert ends == sorted(ends)
    assert ends[-1] == len(text)


def test_the_id_of_a_token(tokenizer: Tokenizer) -> None:
    assert tokenizer.id_of("<|im_end|>") == 555
    assert ids_of(tokenizer, "<|im_end|>") == [555]
    assert tokenizer.id_of("Ġcube") == 400
    assert tokenizer.id_of("no such token") is None


def test_without_tokenizer_json_the_vocabulary_will_do(
    tokenizer: Tokenizer, reference_folder: Path, tmp_path: Path
) -> None:
    """The form of Qwen2's own files: the special tokens are in tokenizer_config.json."""
    for name in ("vocab.json", "merges.txt"):
        (tmp_path / name).write_bytes((reference_folder / name).read_bytes())
    config = json.loads((reference_folder / "tokenizer_config.json").read_text())
    added = json.loads((reference_folder / "tokenizer.json").read_text())["added_tokens"]
    config["added_tokens_decoder"] = {str(token.pop("id")): token for token in added}
    assert len(config["added_tokens_decoder"]) == 3
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    other = Tokenizer(tmp_path)
    for text in ("a red cube", "<|im_start|>user\n一只 🎈<|im_end|>"):
        assert ids_of(other, text) == ids_of(tokenizer, text)


def test_no_tokenizer(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"the tokenizer cannot be read: .*Copy the tokenizer's files"):
        Tokenizer(tmp_path)


def test_a_folder_whose_path_is_no_text(tokenizer: Tokenizer, tmp_path: Path) -> None:
    folder = tmp_path / os.fsdecode(b"t\xff")
    folder.mkdir()
    tokenizer.save(tmp_path / "tokenizer.json")
    (tmp_path / "tokenizer.json").rename(folder / "tokenizer.json")
    assert ids_of(Tokenizer(folder), "a red cube") == ids_of(tokenizer, "a red cube")


@pytest.fixture
def panicking(reference_folder: Path, tmp_path: Path) -> Callable[[type[BaseException]], Tokenizer]:
    """A tokenizer whose library fails in the way that is asked for, and says so on stderr."""

    class Library:
        def __init__(self, kind: type[BaseException]) -> None:
            self.kind = kind

        def encode(self, *_: object, **__: object) -> None:
            os.write(2, b"thread '<unnamed>' panicked\n")
            raise self.kind("slice index starts at 1")

        decode = to_str = encode

    def make(kind: type[BaseException]) -> Tokenizer:
        tokenizer = Tokenizer(reference_folder)
        tokenizer._tokenizer = Library(kind)
        return tokenizer

    return make


# PyO3's class of that name derives from BaseException and cannot be made from Python.
PanicException = type("PanicException", (BaseException,), {})


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda tokenizer: tokenizer.encode("a"), "cannot encode 'a': slice index starts at 1. Copy the tok"),
        (lambda tokenizer: tokenizer.ends("a"), "cannot encode 'a': slice index"),
        (lambda tokenizer: tokenizer.decode([1]), "cannot decode its ids: slice index"),
        (lambda tokenizer: tokenizer.save(Path("never")), "cannot be written as one file: slice index"),
    ],
)
@pytest.mark.parametrize("kind", [PanicException, Exception])
def test_a_panic_of_the_library_is_a_damaged_tokenizer(
    panicking: Callable[[type[BaseException]], Tokenizer],
    capfd: pytest.CaptureFixture[str],
    kind: type[BaseException],
    call: Callable[[Tokenizer], object],
    message: str,
) -> None:
    with pytest.raises(CheckpointError) as caught:
        call(panicking(kind))
    assert message in str(caught.value)
    assert caught.value.exit_code == 2
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
def test_a_wish_to_stop_is_no_panic(
    panicking: Callable[[type[BaseException]], Tokenizer], kind: type[BaseException]
) -> None:
    with pytest.raises(kind):
        panicking(kind).encode("a")
