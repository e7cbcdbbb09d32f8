"""The seed's claims, as data: every row of its README that can be true or false, and what it is judged by.

A reading is *literal* where the claim leaves nothing open. Where it does, the reading that is best for the claim is
*favourable*, and what a user would meet is *realistic*. What is *beside* explains and is not judged by.
"""

from __future__ import annotations

from typing import Any

from core.claims.runs import RUNS
from core.reproduce.alignment import first_aligned, lengths_by_step
from reports.claims import Claim, Kind, Measured, Reading

#: what needs no run
ALIGNMENT, ARITHMETIC = "alignment", "arithmetic"

_PAIR = ("fcfs-padded-open", "bucket-padded-open")
_FAVOURED = ("closed-padded-open", "wide-padded-open")
_CALM = ("fcfs-padded-calm", "bucket-padded-calm")
_POLICIES = ("sjf-stream", "bucket-stream", "aging-stream", "srpt-stream")


def _others(name: str) -> tuple[str, ...]:
    return tuple(other for other in _POLICIES if other != name)


def _waste() -> Claim:
    return Claim(
        "padding-waste",
        "Padding waste",
        "20 % and more → under 5 %",
        "FCFS, padded",
        "SJF same-length; SJF + buckets of 32",
        (
            Reading(
                "FCFS wastes 20 % of the KV columns of decode steps",
                "decode_waste",
                "fcfs-padded",
                "at least",
                0.2,
                unit="%",
            ),
            Reading("SJF same-length wastes under 5 % of them", "decode_waste", "sjf-padded", "below", 0.05, unit="%"),
            Reading("SJF + buckets wastes under 5 % of them", "decode_waste", "bucket-padded", "below", 0.05, unit="%"),
            Reading(
                "FCFS wastes 20 % of the token slots of prefill steps",
                "prefill_waste",
                "fcfs-padded",
                "at least",
                0.2,
                unit="%",
            ),
            Reading(
                "SJF + buckets wastes under 5 % of those", "prefill_waste", "bucket-padded", "below", 0.05, unit="%"
            ),
            Reading(
                "padding costs FCFS 20 % of the time",
                "time_waste",
                "fcfs-padded",
                "at least",
                0.2,
                kind="realistic",
                unit="%",
            ),
            Reading(
                "padding costs SJF + buckets under 5 % of the time",
                "time_waste",
                "bucket-padded",
                "below",
                0.05,
                kind="realistic",
                unit="%",
            ),
            Reading(
                "wide buckets filled up to 16 rows: KV columns",
                "decode_waste",
                "wide-padded",
                "below",
                0.05,
                kind="beside",
                unit="%",
            ),
            Reading(
                "mean rows of a decode step: FCFS → SJF + buckets",
                "decode_batch",
                "bucket-padded",
                "at least",
                4,
                before="fcfs-padded",
                kind="beside",
            ),
        ),
        "Rows of one length need no padding, so the slots are saved; but few requests have one length, and a step with "
        "one row takes nearly as long as one with 16. Padded slots are a small part of a decode step's time, most of "
        "which goes into reading the weights",
    )


def _sm() -> Claim:
    pair: dict[str, Any] = {"before": "fcfs-padded", "after": "bucket-padded"}
    titles = {
        "sm_activity": "SM activity (NVML GPM 2)",
        "sm_occupancy": "SM occupancy (NVML GPM 3)",
        "gpu_busy": "GPU busy (NVML utilisation)",
    }
    kinds: dict[str, Kind] = {"sm_activity": "favourable", "sm_occupancy": "literal", "gpu_busy": "favourable"}
    readings = [
        Reading(
            f"{title}, SJF + buckets", figure, relation="at least", bound=0.85, kind=kinds[figure], unit="%", **pair
        )
        for figure, title in titles.items()
    ]
    readings += [
        Reading(
            f"{title}, rise",
            figure,
            relation="at least",
            bound=0.25,
            quantity="difference",
            unit="%",
            kind=kinds[figure],
            **pair,
        )
        for figure, title in titles.items()
    ]
    readings += [
        Reading(
            f"{title}: continuous batching on paged KV",
            figure,
            "fcfs-paged",
            "at least",
            0.85,
            before="fcfs-padded",
            kind="beside",
            unit="%",
        )
        for figure, title in titles.items()
    ]
    return Claim(
        "sm-occupancy",
        "GPU SM occupancy",
        "60 % → 85 % and more",
        "FCFS, padded",
        "SJF + buckets",
        tuple(readings),
        "Occupancy is the share of a processor's warp slots that are taken, and no measure of efficiency: the best "
        "matrix products of an H100 show 95 % activity at 14 % occupancy. Fewer rows a step give a GPU less to do; how "
        "busy it is hangs on how fast the host launches kernels, which no batching by length changes",
    )


