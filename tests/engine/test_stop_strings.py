"""Stop strings are found and cut off wherever the borders of the tokens lie."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from engine.tokenizer import StopChecker


def run(stops: tuple[str, ...], pieces: list[str]) -> tuple[list[str], bool]:
    checker = StopChecker(stops)
    given_out = []
    for piece in pieces:
        given_out.append(checker.push(piece))
        if checker.stopped:
            return given_out, True
    given_out.append(checker.flush())
    return given_out, False


def test_a_stop_string_over_several_pieces_is_cut_off() -> None:
    assert run(("END",), ["one E", "N", "D two"]) == (["one ", "", ""], True)


def test_a_beginning_that_comes_to_nothing_is_given_back() -> None:
    assert run(("END",), ["one E", "Nd", " two"]) == (["one ", "ENd", " two", ""], False)


def test_what_is_held_at_the_end_is_flushed() -> None:
    assert run(("END",), ["one EN"]) == (["one ", "EN"], False)


def test_the_stop_string_that_is_complete_first_wins() -> None:
    assert run(("abcd", "bc"), ["abcd"]) == (["a"], True)


def test_without_stop_strings_everything_passes() -> None:
    assert run((), ["a", "b"]) == (["a", "b", ""], False)


@given(
    st.text("ab ", max_size=20),
    st.lists(st.text("ab ", min_size=1, max_size=4), max_size=3),
    st.lists(st.integers(0, 20), max_size=6),
)
def test_the_result_does_not_depend_on_the_borders(text: str, stops: list[str], cuts: list[int]) -> None:
    borders = [0, *sorted(cut for cut in cuts if cut <= len(text)), len(text)]
    pieces = [text[start:end] for start, end in zip(borders, borders[1:], strict=False)]
    one_by_one, stopped = run(tuple(stops), list(text))
    in_pieces, also_stopped = run(tuple(stops), pieces)
    assert "".join(one_by_one) == "".join(in_pieces)
    assert stopped == also_stopped == any(stop in text for stop in stops)
    assert not any(stop in "".join(one_by_one) for stop in stops)
