"""SplitMix64 by its published outputs, and streams that do not meet."""

import pytest

from workloads.counter_hash import MASK, scramble, stream_start, word, words


def test_words_are_those_of_splitmix64_with_the_same_state() -> None:
    assert [word(1234567, position) for position in range(5)] == [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]
    assert word(0, 0) == 0xE220A8397B1DCDAF


def test_streams_of_different_keys_start_apart() -> None:
    keys = [(seed, index) for seed in range(-5, 60) for index in range(60)] + [(seed,) for seed in range(-5, 60)] + [()]
    assert len({stream_start(*key) for key in keys}) == len(keys)
    assert stream_start(1, 2) != stream_start(2, 1)


def test_scramble_stays_within_64_bits_and_is_one_to_one_on_a_sample() -> None:
    scrambled = {scramble(value) for value in [*range(5000), *range(MASK - 5000, MASK + 1)]}
    assert len(scrambled) == 10_001
    assert all(0 <= value <= MASK for value in scrambled)


@pytest.mark.parametrize("start", [0, 1234567, MASK, stream_start(3, 1)])
def test_words_together_are_those_one_by_one(start: int) -> None:
    for first in (0, 1, 10**9):
        assert words(start, first, 50).tolist() == [word(start, first + i) for i in range(50)]
    assert words(start, 5, 0).tolist() == []