def _throughput() -> Claim:
    figure, bound = "output_tokens_per_s", 2.4
    unit: dict[str, Any] = {"unit": "tok/s", "quantity": "ratio"}
    return Claim(
        "throughput",
        "Throughput at batch 16",
        "x2.4",
        "FCFS, padded",
        "SJF same-length; SJF + buckets",
        (
            Reading(
                "SJF same-length over FCFS at each step",
                figure,
                "sjf-padded",
                "at least",
                bound,
                before="fcfs-padded",
                kind="realistic",
                **unit,
            ),
            Reading(
                "SJF + buckets over FCFS at each step",
                figure,
                "bucket-padded",
                "at least",
                bound,
                before="fcfs-padded",
                kind="realistic",
                **unit,
            ),
            Reading(
                "SJF + buckets over FCFS in batches that run to completion",
                figure,
                "bucket-padded",
                "at least",
                bound,
                before="fcfs-padded-closed",
                kind="favourable",
                **unit,
            ),
            Reading(
                "SJF + wide buckets, fullest first, filled up to 16 rows, over batches that run to completion",
                figure,
                "wide-padded",
                "at least",
                bound,
                before="fcfs-padded-closed",
                kind="favourable",
                **unit,
            ),
            Reading(
                "no grouping by length: FCFS at each step over batches that run to completion",
                figure,
                "fcfs-padded",
                "at least",
                bound,
                before="fcfs-padded-closed",
                kind="beside",
                **unit,
            ),
            Reading(
                "no grouping by length: FCFS on paged KV over padded batches that run to completion",
                figure,
                "fcfs-paged",
                "at least",
                bound,
                before="fcfs-padded-closed",
                kind="beside",
                **unit,
            ),
        ),
        "A decode step reads all weights whatever the number of its rows, so that throughput is rows a step. Stepping "
        "one length, or one bucket, takes one or two rows where FCFS takes 16. What does raise throughput is choosing "
        "the batch anew at each step, and a layout and kernels without padding, both under FCFS",
    )


def _latency() -> Claim:
    readings: list[Reading] = []
    for pair, words, kind in (
        (_PAIR, "SJF + buckets over FCFS at each step", "realistic"),
        (_CALM, "SJF + buckets over FCFS at a load that buckets carry", "favourable"),
        (_FAVOURED, "wide buckets filled up to 16 rows over batches that run to completion", "favourable"),
    ):
        both: dict[str, Any] = {
            "before": pair[0],
            "after": pair[1],
            "relation": "at most",
            "unit": "ms",
            "quantity": "growth",
            "kind": kind,
        }
        readings += [
            Reading(f"P50 of E2E: {words}", "e2e_ms.p50", bound=-0.33, **both),
            Reading(f"P50 of TTFT: {words}", "ttft_ms.p50", bound=-0.33, **both),
            Reading(f"P50 between tokens: {words}", "itl_ms.p50", bound=-0.33, **both),
            Reading(f"P99 of E2E: {words}", "e2e_ms", bound=-0.51, percent=99, **both),
            Reading(f"P99 of TTFT: {words}", "ttft_ms", bound=-0.51, percent=99, **both),
            Reading(f"P99 between tokens: {words}", "itl_ms.p99", bound=-0.51, **both),
            Reading(f"E2E of short requests: {words}", "short_e2e_ms", bound=-0.5, **both),
            Reading(f"TTFT of short requests: {words}", "short_ttft_ms", bound=-0.5, **both),
        ]
    return Claim(
        "latency",
        "Latency under a mixed load",
        "P50 120 → 80 ms (−33 %), P99 450 → 220 ms (−51 %), short requests 180 → 90 ms (−50 %)",
        "FCFS, padded",
        "SJF + buckets",
        tuple(readings),
        "The README does not say which latency, of what, at which load. At a load that FCFS carries with ease, SJF + "
        "buckets carries a fraction of it and a queue grows, so that everything but the gap between two tokens of "
        "those who are served is longer. At a load that it carries there is hardly a queue to reorder",
    )


