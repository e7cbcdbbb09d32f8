"""Prompts of real text with an exact number of tokens, the same in every process for the same seed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from importlib.resources import files

from workloads.counter_hash import stream_start, word
from workloads.errors import WorkloadError

#: text is made long enough in one go for most tokenizers: English has four to five characters a token
CHARACTERS_PER_TOKEN = 6
#: no tokenizer of text puts this many characters into one token on average
MOST_CHARACTERS_PER_TOKEN = 100


def read_corpus() -> tuple[str, ...]:
    """The sentences that prompts are made of, one a line: English, some Chinese, code and emoji, written for this."""
    text = files("workloads").joinpath("corpus.txt").read_text(encoding="utf-8")
    return tuple(line for line in text.splitlines() if line)


class PromptWriter:
    """Writes the prompt of request ``index``: its number, then the corpus in an order of its own.

    ``encode`` turns text into token ids and must add no special tokens. The number comes first so that no two prompts
    share their first block of tokens by chance, which a prefix cache would count as a hit.
    """

    def __init__(
        self, encode: Callable[[str], Sequence[int]], *, seed: int, sentences: Sequence[str] | None = None
    ) -> None:
        self._encode = encode
        self._seed = seed
        self._sentences = read_corpus() if sentences is None else tuple(sentences)
        if not any(self._sentences):
            raise WorkloadError("prompts need at least one sentence that is not empty")

    def prompt(self, index: int, tokens: int) -> tuple[int, ...]:
        """Token ids of the prompt of request ``index`` (from 0), exactly ``tokens`` of them.

        The text is encoded as a whole and cut. Prompts of different requests differ as soon as they have room for the
        number: one token more than it has digits. Raises :class:`WorkloadError` when ``tokens`` is below 1 or the
        tokenizer gives nearly nothing for the text.
        """
        if tokens < 1:
            raise WorkloadError(f"prompt {index}: {tokens} tokens asked for; must be >= 1")
        characters = tokens * CHARACTERS_PER_TOKEN
        while True:
            ids = self._encode(self.text(index, characters))
            if len(ids) >= tokens:
                return tuple(ids[:tokens])
            if characters > tokens * MOST_CHARACTERS_PER_TOKEN:
                raise WorkloadError(
                    f"prompt {index}: the tokenizer made {len(ids)} tokens of {characters} characters where {tokens} "
                    "are wanted; check that it encodes text"
                )
            characters *= 2

    def text(self, index: int, characters: int) -> str:
        """At least ``characters`` of the text that the prompt of request ``index`` is cut from."""
        lines = [f"{index + 1}."]
        length = len(lines[0])
        for sentence in self._order(index):
            if length >= characters:
                break
            lines.append(sentence)
            length += 1 + len(sentence)
        return "\n".join(lines)

    def _order(self, index: int) -> Iterator[str]:
        """The corpus in random order, then again in another one, without end (Fisher and Yates, as far as needed)."""
        start = stream_start(self._seed, index)
        position = 0
        while True:
            pool = list(self._sentences)
            while pool:
                chosen = word(start, position) % len(pool)
                position += 1
                pool[chosen], pool[-1] = pool[-1], pool[chosen]
                yield pool.pop()
