"""Judging claims: every outcome and every verdict can come out, from figures that are made up here."""

from __future__ import annotations

import json
from collections.abc import Sequence

import pytest

from reports.claims import (
    Answer,
    Cell,
    Claim,
    Measured,
    Reading,
    Results,
    Spread,
    answer,
    as_csv,
    contrast,
    contrast_lines,
    judge,
    number,
)
from reports.claims_page import claims_html, claims_markdown


def rates(*values: float, figure: str = "rate") -> Measured:
    """Runs that gave these values of one figure, a round each."""
    return Measured({round_: {figure: value} for round_, value in enumerate(values)})


TWICE = Reading("twice", "rate", "after", "at least", 2.0, before="before", quantity="ratio", unit="tok/s")


@pytest.mark.parametrize(
    ("after", "outcome"),
    [((20, 42), "true"), ((19, 39), "false"), ((20, 39), "rounds disagree"), ((), "not measured")],
)
def test_a_reading_is_true_if_every_round_says_so(after: Sequence[float], outcome: str) -> None:
    judged = judge(TWICE, {"before": rates(10, 20), "after": rates(*after)})
    assert judged.outcome == outcome


def test_rounds_are_compared_with_themselves() -> None:
    judged = judge(TWICE, {"before": rates(1, 100), "after": rates(2, 200)})
    assert judged.outcome == "true"
    assert judged.spread is not None
    assert judged.spread.values == (2.0, 2.0)
    assert (judged.before, judged.after, judged.n) == (50.5, 101, 2)


def test_a_round_that_one_run_lacks_does_not_count() -> None:
    judged = judge(TWICE, {"before": rates(1, 1), "after": rates(2, 2, 1)})
    assert (judged.outcome, judged.n) == ("true", 2)


@pytest.mark.parametrize(
    ("quantity", "relation", "bound", "true_after", "false_after"),
    [
        ("ratio", "above", 1.0, 11, 10),
        ("growth", "at most", -0.33, 6.6, 6.8),
        ("drop", "at least", 0.83, 1.7, 1.8),
        ("difference", "at most", -3.0, 7, 7.1),
        ("after", "below", 5.0, 4.9, 5),
        ("to lowest", "at most", 1.0, 10, 10.1),
        ("to highest", "at least", 1.0, 30, 29),
    ],
)
def test_every_quantity_can_come_out_both_ways(
    quantity: str, relation: str, bound: float, true_after: float, false_after: float
) -> None:
    best = quantity.startswith("to ")
    reading = Reading(
        "r", "rate", "after", relation, bound, before=None if best else "before",  # type: ignore[arg-type]
        others=("before", "other") if best else (), quantity=quantity,  # type: ignore[arg-type]
    )  # fmt: skip
    runs = {"before": rates(10), "other": rates(30)}
    assert judge(reading, runs | {"after": rates(true_after)}).outcome == "true"
    assert judge(reading, runs | {"after": rates(false_after)}).outcome == "false"


def test_equal_allows_its_tolerance() -> None:
    reading = Reading("r", "rate", "after", "equal", 0.143, tolerance=0.0005)
    assert judge(reading, {"after": rates(0.1434)}).outcome == "true"
    assert judge(reading, {"after": rates(0.1436)}).outcome == "false"


def test_what_is_not_there_says_why() -> None:
    absent = Measured({0: {"other": 1.0}}, absent={"rate": "there is no GPU here"})
    assert judge(TWICE, {"before": rates(1), "after": absent}).reason == "there is no GPU here"
    assert judge(TWICE, {"before": rates(1)}).reason == "not run: after"
    assert "nothing to compare" in judge(TWICE, {"before": rates(0), "after": rates(1)}).reason


def pool(low: float, per_round: int, rounds: int) -> Measured:
    values = [low + place for place in range(per_round)]
    return Measured(samples={round_: {"e2e_ms": values} for round_ in range(rounds)})


def test_a_percentile_of_all_rounds_needs_enough_requests() -> None:
    reading = Reading("p99", "e2e_ms", "after", "at most", -0.5, before="before", quantity="growth", percent=99)
    few = judge(reading, {"before": pool(0, 33, 3), "after": pool(0, 33, 3)})
    assert (few.outcome, few.reason) == ("not measured", "n too small: n = 99, p99 needs 100")
    enough = {"before": pool(1000, 34, 3)}
    assert judge(reading, enough | {"after": pool(0, 34, 3)}).outcome == "true"
    false = judge(reading, enough | {"after": pool(1000, 34, 3)})
    assert (false.outcome, false.n, false.before) == ("false", 102, 1033)


def claim(*readings: Reading) -> Claim:
    return Claim("c", "A claim", "x2", "this", "that", readings, "So it is")


