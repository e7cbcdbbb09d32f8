"""Prompts: exact lengths, the same each time, different from each other, real text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workloads.errors import WorkloadError
from workloads.prompts import PromptWriter, read_corpus


def by_bytes(text: str) -> list[int]:
    return list(text.encode())


def by_words(text: str) -> list[int]:
    """One id a word, from its bytes: some five characters a token."""
    return [int.from_bytes(word.encode()) for word in text.split()]


@settings(deadline=None)
@given(st.integers(0, 2**40), st.integers(0, 10**6), st.integers(1, 3000), st.sampled_from([by_bytes, by_words]))
def test_prompts_have_exactly_the_asked_length_every_time(
    seed: int, index: int, tokens: int, encode: Callable[[str], list[int]]
) -> None:
    prompt = PromptWriter(encode, seed=seed).prompt(index, tokens)
    assert len(prompt) == tokens
    assert prompt == PromptWriter(encode, seed=seed).prompt(index, tokens)


def test_a_prompt_is_text_of_the_corpus_after_its_number() -> None:
    text = bytes(PromptWriter(by_bytes, seed=1).prompt(41, 2000)).decode(errors="ignore")
    number, *sentences = text.split("\n")
    assert number == "42."
    assert set(sentences[:-1]) <= set(read_corpus())
    assert len(sentences) == len(set(sentences))


@pytest.mark.parametrize(("tokens", "count"), [(4, 999), (7, 3000), (32, 3000)])
def test_prompts_of_different_requests_differ(tokens: int, count: int) -> None:
    writer = PromptWriter(by_bytes, seed=5)
    assert len({writer.prompt(index, tokens) for index in range(count)}) == count


def test_prompts_share_no_first_block_by_chance() -> None:
    writer = PromptWriter(by_bytes, seed=5)
    assert len({writer.prompt(index, 16) for index in range(2000)}) == 2000


def test_another_seed_gives_another_order() -> None:
    assert PromptWriter(by_bytes, seed=1).prompt(0, 300) != PromptWriter(by_bytes, seed=2).prompt(0, 300)


def test_a_prompt_longer_than_the_corpus_goes_through_it_again_in_another_order() -> None:
    sentences = read_corpus()
    lines = PromptWriter(by_bytes, seed=1).text(0, 3 * sum(map(len, sentences))).split("\n")[1:]
    first, second = lines[: len(sentences)], lines[len(sentences) : 2 * len(sentences)]
    assert sorted(first) == sorted(second) == sorted(sentences)
    assert first != second


def test_every_sentence_is_as_likely_to_come_first() -> None:
    writer = PromptWriter(by_bytes, seed=9, sentences=["a", "b", "c", "d"])
    counts = Counter(writer.text(index, 8).split("\n")[1] for index in range(4000))
    assert all(abs(count - 1000) < 150 for count in counts.values())


def test_the_corpus_is_varied_and_clean() -> None:
    sentences = read_corpus()
    assert len(sentences) >= 150
    assert len(set(sentences)) == len(sentences)
    assert all(line == line.strip() for line in sentences)
    text = "".join(sentences)
    assert any("\u4e00" <= character <= "\u9fff" for character in text)
    assert any(character >= "\U0001f300" for character in text)


def test_lengths_below_one_are_refused() -> None:
    with pytest.raises(WorkloadError, match="prompt 3: 0 tokens asked for"):
        PromptWriter(by_bytes, seed=1).prompt(3, 0)


def test_a_tokenizer_that_gives_nothing_is_an_error_and_not_an_endless_loop() -> None:
    with pytest.raises(WorkloadError, match="check that it encodes text"):
        PromptWriter(lambda _: [], seed=1).prompt(0, 5)


def test_a_corpus_of_nothing_is_refused() -> None:
    with pytest.raises(WorkloadError, match="at least one sentence"):
        PromptWriter(by_bytes, seed=1, sentences=["", ""])
