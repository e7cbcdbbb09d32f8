"""``GET /metrics`` for Prometheus: vLLM's names where the meaning is vLLM's, ours under ``lockstep:``.

Counts are the engine's own integers and the front's; nothing is added up here, so that no scrape costs another a count.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

from prometheus_client import GC_COLLECTOR, PLATFORM_COLLECTOR, CollectorRegistry, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from scheduler.buckets import Buckets
from serving.cohorts import by_power_of_two, cohorts
from serving.exchanges import Exchanges
from serving.latencies import Durations, IntArray
from serving.logs import lost_lines
from serving.lookout import Look, Lookout
from serving.messages import STEP_EDGES
from serving.traffic import FINISHED, Traffic

if TYPE_CHECKING:
    from serving.server import Server

#: label values, and the number that goes with them
Rows: TypeAlias = Iterable[tuple[Sequence[str], float]]
_KINDS = ("prefill", "decode", "mixed")
_PHASES = ("prefill", "decode")
_SLOTS = ("linear", "attention")


class ServerMetrics(Collector):
    """All metrics of one server. ``registry`` is its own."""

    def __init__(
        self, server: Server, traffic: Traffic, exchanges: Exchanges, lookout: Lookout, buckets: Buckets
    ) -> None:
        self._server = server
        self._traffic = traffic
        self._exchanges = exchanges
        self._lookout = lookout
        self._buckets = buckets
        self._model = server.names[0]
        self.registry = CollectorRegistry(auto_describe=False)
        ProcessCollector(registry=self.registry)
        self.registry.register(PLATFORM_COLLECTOR)
        self.registry.register(GC_COLLECTOR)
        self.registry.register(self)

    async def exposition(self, accept: str) -> tuple[bytes, str]:
        """The text, and its content type, in the best format that an ``Accept`` header names.

        An engine that does not answer within a second is shown as it last was, see ``lockstep:snapshot_age_seconds``.
        """
        await self._lookout.look()
        encode, content_type = choose_encoder(accept)
        return encode(self.registry), content_type

    def collect(self) -> Iterator[Metric]:
        self._traffic.settle()
        look = self._lookout.latest
        yield from self._front()
        yield from self._requests()
        yield from self._http()
        if look is not None:
            yield from self._engine_counters(look)
            if self._server.engine.failure is None:
                yield from self._engine_state(look)

    # -- what the front knows itself

    def _front(self) -> Iterator[Metric]:
        server, config = self._server, self._server.info.config
        up = server.engine.failure is None
        yield self._gauge("lockstep:engine_up", "Whether the engine's process lives.", up)
        yield self._gauge("lockstep:draining", "Whether the server is about to end.", server.draining)
        yield self._gauge(
            "lockstep:requests_in_flight", "Requests handed to the engine that have not ended.", self._traffic.in_flight
        )
        yield self._counters(
            "lockstep:log_lines_lost", "Log lines that standard error did not take: a full disk.", (),
            [((), lost_lines())],
        )  # fmt: skip
        info = server.info
        labels = {
            "policy": config["policy"],
            "bucket": config["bucket"],
            "layout": config["layout"],
            "hardware": info.hardware,
            "emulated": info.emulated,
        }
        yield self._info("lockstep:engine_info", "What the engine is.", labels)
        cache = {
            "engine": "0",
            "block_size": config["block_tokens"],
            "num_gpu_blocks": config["kv_tokens"] // config["block_tokens"],
            "enable_prefix_caching": config["prefix_cache"],
            "gpu_memory_utilization": server.settings.engine.gpu_memory_utilization,
        }
        yield self._info("vllm:cache_config_info", "How KV memory is set up.", cache)
        refused = {**dict.fromkeys(("draining", "queue_full", "engine_gone"), 0), **server.refused}
        refused["rejected"] = self._traffic.finished["rejected"]
        yield self._counters(
            "lockstep:requests_refused",
            "Requests that were not taken: the server drains, too many are in flight, the engine is gone; or that the "
            "scheduler rejected, as none of their kind can ever be served.",
            ("reason",),
            [((reason,), count) for reason, count in refused.items()],
        )

    def _requests(self) -> Iterator[Metric]:
        traffic = self._traffic
        yield self._vllm_counter(
            "prompt_tokens", "Prompt tokens of requests that have a first token.", traffic.prompt_tokens
        )
        yield self._vllm_counter("generation_tokens", "Output tokens.", traffic.output_tokens)
        reasons = dict.fromkeys(FINISHED.values(), 0)
        for reason, word in FINISHED.items():
            reasons[word] += traffic.finished[reason]
        yield self._counters(
            "vllm:request_success",
            "Requests that have ended, by reason; rejected ones are in lockstep:requests_refused_total.",
            ("engine", "finished_reason"),
            [(("0", word), count) for word, count in reasons.items()],
        )
        for name, meaning, durations in (
            ("time_to_first_token_seconds", "From a request's being handed in to its first token.", traffic.ttft),
            ("inter_token_latency_seconds", "Between consecutive tokens of a request.", traffic.itl),
            ("time_per_output_token_seconds", "vLLM's older name of inter_token_latency_seconds.", traffic.itl),
            ("request_time_per_output_token_seconds", "Mean time per token after the first, by request.", traffic.tpot),
            ("e2e_request_latency_seconds", "From a request's being handed in to its last token.", traffic.e2e),
            ("request_queue_time_seconds", "From arrival to first being scheduled.", traffic.queue),
            ("request_prefill_time_seconds", "From first being scheduled to the first token.", traffic.prefill),
            ("request_decode_time_seconds", "From the first token to the last.", traffic.decode),
            ("request_inference_time_seconds", "From first being scheduled to the last token.", traffic.inference),
        ):
            yield self._seconds(f"vllm:{name}", meaning, ("engine",), [(("0",), durations)])
        for name, meaning, sizes in (
            ("request_prompt_tokens", "Prompt tokens of finished requests.", traffic.prompt_lengths),
            ("request_generation_tokens", "Output tokens of finished requests.", traffic.output_lengths),
            ("request_params_max_tokens", "The max_tokens of finished requests.", traffic.max_tokens),
        ):
            yield self._sizes(f"vllm:{name}", meaning, sizes.edges, sizes.counts.tolist(), sizes.sum)

    def _http(self) -> Iterator[Metric]:
        exchanges = self._exchanges
        yield self._counters(
            "lockstep:http_requests",
            "HTTP requests that are over; 499: the client left before an answer began.",
            ("route", "method", "status"),
            [((route, method, str(status)), n) for (route, method, status), n in exchanges.answered.items()],
        )
        now_ns = time.monotonic_ns()
        for durations in exchanges.durations.values():
            durations.settle(now_ns)
        yield self._seconds(
            "lockstep:http_request_duration_seconds",
            "From an HTTP request to the end of its answer, streams included.",
            ("route", "method"),
            exchanges.durations.items(),
        )

    # -- what the engine says

    def _engine_state(self, look: Look) -> Iterator[Metric]:
        snapshot = look.snapshot
        age_s = (time.monotonic_ns() - look.at_ns) / 1e9
        yield self._gauge("lockstep:snapshot_age_seconds", "How old the engine's figures are.", age_s)
        yield self._vllm_gauge("num_requests_running", "Requests that hold KV.", snapshot.running)
        yield self._vllm_gauge("num_requests_waiting", "Requests that wait to be admitted.", snapshot.waiting)
        capacity, allocated = snapshot.kv_capacity_tokens, snapshot.kv_allocated_tokens
        yield self._vllm_gauge("kv_cache_usage_perc", "Share of the KV memory that is given out, 0 to 1.",
                               allocated / capacity)  # fmt: skip
        yield self._gauge("lockstep:kv_held_tokens", "Tokens whose KV is held.", snapshot.kv_tokens)
        yield self._gauge("lockstep:kv_allocated_tokens", "Token slots of KV that are given out.", allocated)
        yield self._gauge("lockstep:kv_capacity_tokens", "Token slots of KV.", capacity)
        fragmentation = snapshot.kv_reserved_tokens / allocated if allocated else 0
        yield self._gauge(
            "lockstep:kv_internal_fragmentation_ratio", "Share of the given out KV that no token uses.", fragmentation
        )
        yield self._gauge(
            "lockstep:oldest_wait_seconds", "Age of the oldest waiting request.", snapshot.oldest_wait_ns / 1e9
        )
        context = self._server.info.context_tokens
        for name, meaning, lengths in (
            ("running_sequences", "Running sequences by their length, prompt and output so far.", snapshot.lengths),
            ("waiting_requests", "Waiting requests by their length.", snapshot.waiting_lengths),
        ):
            counts = by_power_of_two(lengths, context).items()
            yield self._gauges(
                f"lockstep:{name}",
                f"{meaning} Each bucket on its own: above half of length_le.",
                ("length_le",),
                [((str(edge),), count) for edge, count in counts],
            )
        found = cohorts(snapshot.lengths, self._buckets)
        for name, meaning, key in (
            ("cohorts", "Different lengths among the running sequences.", "lengths"),
            ("largest_cohort_sequences", "Running sequences of the most common length.", "largest"),
            ("buckets_occupied", "The policy's length buckets with a running sequence in them.", "buckets"),
            ("fullest_bucket_sequences", "Running sequences in the fullest of them.", "fullest_bucket"),
        ):
            yield self._gauge(f"lockstep:{name}", meaning, found[key])

    def _engine_counters(self, look: Look) -> Iterator[Metric]:
        snapshot, counters = look.snapshot, look.snapshot.counters
        yield self._vllm_counter("num_preemptions", "Sequences that lost their KV to others.", counters["preemptions"])
        yield self._vllm_counter(
            "prefix_cache_queries", "Tokens that the prefix cache was asked for.", counters["prefix_query_tokens"]
        )
        yield self._vllm_counter("prefix_cache_hits", "Tokens that it had.", counters["prefix_hit_tokens"])
        yield self._sizes(
            "vllm:iteration_tokens_total",
            "Tokens that a step computed, of prompts and of outputs.",
            STEP_EDGES,
            snapshot.step_sizes,
            counters["linear_useful_prefill"] + counters["linear_useful_decode"],
        )
        yield self._counters(
            "lockstep:steps", "Steps by kind.", ("kind",), [((kind,), counters[f"steps_{kind}"]) for kind in _KINDS]
        )
        yield from self._slots(counters)
        for name, meaning, count in (
            ("graph_rows", "Rows computed by steps that ran as graphs.", counters["graph_rows"]),
            ("graph_rows_used", "Those of them that were of use.", counters["graph_rows_used"]),
            ("decode_rows", "Rows of decode steps that were of use.", counters["decode_rows"]),
            ("decode_rows_computed", "Rows of decode steps that were computed.", counters["decode_rows_computed"]),
            ("wasted_rows", "Rows computed for sequences that had ended.", counters["wasted_rows"]),
            ("recomputed_tokens", "Tokens computed again after a preemption.", counters["recomputed_tokens"]),
            ("swapped_tokens", "Tokens whose KV went to or from host memory.", counters["swapped_tokens"]),
            ("kv_allocations", "KV blocks given out.", counters["kv_allocations"]),
            ("over_threshold_requests", "Requests that starved: waited for service longer than the threshold.",
             counters["over_threshold"]),
            ("engine_errors", "Requests that ended with an error.", snapshot.errors),
            ("requests_submitted", "Requests that the scheduler took in.", counters["submitted"]),
            ("scheduler_seconds", "The scheduler's own time.", snapshot.scheduler_ns / 1e9),
            ("device_seconds", "The device's time.", snapshot.device_ns / 1e9),
            ("busy_seconds", "Time during which there was a step to run.", snapshot.busy_ns / 1e9),
        ):  # fmt: skip
            yield self._counters(f"lockstep:{name}", meaning, (), [((), count)])
        yield self._counters(
            "lockstep:kv_reused",
            "KV blocks given out that a sequence had given back, when it finished or was preempted.",
            ("freed_by",),
            [(("finish",), counters["kv_reused"]), (("preemption",), counters["kv_reused_after_preemption"])],
        )
        yield self._counters(
            "lockstep:kv_slot_steps",
            "KV token slots, added up over the steps: held by a token, reserved (held ones included), free, and free "
            "but of no use to the request that is next.",
            ("state",),
            [((state,), counters[f"kv_{state}_sum"]) for state in ("held", "reserved", "free", "unusable")],
        )
        for name, meaning, value in (
            ("kv_peak_tokens", "Most tokens whose KV was held at a time.", counters["kv_peak_tokens"]),
            ("longest_wait_seconds", "Longest wait until first being admitted.", counters["longest_wait_ns"] / 1e9),
            ("longest_gap_seconds", "Longest time without service after that.", counters["longest_gap_ns"] / 1e9),
        ):
            yield self._gauge(f"lockstep:{name}", meaning, value)

    def _slots(self, counters: Mapping[str, int]) -> Iterator[Metric]:
        labels = ("slots", "phase")
        pairs = [(slots, phase) for slots in _SLOTS for phase in _PHASES]
        useful = {(slots, phase): counters[f"{slots}_useful_{phase}"] for slots, phase in pairs}
        computed = {(slots, phase): counters[f"{slots}_computed_{phase}"] for slots, phase in pairs}
        yield self._counters("lockstep:slots_useful", "Slots that were of use.", labels, useful.items())
        yield self._counters("lockstep:slots_computed", "Slots computed, padding included.", labels, computed.items())
        waste = [(pair, 1 - useful[pair] / computed[pair] if computed[pair] else 0.0) for pair in pairs]
        yield self._gauges(
            "lockstep:padding_waste_ratio", "1 - useful / computed slots since the start.", labels, waste
        )
        rows = counters["graph_rows"]
        graph = 1 - counters["graph_rows_used"] / rows if rows else 0.0
        yield self._gauge("lockstep:graph_padding_ratio", "Share of graphs' rows that only fill them up.", graph)

    # -- families, all with the model's name

    def _gauge(self, name: str, meaning: str, value: float) -> Metric:
        return self._gauges(name, meaning, (), [((), value)])

    def _vllm_gauge(self, name: str, meaning: str, value: float) -> Metric:
        return self._gauges(f"vllm:{name}", meaning, ("engine",), [(("0",), value)])

    def _vllm_counter(self, name: str, meaning: str, value: float) -> Metric:
        return self._counters(f"vllm:{name}", meaning, ("engine",), [(("0",), value)])

    def _gauges(self, name: str, meaning: str, labels: Sequence[str], rows: Rows) -> Metric:
        family = GaugeMetricFamily(name, meaning, labels=("model_name", *labels))
        for values, number in rows:
            family.add_metric((self._model, *values), number)
        return family

    def _counters(self, name: str, meaning: str, labels: Sequence[str], rows: Rows) -> Metric:
        family = CounterMetricFamily(name, meaning, labels=("model_name", *labels))
        for values, number in rows:
            family.add_metric((self._model, *values), number)
        return family

    def _info(self, name: str, meaning: str, labels: Mapping[str, Any]) -> Metric:
        texts = ["" if value is None else str(value) for value in labels.values()]
        return self._gauges(name, meaning, tuple(labels), [(texts, 1)])

    def _seconds(
        self, name: str, meaning: str, labels: Sequence[str], rows: Iterable[tuple[Sequence[str], Durations]]
    ) -> Metric:
        family = HistogramMetricFamily(name, meaning, labels=("model_name", *labels))
        for values, durations in rows:
            buckets = _cumulative(durations.edges_s, durations.counts)
            family.add_metric((self._model, *values), buckets, durations.sum_ns / 1e9)
        return family

    def _sizes(self, name: str, meaning: str, edges: Sequence[int], counts: Sequence[int], total: int) -> Metric:
        family = HistogramMetricFamily(name, meaning, labels=("model_name", "engine"))
        family.add_metric((self._model, "0"), _cumulative(edges, counts), total)
        return family


def _cumulative(edges: Sequence[float], counts: Sequence[int] | IntArray) -> list[tuple[str, float]]:
    buckets: list[tuple[str, float]] = []
    total = 0
    for edge, count in zip((*edges, float("inf")), counts, strict=True):
        total += int(count)
        buckets.append(("+Inf" if edge == float("inf") else str(float(edge)), total))
    return buckets
