"""What ``--workload`` and its companions make together."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from workloads.errors import WorkloadError
from workloads.load import load_workload
from workloads.presets import build_preset
from workloads.workload import Row, Workload

TRACES = Path(__file__).resolve().parents[3] / "shared" / "traces"


@pytest.fixture
def trace(tmp_path: Path) -> str:
    path = tmp_path / "mine.csv"
    path.write_text("arrival_s,input_tokens,output_tokens\n0,10,1\n6,30,3\n4,20,2\n", encoding="utf-8")
    return str(path)


def load(
    spec: str,
    requests: int | None = None,
    rate: float | None = None,
    arrivals: str | None = None,
    time_scale: float | None = None,
    trace_format: str | None = None,
) -> Workload:
    return load_workload(
        spec,
        rng=random.Random(3),
        requests=requests,
        rate=rate,
        arrivals=arrivals,
        time_scale=time_scale,
        trace_format=trace_format,
    )


def test_a_preset_name_gives_the_preset() -> None:
    direct = build_preset("chat", rng=random.Random(3), requests=20, rate=2.0, arrivals="poisson", time_scale=3.0)
    assert load("chat", requests=20, rate=2.0, arrivals="poisson", time_scale=3.0) == direct


def test_a_trace_plays_its_own_times_by_default(trace: str) -> None:
    workload = load(trace)
    assert workload.name == "mine"
    assert workload.rows == (Row(0, 10, 1, 2048), Row(4 * 10**9, 20, 2, 2048), Row(6 * 10**9, 30, 3, 2048))
    assert workload.source == (
        "mine.csv (csv format), all 3 requests (1 rows were out of order and sorted), arrivals as recorded"
    )


def test_requests_takes_the_first_in_order_of_arrival(trace: str) -> None:
    workload = load(trace, requests=2)
    assert [row.prompt_tokens for row in workload.rows] == [10, 20]
    assert "the first 2 of 3 requests" in workload.source


def test_arrivals_may_be_replaced_at_the_traces_mean_rate(trace: str) -> None:
    workload = load(trace, arrivals="constant")
    assert [row.arrival_ns for row in workload.rows] == [0, 3 * 10**9, 6 * 10**9]
    assert [row.prompt_tokens for row in workload.rows] == [10, 20, 30]
    assert "constant arrivals at 0.333333/s" in workload.source
    assert {row.arrival_ns for row in load(trace, arrivals="all-at-once").rows} == {0}


def test_a_rate_and_a_time_scale_apply(trace: str) -> None:
    assert [row.arrival_ns for row in load(trace, arrivals="constant", rate=2.0).rows] == [0, 500_000_000, 10**9]
    assert [row.arrival_ns for row in load(trace, time_scale=2.0).rows] == [0, 8 * 10**9, 12 * 10**9]
    assert "Poisson arrivals at 2/s" in load(trace, rate=2.0).source


def test_lengths_without_times_need_arrivals(tmp_path: Path) -> None:
    path = tmp_path / "lengths.csv"
    path.write_text("num_prefill_tokens,num_decode_tokens\n5,6\n7,8\n", encoding="utf-8")
    with pytest.raises(WorkloadError, match=r"lengths.csv has lengths but no arrival times; give a rate \(--rate R\)"):
        load(str(path))
    with pytest.raises(WorkloadError, match="has no rate of its own"):
        load(str(path), arrivals="poisson")
    assert [row.arrival_ns for row in load(str(path), arrivals="constant", rate=1.0).rows] == [0, 10**9]


@pytest.mark.parametrize(
    ("spec", "complaint"),
    [
        (
            "sead",
            r"workload 'sead': no such file, and no such preset; did you mean preset 'seed'\? presets: seed, tour, ",
        ),
        ("CHAT", r"did you mean preset 'chat'\?"),
        ("zzz.csv", "workload 'zzz.csv': no such file, and no such preset; presets: seed"),
        ("", "workload '': no such file"),
        ("x" * 5000, "no such file"),
        ("nul\0byte", r"workload 'nul\\x00byte': no such file"),
        ("elsewhere/AzureLLMInferenceTrace_conv.csv", "no such file; it can be had from https://"),
    ],
)
def test_a_name_that_is_neither_preset_nor_file_is_told_both(spec: str, complaint: str) -> None:
    with pytest.raises(WorkloadError, match=complaint) as caught:
        load(spec)
    assert len(str(caught.value).splitlines()) == 1


def test_more_requests_than_rows_is_an_error_with_both_numbers(trace: str) -> None:
    with pytest.raises(WorkloadError, match=r"mine.csv: has 3 requests and 4 were asked for"):
        load(trace, requests=4)
    with pytest.raises(WorkloadError, match="0 requests asked for; must be >= 1"):
        load(trace, requests=0)


def test_settings_without_an_effect_are_errors(trace: str) -> None:
    with pytest.raises(WorkloadError, match="trace format 'azure' has no effect on preset seed"):
        load("seed", trace_format="azure")
    with pytest.raises(WorkloadError, match="rate 3 has no effect on arrivals trace"):
        load(trace, arrivals="trace", rate=3.0)


def test_a_folder_is_not_a_trace(tmp_path: Path) -> None:
    with pytest.raises(WorkloadError, match="is a folder; give a trace file"):
        load(str(tmp_path))


def test_a_file_named_like_a_preset_is_reached_by_its_path(tmp_path: Path) -> None:
    path = tmp_path / "seed"
    path.write_text("arrival_s,input_tokens,output_tokens\n0,10,1\n", encoding="utf-8")
    assert len(load(str(path))) == 1


@pytest.mark.skipif(not TRACES.is_dir(), reason="the public traces are not next to the checkout")
def test_the_azure_conversation_trace_has_its_published_figures() -> None:
    workload = load(str(TRACES / "AzureLLMInferenceTrace_conv.csv"))
    summary = workload.summary()
    assert summary.requests == 19_366
    assert (summary.prompt.median, summary.prompt.p99) == (1020, 4142)
    assert (summary.output.median, summary.output.p99) == (129, 601)
    assert summary.rate_per_s == pytest.approx(5.53, abs=0.005)
    assert summary.arrival_cv == pytest.approx(1.09, abs=0.005)
    assert "CC-BY 4.0, cite Splitwise, ISCA 2024" in workload.source