def below(bound: float, kind: str = "literal") -> Reading:
    return Reading(f"below {bound}", "rate", "run", "below", bound, kind=kind)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("readings", "values", "verdict"),
    [
        ((below(5), below(6)), (4, 4), "holds"),
        ((below(5), below(3)), (4, 4), "holds in part"),
        ((below(3), below(2)), (4, 4), "does not hold"),
        ((below(3), below(2)), (4, 2.5), "not decided"),
        ((below(5), below(3, "beside")), (4, 4), "holds"),
        ((below(3), below(5, "beside")), (4, 4), "does not hold"),
        ((below(5),), (), "not measured"),
    ],
)
def test_a_verdict_is_by_the_readings_that_count(
    readings: tuple[Reading, ...], values: Sequence[float], verdict: str
) -> None:
    assert answer(claim(*readings), {"run": rates(*values)}).verdict == verdict


def test_a_claim_that_holds_in_part_says_where() -> None:
    found = answer(claim(below(5), below(3), Reading("gpu", "idle", "run", "below", 1)), {"run": rates(4)})
    assert found.condition() == "true only for: below 5. 1 of 3 readings not measured"


def test_the_interval_is_students() -> None:
    assert Spread((1.0,)).half_width is None
    assert Spread((1.0, 3.0)).half_width == pytest.approx(12.7062, rel=1e-5)


def test_an_experiment_says_where_a_policy_pays() -> None:
    figures = ("prefill_waste", "decode_waste", "decode_batch", "output_tokens_per_s", "e2e_ms.mean")

    def run(*pairs: tuple[float, float]) -> Measured:
        rows = {round_: dict(zip(figures, (0.1, 0.2, 3.0, *pair), strict=True)) for round_, pair in enumerate(pairs)}
        return Measured(rows)

    measured = {"plain": run((10, 100), (10, 100)), "fast": run((11, 101), (12, 99)), "slow": run((9, 101), (8, 102))}
    words = {}
    for name in ("plain", "fast", "slow"):
        found = contrast(Cell("padded", "iteration", name, name, "plain"), measured)
        assert found is not None
        words[name] = (found.word, found.latency_word)
    assert words == {"plain": ("–", "–"), "fast": ("pays", "rounds disagree"), "slow": ("costs", "costs")}
    assert contrast(Cell("padded", "iteration", "x", "missing", "plain"), measured) is None
    cells = [contrast(Cell("padded", "iteration", name, name, "plain"), measured) for name in measured]
    lines = contrast_lines([cell for cell in cells if cell is not None])
    assert lines == [
        "padded, iteration: fast pays (x1.15 tok/s, x1 mean E2E); slow costs (x0.85 tok/s, x1.02 mean E2E)."
    ]


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (2.4, "2.4"), (0.0512, "0.0512"), (1234.5, "1,234"), (-0.333, "−0.333"), (38.25, "38.2"), (100, "100")],
)
def test_numbers_have_three_digits(value: float, text: str) -> None:
    assert number(value) == text


def results() -> tuple[Results, list[Answer]]:
    measured = {"run": rates(4, 4.5), "before": rates(1, 2), "after": rates(3, 3)}
    about = {"machine": "a | machine", "command": "python bench.py", "hardware": "h", "git_commit": "c" * 40}
    found = Results(about, measured)
    return found, [answer(claim(below(5), TWICE, Reading("gpu", "idle", "run", "below", 1)), measured)]


def test_results_come_back_from_their_file() -> None:
    found, _ = results()
    again = Results.from_json(found.as_json())
    assert again == found
    assert again.as_json() == found.as_json()


@pytest.mark.parametrize("text", ["{}", "[]", json.dumps({"schema_version": 99, "runs": {}}), "no"])
def test_what_holds_no_claims_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        Results.from_json(text)


def test_a_table_has_every_reading() -> None:
    lines = as_csv(*results()).splitlines()
    assert len(lines) == 4
    assert lines[2].startswith("a | machine,c,twice,literal,rate,before,after,1.5,3,ratio,2.25,")
    assert lines[3].endswith("not measured,no round has idle in all of its runs")


def test_pages_show_verdicts_and_why() -> None:
    found, answers = results()
    for text in (claims_markdown([(found, answers, [])], "again"), claims_html([(found, answers, [])], "again")):
        assert "holds in part" in text
        assert "rounds disagree" in text
        assert "So it is." in text
        assert "no round has idle in all of its runs" in text


def test_several_machines_stand_beside_each_other() -> None:
    found, answers = results()
    text = claims_markdown([(found, answers, []), (found, answers, [])], "again")
    assert "| claim | as claimed | a / machine | a / machine |" in text
    assert text.count("| below 5 | literal |") == 2