def _fragmentation() -> Claim:
    return Claim(
        "fragmentation",
        "KV fragmentation",
        "28 % → 5 % (elsewhere: −23 points)",
        "contiguous KV",
        "paged KV",
        (
            Reading(
                "contiguous: 28 % reserved and unused, requests declaring the longest output",
                "kv_internal",
                "memory-contiguous",
                "at least",
                0.28,
                kind="realistic",
                unit="%",
            ),
            Reading(
                "contiguous: 28 %, requests declaring four times that",
                "kv_internal",
                "memory-contiguous-declared",
                "at least",
                0.28,
                kind="favourable",
                unit="%",
            ),
            Reading("paged: at most 5 % reserved and unused", "kv_internal", "memory-paged", "at most", 0.05, unit="%"),
            Reading(
                "23 points less, requests declaring four times the longest output",
                "kv_internal",
                "memory-paged",
                "at most",
                -0.23,
                before="memory-contiguous-declared",
                quantity="difference",
                kind="favourable",
                unit="%",
            ),
            Reading(
                "external: free in pieces too small for who is next, contiguous → paged",
                "kv_external",
                "memory-paged",
                "at most",
                0.05,
                before="memory-contiguous-declared",
                kind="beside",
                unit="%",
            ),
        ),
        "What is reserved and unused in contiguous memory is the difference between what requests declare and what "
        "they come to, which is anything; in paged memory it is half a block a sequence: 8 of some hundred tokens",
    )


def _reuse() -> Claim:
    return Claim(
        "kv-reuse",
        "KV cache reuse",
        "92 %",
        "–",
        "paged KV under churn",
        (
            Reading(
                "96 short requests, 4 at a time", "kv_reuse", "churn", "at least", 0.92, kind="favourable", unit="%"
            ),
            Reading(
                "40 requests of mixed lengths, at most 16 at a time",
                "kv_reuse",
                "memory-paged",
                "at least",
                0.92,
                kind="realistic",
                unit="%",
            ),
            Reading("20 requests, 16 at a time", "kv_reuse", "fcfs-paged", "at least", 0.92, kind="beside", unit="%"),
        ),
        "The share of allocations that are served from a block freed before says how many times a run has filled its "
        "memory, and nothing else: it goes to 100 % with the length of the run, under any policy. 92 % is a run of "
        "some twelve memories. Prefix reuse, which saves computation, is another figure",
    )


def _idle() -> Claim:
    readings = []
    for after, words in (
        ("batch-padded-profiled", "a batch, padded"),
        ("batch-paged-profiled", "a batch, paged"),
        ("batch-overlap-profiled", "a batch, paged, next step planned meanwhile"),
    ):
        readings += [
            Reading(
                f"idle share of the time: one at a time → {words}",
                "gpu_idle",
                after,
                "at least",
                0.83,
                before="one-profiled",
                quantity="drop",
                kind="realistic",
                unit="%",
            ),
            Reading(
                f"idle seconds for the same work: one at a time → {words}",
                "gpu_idle_s",
                after,
                "at least",
                0.83,
                before="one-profiled",
                quantity="drop",
                kind="favourable",
                unit="s",
            ),
            Reading(
                f'busy share of the time, growth ("GPU utilisation ↑83 %"): → {words}',
                "gpu_running",
                after,
                "at least",
                0.83,
                before="one-profiled",
                quantity="growth",
                kind="favourable",
                unit="%",
            ),
        ]
    return Claim(
        "gpu-idle",
        "GPU idle time",
        "−83 % (elsewhere: utilisation ↑83 %)",
        "one request at a time",
        "continuous batching",
        tuple(readings),
        "A GPU is idle while it waits for the host. A batch has as many gaps a step as a single request has, and needs "
        "as many fewer steps as it has rows, so that idle seconds fall with the number of rows; the share of the time "
        "falls when steps are launched as graphs and planned ahead, not by batching",
    )


