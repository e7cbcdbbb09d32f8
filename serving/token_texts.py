"""What single tokens look like, for log-probabilities: a token may be a part of a character."""

from __future__ import annotations

from functools import lru_cache

from engine.tokenizer import Tokenizer


def _byte_of_character() -> dict[str, int]:
    """How byte-level tokenizers write bytes: printable ones as themselves, the others moved up beyond Latin-1."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + place): byte for place, byte in enumerate(others)}


_BYTES = _byte_of_character()
_KEPT = 1 << 16


class TokenTexts:
    """Texts and bytes of the tokens of ``tokenizer``; without one a token is its number."""

    def __init__(self, tokenizer: Tokenizer | None) -> None:
        self._tokenizer = tokenizer
        underlying = None if tokenizer is None else tokenizer.underlying
        backend = getattr(underlying, "backend_tokenizer", None)
        self._byte_level = "ByteLevel" in repr(getattr(backend, "decoder", None))
        self._special = frozenset() if underlying is None else frozenset(underlying.added_tokens_decoder)
        self.of = lru_cache(_KEPT)(self._of)

    def _of(self, token_id: int) -> tuple[str, list[int]]:
        """The text and the UTF-8 bytes of a token. Of a part of a character the text is U+FFFD."""
        if self._tokenizer is None:
            text = f"token_id:{token_id}"
            return text, list(text.encode())
        token = self._tokenizer.underlying.convert_ids_to_tokens(token_id)
        if not isinstance(token, str):
            return "", []  # the model's logits are over more than the tokenizer has
        raw = self._raw(token_id, token)
        if raw is not None:
            return raw.decode(errors="replace"), list(raw)
        text = self._tokenizer.literal([token_id])
        return text, list(text.encode())

    def _raw(self, token_id: int, token: str) -> bytes | None:
        if token_id in self._special:
            return token.encode()
        if self._byte_level and all(character in _BYTES for character in token):
            return bytes(_BYTES[character] for character in token)
        if len(token) == len("<0x00>") and token.startswith("<0x") and token.endswith(">"):
            return bytes.fromhex(token[3:5])
        return None
