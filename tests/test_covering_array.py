"""The covering array covers what it says, with few rows, and the same ones each time."""

from __future__ import annotations

from itertools import product
from typing import Any

from covering_array import Row, all_pairs, covering_array, pairs_in

PARAMETERS: dict[str, list[Any]] = {
    "policy": ["a", "b", "c", "d", "e"],
    "layout": ["x", "y"],
    "pool": [None, 1, 2],
    "phase": [None, "first", "mixed"],
    "overlap": [False, True],
}


def rule(row: Row) -> bool:
    """As compositions are refused: ``b`` needs overlap, ``x`` does not mix, and so on."""
    if row["policy"] == "b" and not row["overlap"]:
        return False
    if row["policy"] == "c" and (row["pool"] != 2 or row["phase"] != "first"):
        return False
    return not (row["layout"] == "x" and row["phase"] == "mixed")


def test_every_pair_is_covered() -> None:
    rows, impossible = covering_array(PARAMETERS)
    assert impossible == []
    covered = {pair for row in rows for pair in pairs_in(row)}
    assert covered == set(all_pairs(PARAMETERS))


def test_it_takes_few_rows() -> None:
    rows, _ = covering_array(PARAMETERS)
    # no array can have fewer rows than its two largest parameters have pairs
    assert 5 * 3 <= len(rows) <= 5 * 3 + 3
    ten = {f"p{n}": [0, 1, 2] for n in range(10)}
    assert len(covering_array(ten).rows) <= 24


def test_rules_are_kept_and_only_what_they_forbid_is_missing() -> None:
    rows, impossible = covering_array(PARAMETERS, rule)
    assert all(map(rule, rows))
    possible = {
        pair
        for values in product(*PARAMETERS.values())
        if rule(row := dict(zip(PARAMETERS, values, strict=True)))
        for pair in pairs_in(row)
    }
    covered = {pair for row in rows for pair in pairs_in(row)}
    assert covered == possible
    assert set(impossible) == set(all_pairs(PARAMETERS)) - possible
    assert impossible


def test_it_is_the_same_each_time() -> None:
    assert covering_array(PARAMETERS, rule) == covering_array(PARAMETERS, rule)


def test_rows_keep_the_order_of_the_parameters() -> None:
    assert all(list(row) == list(PARAMETERS) for row in covering_array(PARAMETERS, rule).rows)