def _rate() -> Claim:
    figure, bound = "output_tokens_per_s", 209.21 / 60
    unit: dict[str, Any] = {"unit": "tok/s", "quantity": "ratio"}
    return Claim(
        "seed-rate",
        "209.21 against 60 tok/s",
        "x3.5 on Qwen-7B, A100 40 GB PCIe, inputs 128-512, batch 4-16",
        "one request at a time",
        "continuous batching",
        (
            Reading(
                "batch 16, padded both times",
                figure,
                "fcfs-padded",
                "at least",
                bound,
                before="one-padded",
                kind="realistic",
                **unit,
            ),
            Reading(
                "batch 4, padded both times",
                figure,
                "four-padded",
                "at least",
                bound,
                before="one-padded",
                kind="realistic",
                **unit,
            ),
            Reading(
                "batch 16, paged both times",
                figure,
                "fcfs-paged",
                "at least",
                bound,
                before="one-paged",
                kind="realistic",
                **unit,
            ),
            Reading(
                "batch 4, paged both times",
                figure,
                "four-paged",
                "at least",
                bound,
                before="one-paged",
                kind="realistic",
                **unit,
            ),
            Reading(
                "batch 16, paged, next step planned meanwhile, over one at a time, padded",
                figure,
                "fcfs-overlap",
                "at least",
                bound,
                before="one-padded",
                kind="favourable",
                **unit,
            ),
            Reading(
                "60 as a share of 209.21, which the README has as 14.3 %",
                "rate_share",
                ARITHMETIC,
                "equal",
                0.143,
                tolerance=0.0005,
                kind="beside",
                unit="%",
            ),
            Reading(
                "here, batch 16, paged (another GPU than the seed's)",
                figure,
                "fcfs-overlap",
                "at least",
                209.21,
                kind="beside",
                unit="tok/s",
            ),
            Reading(
                "a projection of that A100, not measured: batch 16, paged",
                figure,
                "batch-a100",
                "at least",
                209.21,
                before="one-a100",
                kind="beside",
                unit="tok/s",
            ),
        ),
        "Rows share the reading of the weights, so that 16 of them come near 16 times the tokens as long as a step "
        "does not get longer. The README's 60 tok/s for one request is more than most of its kind reach, its 209 for "
        "up to 16 is far less than that GPU can do",
    )


def _starvation() -> Claim:
    return Claim(
        "starvation",
        "Long requests starve under SJF; a 60 s threshold cures it",
        "starved → nobody starves",
        "SJF",
        "SJF + ageing (threshold scaled, see the runs)",
        (
            Reading(
                "SJF: long requests that end while short ones keep coming",
                "long_done_meanwhile",
                "sjf-starving",
                "equal",
                0.0,
                unit="%",
            ),
            Reading(
                "ageing: long requests that end while short ones keep coming",
                "long_done_meanwhile",
                "aging-starving",
                "equal",
                1.0,
                before="sjf-starving",
                kind="favourable",
                unit="%",
            ),
            Reading(
                "ageing: longest time without service, in thresholds",
                "unserved_thresholds",
                "aging-starving",
                "at most",
                1.0,
                before="sjf-starving",
                kind="realistic",
            ),
            Reading(
                "ageing: longest time without service, within half a threshold more",
                "unserved_thresholds",
                "aging-starving",
                "at most",
                1.5,
                before="sjf-starving",
                kind="favourable",
            ),
        ),
        "Whoever is past the threshold leads, one after the other: the second waits for the first, and under a load "
        "that is more than can be carried everybody gets there. Nobody is passed over for ever, which is what can be "
        "promised; service within the threshold cannot",
    )


