"""What Prometheus reads: names, values and labels, of an engine that is always the same."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_open_metrics
from prometheus_client.parser import text_string_to_metric_families as parse
from still_engine import COUNTERS, SNAPSHOT, Values, Watched

from engine.loop import RequestMetrics, TokenOutput
from scheduler.request import Request


def of(values: Values, names: Iterable[str]) -> dict[str, float]:
    return {name: values[(name,)] for name in names}


def test_the_engines_figures_are_vllms_where_the_meaning_is() -> None:
    values = Watched().values()
    assert of(values, ("vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:kv_cache_usage_perc")) == {
        "vllm:num_requests_running": 4,
        "vllm:num_requests_waiting": 2,
        "vllm:kv_cache_usage_perc": 640 / 1024,
    }
    assert values["vllm:num_preemptions_total",] == 4
    assert values["vllm:prefix_cache_hits_total",] / values["vllm:prefix_cache_queries_total",] == 0.25
    assert values["vllm:iteration_tokens_total_sum",] == 300 + 80
    assert values["vllm:iteration_tokens_total_count",] == SNAPSHOT.steps
    assert [values["vllm:iteration_tokens_total_bucket", edge] for edge in ("1.0", "8.0", "32.0", "128.0")] == [
        0, 20, 23, 25
    ]  # fmt: skip


def test_every_series_names_the_model_and_vllms_the_engine() -> None:
    families = list(parse(Watched().text()))
    ours = [family for family in families if family.name.startswith(("vllm:", "lockstep:"))]
    assert len(ours) > 60
    for family in ours:
        assert family.documentation, family.name
        for sample in family.samples:
            assert sample.labels["model_name"] == "shown", sample
            assert sample.labels.get("engine") == ("0" if family.name.startswith("vllm:") else None), sample
    assert any(family.name == "process_resident_memory_bytes" for family in families)


def test_waste_is_counted_in_slots_and_shown_as_a_share() -> None:
    values = Watched().values()
    assert values["lockstep:padding_waste_ratio", "prefill", "linear"] == 0.25
    assert values["lockstep:padding_waste_ratio", "prefill", "attention"] == 0
    assert values["lockstep:padding_waste_ratio", "decode", "linear"] == pytest.approx(0.2)
    assert values["lockstep:padding_waste_ratio", "decode", "attention"] == pytest.approx(0.3)
    assert values["lockstep:graph_padding_ratio",] == 0.25
    for slots in ("linear", "attention"):
        for phase in ("prefill", "decode"):
            useful = getattr(COUNTERS, f"{slots}_useful_{phase}")
            assert values["lockstep:slots_useful_total", phase, slots] == useful
    assert values["lockstep:slots_computed_total", "prefill", "linear"] == 400


def test_memory_cohorts_and_starvation() -> None:
    values = Watched().values()
    assert of(values, ("lockstep:kv_held_tokens", "lockstep:kv_allocated_tokens", "lockstep:oldest_wait_seconds")) == {
        "lockstep:kv_held_tokens": 600,
        "lockstep:kv_allocated_tokens": 640,
        "lockstep:oldest_wait_seconds": 1.5,
    }
    assert values["lockstep:kv_internal_fragmentation_ratio",] == 40 / 640
    assert values["lockstep:kv_reused_total", "finish"] == 40
    assert values["lockstep:kv_slot_steps_total", "unusable"] == 500
    running = {key[1]: value for key, value in values.items() if key[0] == "lockstep:running_sequences"}
    assert running == {"16": 0, "32": 1, "64": 0, "128": 2, "256": 0, "512": 1}
    assert values["lockstep:waiting_requests", "32"] == 1
    # lengths 20, 100, 100 and 380 in buckets of 32
    assert of(values, ("lockstep:cohorts", "lockstep:largest_cohort_sequences", "lockstep:buckets_occupied")) == {
        "lockstep:cohorts": 3,
        "lockstep:largest_cohort_sequences": 2,
        "lockstep:buckets_occupied": 3,
    }
    assert values["lockstep:over_threshold_requests_total",] == 1
    assert values["lockstep:scheduler_seconds_total",] == 0.05
    assert 1 - values["lockstep:device_seconds_total",] / values["lockstep:busy_seconds_total",] == 0.25


def test_requests_in_buckets_that_have_all_of_vllms_edges() -> None:
    watched = Watched()
    watched.traffic.submitted([Request("a", 0, 30), Request("b", 0, 40)])
    watched.now_ns = 50_000_000
    watched.traffic.told([TokenOutput("a", 7, "x")])
    watched.now_ns = 80_000_000
    watched.traffic.told([TokenOutput("a", 7, "x", "stop", metrics=RequestMetrics(0, 10**6, 10**7, 10**8, 0, 0, 0))])
    watched.traffic.told([TokenOutput("b", None, "", "rejected", "too long")])
    values = watched.values()
    reasons = {key[1]: value for key, value in values.items() if key[0] == "vllm:request_success_total"}
    assert reasons == {"length": 0, "stop": 1, "abort": 0, "error": 0}
    assert values["lockstep:requests_refused_total", "rejected"] == 1
    assert (values["vllm:prompt_tokens_total",], values["vllm:generation_tokens_total",]) == (30, 2)
    for name in ("inter_token_latency_seconds", "time_per_output_token_seconds"):
        assert [values[f"vllm:{name}_bucket", edge] for edge in ("0.025", "0.05", "+Inf")] == [0, 1, 1]
        assert values[f"vllm:{name}_sum",] == 0.03
    first = [values["vllm:time_to_first_token_seconds_bucket", edge] for edge in ("0.04", "0.06", "2560.0")]
    assert first == [0, 1, 1]
    assert values["vllm:request_queue_time_seconds_sum",] == 0.001
    assert values["vllm:request_prefill_time_seconds_sum",] == 0.009
    assert values["vllm:request_decode_time_seconds_sum",] == 0.09
    assert values["vllm:request_inference_time_seconds_sum",] == 0.099
    edges = {key[1] for key in values if key[0] == "vllm:e2e_request_latency_seconds_bucket"}
    assert {"0.3", "0.5", "0.8", "1.0", "1.5", "2.0", "2.5", "5.0", "10.0", "60.0", "7680.0", "+Inf"} <= edges
    assert [values["vllm:request_prompt_tokens_bucket", edge] for edge in ("20.0", "50.0", "500.0")] == [0, 1, 1]


def test_counts_are_exact_as_far_as_the_format_goes() -> None:
    watched = Watched()
    large = 2**53 - 1
    counters = {**SNAPSHOT.counters, "attention_useful_decode": large, "attention_computed_decode": large}
    watched.engine.snapshot_now = SNAPSHOT._replace(counters=counters)
    assert int(watched.values()["lockstep:slots_useful_total", "decode", "attention"]) == large


def test_a_dead_engine_has_counts_but_no_state() -> None:
    watched = Watched()
    before = watched.values()
    watched.engine.failure = "killed by signal 9"
    after = watched.values()
    assert (before["lockstep:engine_up",], after["lockstep:engine_up",]) == (1, 0)
    assert after["vllm:num_preemptions_total",] == 4
    assert ("vllm:num_requests_running",) not in after
    never = Watched()
    never.engine.failure = "killed by signal 9"
    assert never.values()["lockstep:engine_up",] == 0
    assert never.engine.asked == 0


def test_refusals_have_reasons() -> None:
    watched = Watched()
    watched.server.refused["queue_full"] += 3
    values = watched.values()
    assert {key[1]: value for key, value in values.items() if key[0] == "lockstep:requests_refused_total"} == {
        "draining": 0, "queue_full": 3, "engine_gone": 0, "rejected": 0
    }  # fmt: skip


def test_open_metrics_are_given_to_whoever_asks_for_them() -> None:
    text = Watched().text("application/openmetrics-text; version=1.0.0")
    names = {family.name for family in parse_open_metrics(text)}
    assert {"vllm:generation_tokens", "vllm:iteration_tokens_total", "lockstep:steps"} <= names


def test_whoever_asks_at_the_same_time_shares_a_snapshot() -> None:
    watched = Watched()

    async def run() -> None:
        await asyncio.gather(*[watched.lookout.look() for _ in range(20)])

    asyncio.run(run())
    assert watched.engine.asked == 1


def test_an_engine_that_does_not_answer_is_shown_as_it_was() -> None:
    watched = Watched()

    async def run() -> None:
        assert await watched.lookout.look() is not None
        answer = asyncio.Event()

        async def silent() -> None:
            await answer.wait()

        watched.engine.snapshot = silent  # type: ignore[method-assign,assignment]
        assert await watched.lookout.look(patience_s=0.01) is watched.lookout.latest
        text, _ = await watched.metrics.exposition("")
        assert b"vllm:num_requests_running" in text
        watched.lookout.stop()

    asyncio.run(run())
