from __future__ import annotations

from pathlib import Path

import pandas as pd
from handmade_runs import HandMade

from reports.sampling import sampled


def many(folder: Path) -> pd.DataFrame:
    """400 requests of which a few are remarkable, each in one way."""
    run = HandMade(folder)
    for number in range(400):
        wait = 900 if number == 7 else 1
        late = 5000 if number == 100 else 1
        took = 20_000 if number == 250 else 40
        first = number + wait + late
        counts = {"preemptions": 3} if number == 333 else None
        run.request(number, number, number + wait, first, first + took, output=5, counts=counts)
    run.request(400, 1, finish=90, state="aborted", reason="aborted")
    run.request(401, 1, state="rejected", reason="too long")
    return run.close(report=False).requests


def test_few_requests_are_all_kept_but_those_that_were_turned_away(tmp_path: Path) -> None:
    assert sampled(many(tmp_path / "run"), 1000) == list(range(401))


def test_the_tails_are_kept(tmp_path: Path) -> None:
    kept = sampled(many(tmp_path / "run"), 60)
    assert len(kept) == 60
    assert {7, 100, 250, 333, 400} <= set(kept)
    others = [number for number in kept if number not in (7, 100, 250, 333, 400)]
    # the rest is from everywhere
    assert min(others) < 30
    assert max(others) > 370
    assert kept == sorted(kept)