def _clusters() -> Claim:
    unit: dict[str, Any] = {"figure": "decode_batch"}
    return Claim(
        "clusters",
        "New requests split length clusters; buckets cure it",
        "split → cured",
        "SJF",
        "SJF + buckets",
        (
            Reading(
                "SJF: rows of a step, nobody joining → requests coming in",
                after="sjf-stream",
                relation="below",
                bound=1.0,
                before="sjf-sixteen",
                quantity="ratio",
                **unit,
            ),
            Reading(
                "buckets of 32: rows of a step, over SJF",
                after="bucket-stream",
                relation="above",
                bound=1.0,
                before="sjf-stream",
                quantity="ratio",
                kind="favourable",
                **unit,
            ),
            Reading(
                "buckets of 32, fullest first: rows of a step, over SJF",
                after="fullest-stream",
                relation="above",
                bound=1.0,
                before="sjf-stream",
                quantity="ratio",
                kind="favourable",
                **unit,
            ),
            Reading(
                "buckets of 32: rows of a step, of the seed's 4 to 16",
                after="bucket-stream",
                relation="at least",
                bound=4.0,
                before="sjf-stream",
                kind="realistic",
                **unit,
            ),
            Reading(
                "buckets of 32, fullest first: rows of a step, of the seed's 4 to 16",
                after="fullest-stream",
                relation="at least",
                bound=4.0,
                before="sjf-stream",
                kind="realistic",
                **unit,
            ),
            Reading(
                "for comparison, FCFS at the same load",
                after="fcfs-stream",
                relation="at least",
                bound=4.0,
                before="sjf-stream",
                kind="beside",
                **unit,
            ),
        ),
        "A cluster is rarely more than one or two rows to begin with: lengths spread over hundreds of tokens. A "
        "shorter newcomer is served alone until it has caught up. Buckets let a few more in; the smallest batch that "
        "the seed means to run, 4, takes going to the fullest bucket, which is not SJF, or filling up from the next",
    )


def _switching() -> Claim:
    return Claim(
        "switching",
        "Switching between prefill and decode delays; async scheduling and cached prefill cure it",
        "delay → cured",
        "synchronous; no prefix cache",
        "overlapped; prefix cache",
        (
            Reading(
                "overlap: how long a prefill holds decoding up, less",
                "switch_ms",
                "fcfs-overlap-stream",
                "above",
                0.0,
                before="fcfs-stream",
                quantity="drop",
                kind="favourable",
                unit="ms",
            ),
            Reading(
                "overlap: P99 between tokens, less",
                "itl_ms.p99",
                "fcfs-overlap-stream",
                "above",
                0.0,
                before="fcfs-stream",
                quantity="drop",
                kind="realistic",
                unit="ms",
            ),
            Reading(
                "overlap: how long a prefill holds decoding up, at most a tenth left",
                "switch_ms",
                "fcfs-overlap-stream",
                "at least",
                0.9,
                before="fcfs-stream",
                quantity="drop",
                kind="realistic",
                unit="ms",
            ),
            Reading(
                "cached prefix: how long a prefill holds decoding up, less",
                "switch_ms",
                "shared-cached",
                "above",
                0.0,
                before="shared",
                quantity="drop",
                kind="favourable",
                unit="ms",
            ),
            Reading(
                "cached prefix: how long a prefill holds decoding up, at most a tenth left",
                "switch_ms",
                "shared-cached",
                "at least",
                0.9,
                before="shared",
                quantity="drop",
                kind="realistic",
                unit="ms",
            ),
            Reading(
                "host's share of the time, synchronous → overlapped",
                "host_share",
                "fcfs-overlap-stream",
                "at most",
                0.05,
                before="fcfs-stream",
                kind="beside",
                unit="%",
            ),
            Reading(
                "prompt tokens found in the cache", "prefix_hit", "shared-cached", "above", 0.0, kind="beside", unit="%"
            ),
        ),
        "What holds decoding up is the prefill itself, a step that computes hundreds of tokens. Planning ahead hides "
        "the host's part of the switch, which is small; a cached prefix saves the part of the prompt that it holds. "
        "Prompts in chunks beside decoding rows (phase mixed) are what bounds the delay",
    )


