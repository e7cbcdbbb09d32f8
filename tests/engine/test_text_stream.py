"""A stream of text: never a broken character, and in the end the same as decoding everything at once."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as FastTokenizer
from tokenizers import decoders, models
from transformers import PreTrainedTokenizerFast

from engine.models import LoadedModel
from engine.tokenizer import REPLACEMENT, Tokenizer

TEXTS = [
    "plain words, 123 numbers and  two spaces",
    "人工智能的未来是光明的，请介绍一下北京和上海。",
    "𠜎𠜱 rare 龘 ideographs",
    "emoji 😀🎉 family 👨‍👩‍👧‍👦 flag 🏳️‍🌈 skin 👍🏽",
    "العربية עברית हिन्दी ไทย",
    "e\u0301 combining, \u00a0 odd spaces\n\n\ttabs",
]


def byte_fallback_tokenizer() -> Tokenizer:
    """A small tokenizer in the manner of Llama 2: words with a mark for the space, and single bytes."""
    words = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "▁hello", "▁world", "a", "b", "人"]
    fast = FastTokenizer(
        models.BPE({word: number for number, word in enumerate(words)}, [], unk_token="<unk>", byte_fallback=True)
    )
    fast.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return Tokenizer(PreTrainedTokenizerFast(tokenizer_object=fast))


BYTE_FALLBACK = byte_fallback_tokenizer()


def streamed(tokenizer: Tokenizer, token_ids: list[int]) -> tuple[list[str], str]:
    """The pieces of every token, and what is flushed at the end."""
    stream = tokenizer.stream()
    return [stream.push(token_id) for token_id in token_ids], stream.flush()


@given(st.lists(st.integers(0, 262), max_size=30))
def test_byte_fallback_stream_equals_the_whole(token_ids: list[int]) -> None:
    pieces, rest = streamed(BYTE_FALLBACK, token_ids)
    assert "".join(pieces) + rest == BYTE_FALLBACK.decode(token_ids)


def test_a_character_of_byte_tokens_comes_whole() -> None:
    ids = [1 + byte for byte in "你".encode()]
    pieces, rest = streamed(BYTE_FALLBACK, [258, *ids, 260])
    assert pieces == ["hello", "", "", "", "你a"]
    assert rest == ""


@pytest.mark.model
@pytest.mark.parametrize("text", TEXTS)
def test_pieces_are_whole_characters_and_add_up(embedded: tuple[LoadedModel, LoadedModel], text: str) -> None:
    tokenizer = embedded[0].tokenizer
    assert tokenizer is not None
    pieces, rest = streamed(tokenizer, tokenizer.encode(text))
    assert not any(REPLACEMENT in piece for piece in pieces)
    assert "".join(pieces) == text
    assert rest == ""
    assert sum(bool(piece) for piece in pieces) > 3, "the text came in one lump"


@pytest.mark.model
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_tokens_stream_to_their_whole_text(embedded: tuple[LoadedModel, LoadedModel], data: st.DataObject) -> None:
    tokenizer = embedded[0].tokenizer
    assert tokenizer is not None
    token_ids = data.draw(st.lists(st.one_of(st.integers(0, 300), st.integers(0, 49_151)), max_size=25))
    pieces, rest = streamed(tokenizer, token_ids)
    assert "".join(pieces) + rest == tokenizer.decode(token_ids)


@pytest.mark.model
def test_the_window_stays_short(embedded: tuple[LoadedModel, LoadedModel], monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = embedded[0].tokenizer
    assert tokenizer is not None
    longest = 0
    decode = Tokenizer.decode

    def watch(self: Tokenizer, token_ids: list[int]) -> str:
        nonlocal longest
        longest = max(longest, len(token_ids))
        return decode(self, token_ids)

    token_ids = tokenizer.encode(" ".join(TEXTS) * 5)
    monkeypatch.setattr(Tokenizer, "decode", watch)
    streamed(tokenizer, token_ids)
    assert longest <= 16 < len(token_ids)
