"""A validation matrix in figures: errors, spreads, targets and rankings of cells made by hand."""

from __future__ import annotations

import pytest

from reports.validation import CellResult, Compared, Ranking, markdown, ranking, table, verdict_lines


def cell(policy: str, load: float, *figures: Compared, replayed: bool = True) -> CellResult:
    return CellResult(
        f"chat-{policy}", "shape:tiny", "chat", policy, "paged", load, 4.0, 100, figures, replayed=replayed
    )


def test_errors_are_relative_to_the_mean_of_the_rounds_and_judged_by_target_or_spread() -> None:
    close = Compared("e2e_ms.p50", (100.0, 102.0, 98.0), 102.9)
    assert close.mean == 100
    assert close.error == pytest.approx(0.029)
    assert close.spread == pytest.approx(0.04)
    assert Compared("e2e_ms.p50", (100.0,), 100.0).spread is None
    assert not close.within_spread
    assert close.met
    noisy = Compared("e2e_ms.p99", (100.0, 140.0), 138.0)
    assert noisy.error == pytest.approx(0.15)
    assert noisy.met
    far = Compared("e2e_ms.mean", (100.0, 101.0), 110.0)
    assert not far.met
    # throughput has a target of its own
    assert not Compared("output_tokens_per_s", (100.0, 100.0), 102.0).met
    assert Compared("output_tokens_per_s", (100.0, 100.0), 100.9).met


def test_beyond_capacity_only_throughput_is_judged() -> None:
    rate = Compared("output_tokens_per_s", (10.0,), 11.0)
    latency = Compared("e2e_ms.mean", (10.0,), 20.0)
    assert cell("fcfs", 0.9, rate, latency).judged == (rate, latency)
    assert cell("fcfs", 1.1, rate, latency).judged == (rate,)


def test_policies_are_ranked_where_the_rounds_tell_them_apart() -> None:
    def mean(rounds: tuple[float, ...], simulated: float) -> Compared:
        return Compared("e2e_ms.mean", rounds, simulated)

    cells = [
        cell("fcfs", 0.9, mean((10.0, 11.0), 10.0)),
        cell("srpt", 0.9, mean((5.0, 6.0), 5.0)),
        # measured between the two, simulated above both
        cell("sjf", 0.9, mean((8.0, 9.0), 12.0)),
        # overlaps with fcfs
        cell("hrrn", 0.9, mean((10.5, 12.0), 11.0)),
        # run once: nobody knows its spread
        cell("trail", 0.9, mean((1.0,), 50.0)),
        # another load is another group
        cell("fcfs", 0.5, mean((1.0, 1.0), 9.0)),
    ]
    found = ranking(cells, "e2e_ms.mean")
    # fcfs-srpt, srpt-sjf and srpt-hrrn alike; fcfs-sjf and sjf-hrrn not
    assert found == Ranking("e2e_ms.mean", alike=3, unlike=2, ties=1)
    assert found.tau == pytest.approx(0.2)
    assert ranking(cells[:1], "e2e_ms.mean").tau is None


def test_the_table_and_the_page_hold_every_cell() -> None:
    cells = [
        cell(
            "fcfs", 0.9, Compared("output_tokens_per_s", (10.0, 10.1), 10.0), Compared("e2e_ms.mean", (5.0, 5.0), 6.0)
        ),
        cell("srpt", 1.1, Compared("e2e_ms.mean", (4.0, 4.0), 6.0), replayed=False),
    ]
    rows = table(cells)
    assert list(rows["figure"]) == ["output_tokens_per_s", "e2e_ms.mean", "e2e_ms.mean"]
    assert list(rows["error"].round(3)) == [-0.005, 0.2, 0.5]
    page = markdown(cells)
    # judged and missed: marked; beyond capacity: not
    assert "| +20.0 (0.0) **!** |" in page
    assert "| +50.0 (0.0) |" in page
    assert "in every round of 1 of 2 cells" in page
    assert any(line.startswith("- Throughput: 1 of 1 figures within 1 %") for line in verdict_lines(cells))
