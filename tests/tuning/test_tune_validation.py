"""The best settings on the engine, on a random model: run, gone on with, judged, and costs fitted again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import bench
from core.runs import Session
from reports.run_folder import load_run
from reports.slo import Slo
from reports.validation import Compared
from tuning import validation
from tuning.objectives import Objective
from tuning.setting import Setting
from tuning.validation import Entrant, entrants, stretch_of
from workloads.workload import Row, Workload

GOODPUT = Objective("goodput", Slo({"ttft_ms": 100.0}))


def tuned(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "tuning.json").read_text())
    return found


@pytest.fixture
def argv(given: list[str], space: Path, tmp_path: Path) -> list[str]:
    return [*given, "--space", str(space), "--out", str(tmp_path / "out"), "--validate-top", "1", "--validate-requests",
            "10", "--validate-rounds", "1"]  # fmt: skip


@pytest.mark.usefixtures("small_model")
def test_the_best_and_the_baselines_are_run_and_judged(
    argv: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    code = bench.main([*argv, "--rounds", "1"])
    out = tmp_path / "out"
    found = tuned(out)["validation"]
    assert code == (0 if found["stands"] else 1)
    titles = [one["title"] for one in found["settings"]]
    assert titles[-1] == "fcfs" or "fcfs" in titles
    assert found["requests"] == 10
    for place, one in enumerate(found["settings"], 1):
        real = load_run(out / "validation" / f"real-{place}-1")
        assert real.summary["requests"]["finished"] == 10
        assert one["measured"] == real.summary["goodput_per_s"]
        assert one["predicted"] == load_run(out / "validation" / f"sim-{place}").summary["goodput_per_s"]
        assert one["replayed"]
        assert one["error"] == pytest.approx(one["predicted"] / one["measured"] - 1)
    assert "On the engine" in (out / "report.md").read_text()
    assert found["text"].rstrip(".") in (out / "report.html").read_text().replace("&#x27;", "'")

    def measure(*_: Any, **__: Any) -> None:
        raise AssertionError("what has been run is not run again")

    monkeypatch.setattr(Session, "measure", measure)
    monkeypatch.setitem(__import__("sys").modules, "optuna", None)
    assert bench.main([*argv, "--rounds", "1"]) == code
    assert tuned(out)["validation"] == found


@pytest.mark.usefixtures("small_model")
def test_costs_are_fitted_again_where_a_recommendation_does_not_stand(
    argv: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    monkeypatch.setattr(validation, "_verdict", lambda *_: (False, "It is not so."))
    assert bench.main([*argv, "--rounds", "2", "--validate-requests", "40"]) == 1
    out = tmp_path / "out"
    again = tuned(out / "round-2")
    assert again["costs"] == [str(out / "validation" / "costs.csv.xz")]
    assert again["validation"]["stands"] is False
    assert not (out / "round-2" / "round-3").exists()
    errors = [abs(one["error"]) for one in again["validation"]["settings"]]
    before = [abs(one["error"]) for one in tuned(out)["validation"]["settings"]]
    assert len(errors) >= 2
    assert before, "of the first round"


# -- what is run, and what is said of it


def test_baselines_are_run_once_and_the_recommended_first() -> None:
    fcfs, srpt, sjf = ({"policy": name} for name in ("fcfs", "srpt", "sjf"))
    result: dict[str, Any] = {
        "recommended": {"setting": srpt, "is_baseline": False},
        "finalists": [{"setting": setting} for setting in (srpt, fcfs, sjf)],
        "baselines": [{"title": "fcfs", "setting": fcfs, "failed": ""}],
    }
    found = [(one.title, one.setting.policy) for one in entrants(result, 2)]
    assert found == [("recommended", "srpt"), ("", "sjf"), ("fcfs", "fcfs")]
    assert [one.title for one in entrants(result, 1)] == ["recommended", "fcfs"]
    result["recommended"] = {"setting": fcfs, "is_baseline": True}
    assert [one.setting.policy for one in entrants(result, 1)] == ["srpt", "fcfs"]


def test_the_busiest_minute_is_played() -> None:
    rows = tuple(Row(i * 10**9, 1000 if 200 <= i < 260 else 10, 5, 64) for i in range(400))
    stretch = stretch_of(Workload("mine", rows, "made"), 60.0, None)
    assert stretch.rows[0].arrival_ns == 0
    assert 60 <= len(stretch) <= 61
    assert sum(row.prompt_tokens == 1000 for row in stretch.rows) == 60
    assert 10 <= len(stretch_of(Workload("mine", rows, "made"), 10.0, None)) <= 11
    assert len(stretch_of(Workload("mine", rows, "made"), 60.0, 7)) == 7


@pytest.mark.parametrize(
    ("best", "other", "base", "stands", "said"),
    [
        ((11.0, 11.2), (10.5, 10.7), (10.0, 10.1), True, "nothing that was run is clearly better"),
        ((9.0, 9.2), (8.5, 8.7), (10.0, 10.1), False, "is measured to be"),
        ((10.0, 10.3), (9.0, 9.1), (10.1, 10.2), False, "within the spread of the rounds"),
        ((11.0, 11.1), (12.0, 12.1), (10.0, 10.1), False, "better than the recommendation"),
        ((11.0, 11.4), (11.2, 11.5), (10.0, 10.1), True, "nothing that was run is clearly better"),
    ],
)
def test_a_recommendation_stands_where_the_rounds_say_so(
    best: tuple[float, ...], other: tuple[float, ...], base: tuple[float, ...], stands: bool, said: str
) -> None:
    settings = [Entrant(title, Setting.of({"policy": name}))
                for title, name in (("recommended", "srpt"), ("", "sjf"), ("fcfs", "fcfs"))]  # fmt: skip
    figures = [Compared("objective", rounds, 10.0) for rounds in (best, other, base)]
    found, text = validation._verdict(GOODPUT, settings, figures, 2)
    assert found is stands
    assert said in text


def test_rankings_are_compared_over_all_pairs() -> None:
    figures = [Compared("objective", (measured,), simulated) for measured, simulated in ((3, 3), (2, 1), (1, 2))]
    assert validation._tau(figures) == pytest.approx(1 / 3)