def _example() -> Claim:
    return Claim(
        "example",
        "The example [50, 52, 55, 60, 100]",
        "four aligned at t = 8",
        "–",
        "arithmetic",
        (
            Reading("steps until four have one length", "aligned_at", ALIGNMENT, "equal", 8),
            Reading("as arithmetic has it", "aligned_at", ALIGNMENT, "equal", 10, kind="beside"),
        ),
        "From 50 to 52 it takes 2 steps, for both to 55 three more, for all three to 60 five more: 10",
    )


def _table() -> Claim:
    e2e, rate = "e2e_ms.mean", "output_tokens_per_s"
    unit: dict[str, Any] = {"unit": "ms", "relation": "at most", "bound": 1.0, "quantity": "to lowest"}
    return Claim(
        "policies",
        "The table of policies",
        "SJF: low latency; SJF + buckets: best in production; Orca (remaining length): optimal in theory",
        "the three others",
        "each of the four",
        (
            Reading("SJF has the lowest mean E2E of the four", e2e, "sjf-stream", others=_others("sjf-stream"), **unit),
            Reading(
                "SJF + buckets has the lowest mean E2E of the four",
                e2e,
                "bucket-stream",
                others=_others("bucket-stream"),
                kind="realistic",
                **unit,
            ),
            Reading(
                "SJF + buckets is better than SJF and SJF + ageing, mean E2E",
                e2e,
                "bucket-stream",
                others=("sjf-stream", "aging-stream"),
                kind="favourable",
                **unit,
            ),
            Reading(
                "SJF + buckets has the most throughput of the four",
                rate,
                "bucket-stream",
                "at least",
                1.0,
                others=_others("bucket-stream"),
                quantity="to highest",
                kind="realistic",
                unit="tok/s",
            ),
            Reading(
                "shortest remaining first, true lengths, has the lowest mean E2E of the four",
                e2e,
                "srpt-stream",
                others=_others("srpt-stream"),
                kind="favourable",
                **unit,
            ),
            Reading(
                "shortest remaining first, noisy lengths (tau 0.5), has it",
                e2e,
                "srpt-noisy-stream",
                others=_others("srpt-stream"),
                kind="realistic",
                **unit,
            ),
            Reading(
                "shortest remaining first, lengths learned from what has finished, has it",
                e2e,
                "srpt-history-stream",
                others=_others("srpt-stream"),
                kind="realistic",
                **unit,
            ),
            Reading(
                "for comparison: shortest remaining first, true lengths, against FCFS",
                e2e,
                "srpt-stream",
                others=("fcfs-stream",),
                kind="beside",
                **unit,
            ),
        ),
        "The seed's SJF ranks by current length, which puts the youngest first, and steps one length at a time; what "
        "predicts the remaining length steps all that are resident. The Orca of OSDI'22 predicts nothing: it is FCFS "
        "at each step with memory reserved",
    )


CLAIMS: dict[str, Claim] = {
    claim.name: claim
    for claim in (
        _waste(),
        _sm(),
        _throughput(),
        _latency(),
        _fragmentation(),
        _reuse(),
        _idle(),
        _rate(),
        _starvation(),
        _clusters(),
        _switching(),
        _example(),
        _table(),
    )
}


def reckoned() -> dict[str, Measured]:
    """What needs no run: the alignment under the scheduler's own SJF, and a division."""
    return {
        ALIGNMENT: Measured({0: {"aligned_at": float(first_aligned(lengths_by_step(), 4))}}),
        ARITHMETIC: Measured({0: {"rate_share": 60 / 209.21}}),
    }


def runs_of(claim: Claim) -> tuple[str, ...]:
    """The names of the runs that a claim needs, each once."""
    names = dict.fromkeys(name for reading in claim.readings for name in reading.runs)
    return tuple(name for name in names if name in RUNS)
