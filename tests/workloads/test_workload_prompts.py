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


def agreeing(a: tuple[int, ...], b: tuple[int, ...]) -> int:
    return next((n for n, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


@pytest.mark.parametrize("encode", [by_bytes, by_words])
@settings(deadline=None, max_examples=40)
@given(
    st.lists(st.integers(0, 3), max_size=4),
    st.lists(st.integers(0, 3), max_size=4),
    st.integers(1, 400),
    st.integers(1, 400),
)
def test_prompts_with_the_same_prefix_ids_begin_with_the_same_tokens(
    encode: Callable[[str], list[int]], a: list[int], b: list[int], a_tokens: int, b_tokens: int
) -> None:
    writer = PromptWriter(encode, seed=3)
    first = writer.prompt(10, a_tokens, a, 64)
    second = PromptWriter(encode, seed=3).prompt(11, b_tokens, b, 64)
    assert (len(first), len(second)) == (a_tokens, b_tokens)
    shared = min(64 * agreeing(tuple(a), tuple(b)), a_tokens, b_tokens)
    assert shared <= agreeing(first, second)
    # where they part they do so within the few tokens of a number: no block of 16 more is shared
    assert agreeing(first, second) < shared + 16 or shared + 16 > min(a_tokens, b_tokens)


def test_ids_beyond_the_prompt_are_of_no_matter_and_the_rest_is_the_requests_own() -> None:
    writer = PromptWriter(by_bytes, seed=3)
    assert writer.prompt(4, 100, (1, 2, 3), 64) == writer.prompt(5, 100, (1, 2), 64)
    assert writer.prompt(4, 100, (), 64) == writer.prompt(4, 100)
    own = writer.prompt(4, 164, (1,), 64)
    assert own[64:] == writer.prompt(4, 100)


def test_a_shared_block_that_cannot_be_made_is_named() -> None:
    with pytest.raises(WorkloadError, match="shared block 9: the tokenizer made 0 tokens"):
        PromptWriter(lambda _: [], seed=1).prompt(0, 5, (9,))
