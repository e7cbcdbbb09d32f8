"""Prompts of real text with an exact number of tokens, the same in every process for the same seed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from importlib.resources import files

from workloads.counter_hash import stream_start, word
from workloads.errors import WorkloadError
from workloads.workload import PREFIX_BLOCK_TOKENS

#: text is made long enough in one go for most tokenizers: English has four to five characters a token
CHARACTERS_PER_TOKEN = 6
#: no tokenizer of text puts this many characters into one token on average
MOST_CHARACTERS_PER_TOKEN = 100
#: encoded shared blocks that are kept, of the last ones used
KEPT_BLOCKS = 2048
#: sets the streams of shared blocks apart from those of requests
_SHARED = 1


def read_corpus() -> tuple[str, ...]:
    """The sentences that prompts are made of, one a line: English, some Chinese, code and emoji, written for this."""
    text = files("workloads").joinpath("corpus.txt").read_text(encoding="utf-8")
    return tuple(line for line in text.splitlines() if line)


class PromptWriter:
    """Writes the prompt of request ``index``: its number, then the corpus in an order of its own.

    ``encode`` turns text into token ids and must add no special tokens. The number comes first so that no two prompts
    share their first block of tokens by chance, which a prefix cache would count as a hit.

    A prompt may begin with blocks that other prompts have too. The tokens of such a block depend on its id and the
    seed alone, and each block is encoded by itself, so that prompts with the same ids begin with the same tokens.
    """

    def __init__(
        self, encode: Callable[[str], Sequence[int]], *, seed: int, sentences: Sequence[str] | None = None
    ) -> None:
        self._encode = encode
        self._seed = seed
        self._sentences = read_corpus() if sentences is None else tuple(sentences)
        if not any(self._sentences):
            raise WorkloadError("prompts need at least one sentence that is not empty")
        self._block = lru_cache(KEPT_BLOCKS)(self._encoded_block)

    def prompt(
        self,
        index: int,
        tokens: int,
        prefix_ids: Sequence[int] = (),
        prefix_block_tokens: int = PREFIX_BLOCK_TOKENS,
    ) -> tuple[int, ...]:
        """Token ids of the prompt of request ``index`` (from 0), exactly ``tokens`` of them.

        They are the shared blocks ``prefix_ids``, of ``prefix_block_tokens`` each, as far as they go, and then text
        of the request's own. The text is encoded as a whole and cut. Prompts of different requests differ as soon as
        their own text has room for the number: one token more than it has digits. Raises :class:`WorkloadError` when
        ``tokens`` is below 1 or the tokenizer gives nearly nothing for the text.
        """
        if tokens < 1:
            raise WorkloadError(f"prompt {index}: {tokens} tokens asked for; must be >= 1")
        ids: list[int] = []
        for prefix_id in prefix_ids:
            if len(ids) >= tokens:
                break
            ids.extend(self._block(prefix_id, prefix_block_tokens))
        own = tokens - len(ids)
        if own > 0:
            ids.extend(self._encoded(lambda characters: self.text(index, characters), own, f"prompt {index}"))
        return tuple(ids[:tokens])

    def text(self, index: int, characters: int) -> str:
        """At least ``characters`` of the text that the prompt of request ``index`` is cut from."""
        return self._lines(f"{index + 1}.", characters, self._seed, index)

    def _encoded_block(self, prefix_id: int, tokens: int) -> tuple[int, ...]:
        def text(characters: int) -> str:
            return self._lines(f"[{prefix_id}]", characters, self._seed, prefix_id, _SHARED)

        return tuple(self._encoded(text, tokens, f"shared block {prefix_id}"))

    def _encoded(self, text: Callable[[int], str], tokens: int, what: str) -> Sequence[int]:
        """The first ``tokens`` token ids of a text that is made as long as it has to be."""
        characters = tokens * CHARACTERS_PER_TOKEN
        while True:
            ids = self._encode(text(characters))
            if len(ids) >= tokens:
                return ids[:tokens]
            if characters > tokens * MOST_CHARACTERS_PER_TOKEN:
                raise WorkloadError(
                    f"{what}: the tokenizer made {len(ids)} tokens of {characters} characters where {tokens} are "
                    "wanted; check that it encodes text"
                )
            characters *= 2

    def _lines(self, number: str, characters: int, *stream: int) -> str:
        """``number`` and then the corpus in the order of ``stream``, at least so many characters."""
        lines = [number]
        length = len(number)
        for sentence in self._order(*stream):
            if length >= characters:
                break
            lines.append(sentence)
            length += 1 + len(sentence)
        return "\n".join(lines)

    def _order(self, *stream: int) -> Iterator[str]:
        """The corpus in random order, then again in another one, without end (Fisher and Yates, as far as needed)."""
        start = stream_start(*stream)
        position = 0
        while True:
            pool = list(self._sentences)
            while pool:
                chosen = word(start, position) % len(pool)
                position += 1
                pool[chosen], pool[-1] = pool[-1], pool[chosen]
                yield pool.pop()
