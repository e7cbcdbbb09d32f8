"""Text to tokens and back, one token at a time, without broken characters and with stop strings cut off."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from engine.light_tokenizer import LightTokenizer, TokenizerParts, parts_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

#: what a decoder writes for bytes that are no character (yet)
REPLACEMENT = "\ufffd"
_BYTE_TOKEN = re.compile(r"<0x[0-9A-Fa-f]{2}>")


class Tokenizer:
    """A transformers tokenizer, reduced to what the engine needs, or a light one with the same tokens."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase | LightTokenizer) -> None:
        self._tokenizer = tokenizer
        #: tokens that stand for one raw byte (byte fallback); runs of them are decoded as a whole
        self.byte_token_ids = frozenset(
            token_id for token, token_id in tokenizer.get_vocab().items() if _BYTE_TOKEN.fullmatch(token)
        )

    @property
    def underlying(self) -> PreTrainedTokenizerBase | LightTokenizer:
        """What this is made on."""
        return self._tokenizer

    @property
    def source(self) -> TokenizerParts | str:
        """What another process needs to make the same: its parts, or where it cannot be taken apart the place that it
        was loaded from.
        """
        if isinstance(self._tokenizer, LightTokenizer):
            return self._tokenizer.parts
        return parts_of(self._tokenizer) or str(self._tokenizer.name_or_path)

    def encode(self, text: str, *, special_tokens: bool = True) -> list[int]:
        """Token ids of ``text``; ``special_tokens`` adds what the model's tokenizer puts around a text (BOS)."""
        return list(self._tokenizer.encode(text, add_special_tokens=special_tokens))

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of ``token_ids``; special tokens give nothing."""
        return self._text(token_ids, skip_special_tokens=True)

    def literal(self, token_ids: Sequence[int]) -> str:
        """The text of ``token_ids`` with the special tokens' own."""
        return self._text(token_ids, skip_special_tokens=False)

    def _text(self, token_ids: Sequence[int], *, skip_special_tokens: bool) -> str:
        as_it_is = {} if isinstance(self._tokenizer, LightTokenizer) else {"clean_up_tokenization_spaces": False}
        return str(self._tokenizer.decode(list(token_ids), skip_special_tokens=skip_special_tokens, **as_it_is))

    def encode_chat(self, messages: list[dict[str, Any]], **template_arguments: Any) -> list[int]:
        """Token ids of a conversation through the model's chat template, ready for the model's answer.

        Raises ``ValueError`` when the model has no chat template.
        """
        return self.encode(self.chat_text(messages, **template_arguments), special_tokens=False)

    def chat_text(self, messages: list[dict[str, Any]], **template_arguments: Any) -> str:
        """The text that :meth:`encode_chat` makes tokens of."""
        template_arguments = {"add_generation_prompt": True, **template_arguments}
        if isinstance(self._tokenizer, LightTokenizer):
            return self._tokenizer.apply_chat_template(messages, **template_arguments)
        return str(self._tokenizer.apply_chat_template(messages, tokenize=False, **template_arguments))

    def stream(self) -> TextStream:
        """A decoder for one sequence's output tokens."""
        return TextStream(self)


class TextStream:
    """Incremental detokenisation: the pieces, put together, are what decoding all tokens at once gives.

    Only a short window of tokens is decoded for each new one: from the last place where the text was whole to the end,
    with the tokens before it as context (a tokenizer may treat the first token of a text in its own way). Text is given
    out when it can no longer change: bytes that are no character yet, and runs of byte tokens, are held back.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._context: list[int] = []
        self._context_text = ""
        self._window: list[int] = []
        self._given = 0

    def push(self, token_id: int) -> str:
        """The text that ``token_id`` makes certain, perhaps none."""
        self._window.append(token_id)
        if token_id in self._tokenizer.byte_token_ids:
            return ""
        text = self._window_text()
        whole = not text.endswith(REPLACEMENT)
        piece = text[self._given :] if whole else text[self._given : -1]
        self._given += len(piece)
        if whole and text:
            self._advance()
        return piece

    def flush(self) -> str:
        """What is still held back; call it once, after the last token."""
        return self._window_text()[self._given :]

    def _window_text(self) -> str:
        return self._tokenizer.decode(self._context + self._window)[len(self._context_text) :]

    def _advance(self) -> None:
        self._context, self._window, self._given = self._window, [], 0
        self._context_text = self._tokenizer.decode(self._context)


class StopChecker:
    """Finds stop strings in a stream of text, across the borders of its pieces, and cuts them off.

    The stop string that is *complete* first wins (of those, the longest), so that the result does not depend on how
    the text was cut into pieces. Text that may be the beginning of a stop string is held back.
    """

    def __init__(self, stops: Iterable[str]) -> None:
        self._stops = tuple(stops)
        self._longest = max(map(len, self._stops), default=0)
        self._held = ""
        self.stopped = False

    def push(self, piece: str, *, may_stop: bool = True) -> str:
        """The part of the text up to here that is certain to belong to the output; sets :attr:`stopped`.

        Where it may not stop yet, a stop string that is complete is text like any other.
        """
        if self.stopped:
            return ""
        text = self._held + piece
        start = self._first_stop(text) if may_stop else None
        if start is not None:
            self.stopped = True
            self._held = ""
            return text[:start]
        keep = self._possible_beginning(text)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def flush(self) -> str:
        """What was held back, when no more text comes."""
        held, self._held = self._held, ""
        return held

    def _first_stop(self, text: str) -> int | None:
        """Where the stop string begins that ends first."""
        found = [(start + len(stop), start) for stop in self._stops if (start := text.find(stop)) >= 0]
        return min(found)[1] if found else None

    def _possible_beginning(self, text: str) -> int:
        """Length of the longest end of ``text`` with which a stop string begins."""
        for length in range(min(len(text), self._longest - 1), 0, -1):
            if any(stop.startswith(text[-length:]) for stop in self._stops):
                return length
        return 0
