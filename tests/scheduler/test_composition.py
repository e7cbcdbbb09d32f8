"""What cannot be put together is refused with a sentence that says why and what to change."""

from __future__ import annotations

from typing import Any

import pytest

from scheduler.composition import compose
from scheduler.config import SchedulerConfig
from scheduler.errors import ConfigError
from scheduler.orders import LinearAgeing
from scheduler.policies import POLICIES
from scheduler.policy import Ageing

#: settings, and all that is said of them
REFUSED: list[tuple[dict[str, Any], str]] = [
    # what a policy takes
    (
        {"policy": "fcfs", "quantum": 5},
        "policy fcfs takes no quantum (it belongs to srpt, trail, las, mlfq, edf)",
    ),
    ({"policy": "sjf", "bucket": "adaptive"}, "policy sjf takes no bucket (it belongs to sjf-bucket)"),
    ({"policy": "srpt", "bins": 4}, "policy srpt takes no bins (it belongs to multi-bin)"),
    (
        {"policy": "static", "min_batch": 4},
        "min_batch and max_wait_s go together: a batch starts with so many, or after so long",
    ),
    (
        {"policy": "multi-bin"},
        "multi-bin needs length_quantiles: the output lengths that its bins are to divide",
    ),
    # batching
    (
        {"policy": "srpt", "batching": "run-to-completion"},
        "run-to-completion with srpt: that policy takes a request's place away while it runs, and a batch that runs to "
        "completion never gives one up; use batching iteration, or a policy such as sjf-predicted",
    ),
    (
        {"policy": "multi-bin", "batching": "iteration", "min_batch": 4, "length_quantiles": (1, 2)},
        "min_batch and max_wait_s start a batch that runs to completion, and batching is iteration; leave them out or "
        "use batching run-to-completion",
    ),
    (
        {"policy": "multi-bin", "batching": "slice:4", "max_wait_s": 1.0, "length_quantiles": (1, 2)},
        "min_batch and max_wait_s start a batch that runs to completion, and batching is slice:4; leave them out or "
        "use batching run-to-completion",
    ),
    # a policy without what it is named for
    (
        {"policy": "static", "batching": "iteration"},
        "batching iteration with static: static is arrival order with batches that run to completion; use policy fcfs "
        "with batching iteration",
    ),
    (
        {"policy": "orca-reserve", "admission": "now"},
        "admission now with orca-reserve: it is fcfs with memory reserved up front; use policy fcfs with admission now",
    ),
    (
        {"policy": "orca-reserve", "admission": "quantile:0.8"},
        "admission quantile with orca-reserve: it is fcfs with memory reserved up front; use policy fcfs with "
        "admission quantile:0.8",
    ),
    ({"policy": "sjf-aging", "aging": "none"}, "aging none with sjf-aging: it is sjf with ageing; use policy sjf"),
    # phase
    (
        {"phase": "mixed", "layout": "padded"},
        "phase mixed needs layout paged: a padded batch would be as wide as its longest chunk",
    ),
    (
        {"phase": "mixed", "batching": "slice:4"},
        "phase mixed needs batching iteration: a closed batch fills first and decodes then",
    ),
    (
        {"phase": "decode-first", "policy": "static"},
        "phase decode-first needs batching iteration: a closed batch fills first and decodes then",
    ),
    (
        {"chunk_tokens": 64},
        "chunk_tokens is the budget of a mixed step; use it with phase mixed (else max_prefill_tokens)",
    ),
    # ageing
    (
        {"policy": "srpt", "aging": "threshold", "aging_weight": 2.0},
        "aging_weight belongs to linear ageing, and ageing is threshold",
    ),
    (
        {"policy": "srpt", "aging": "linear", "aging_s": 2.0},
        "aging_s belongs to ageing by threshold, and ageing is linear",
    ),
    (
        {"policy": "vtc", "aging": "linear"},
        "linear ageing with vtc: that policy has no rank in tokens to weigh waiting against; use aging threshold",
    ),
    (
        {"policy": "fcfs", "aging_s": 2.0},
        "ageing by threshold with fcfs: it serves the oldest first anyway, so that nobody would be served any sooner; "
        "leave it out",
    ),
    (
        {"policy": "bucket-serve", "aging": "threshold"},
        "ageing by threshold with bucket-serve: it serves the oldest first anyway, so that nobody would be served any "
        "sooner; leave it out",
    ),
    (
        {"policy": "sjf", "aging": "linear", "batching": "run-to-completion"},
        "linear ageing with sjf and batches that run to completion: it weighs who of them is stepped, and all are; use "
        "aging threshold",
    ),
    # rows
    (
        {"policy": "sjf", "min_rows": 5, "max_rows": 4},
        "min_rows 5 with max_rows 4: a step never has so many rows; lower min_rows",
    ),
    (
        {"policy": "sjf", "min_rows": 5, "max_running": 3},
        "min_rows 5 with max_running 3: a step never has so many rows; lower min_rows",
    ),
    (
        {"policy": "sjf", "min_rows": 5, "batching": "run-to-completion"},
        "min_rows 5 with batches that run to completion: a step takes all rows of the batch, or max_rows of them; "
        "leave it out or use batching iteration",
    ),
    (
        {"policy": "sjf-bucket", "bucket_order": "fullest", "batching": "run-to-completion"},
        "bucket_order fullest with batches that run to completion: all rows of the batch are stepped, and no bucket "
        "goes first; leave it out, or set max_rows below max_running",
    ),
    # memory
    (
        {"admission": "now", "kv_pool": "contiguous"},
        "admission now with a contiguous pool: what is reserved there cannot grow; use kv_pool paged or admission "
        "reserve-max",
    ),
    (
        {"admission": "peak-future", "batching": "run-to-completion"},
        "admission peak-future with batches that run to completion: nobody can be preempted when memory runs out; use "
        "admission reserve-max or batching iteration",
    ),
    (
        {"admission": "reserve-pow2", "oracle": "none"},
        "admission reserve-pow2 stands for knowing the output length; use oracle true",
    ),
    (
        {"swap_tokens": 100},
        "swap_tokens is the host memory that preemption swap uses; add preemption swap",
    ),
    (
        {"victim": "newest", "admission": "reserve-max"},
        "victim newest with admission reserve-max: memory never runs out, so nobody has to be chosen; leave victim out "
        "or use admission now",
    ),
    (
        {"preemption": "swap", "layout": "padded"},
        "preemption swap with fcfs and admission reserve-max: nobody is ever preempted; leave it out or use admission "
        "now",
    ),
    (
        {"prefix_cache": True, "layout": "padded"},
        "prefix_cache shares KV blocks between sequences; it needs layout paged and kv_pool paged",
    ),
    (
        {"policy": "lpm"},
        "lpm ranks by what the prefix cache holds, and there is none; add prefix_cache, or use fcfs",
    ),
    # oracle
    (
        {"oracle": "history"},
        "oracle history with fcfs: nothing in this composition asks for a length; leave it out, or use a policy, an "
        "admission or a victim that does (srpt, peak-future, longest-remaining)",
    ),
]


@pytest.mark.parametrize(("settings", "said"), REFUSED)
def test_what_would_be_ignored_or_meaningless_is_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        compose(SchedulerConfig(**settings))
    assert str(caught.value) == said


@pytest.mark.parametrize(
    "settings",
    [
        {"policy": "fcfs", "batching": "run-to-completion"},
        {"policy": "orca-reserve", "admission": "reserve-pow2"},
        {"policy": "sjf-aging", "aging": "linear"},
        {"policy": "sjf-predicted", "aging": "none"},
        {"policy": "multi-bin", "batching": "iteration", "length_quantiles": (1, 2)},
        {"policy": "static", "aging": "none"},
        {"policy": "sjf", "min_rows": 4, "max_rows": 4},
        {"policy": "sjf-bucket", "bucket_order": "fullest", "batching": "run-to-completion", "max_rows": 4},
        {"policy": "sjf", "aging": "linear", "batching": "run-to-completion", "max_rows": 4},
        {"policy": "srpt", "preemption": "swap", "layout": "padded"},
        {"policy": "fcfs", "victim": "longest-remaining", "oracle": "none"},
        {"policy": "fcfs", "admission": "peak-future", "oracle": "history"},
        {"policy": "fcfs", "overlap": True, "prefix_cache": True, "phase": "mixed", "preemption": "swap"},
    ],
)
def test_what_is_next_to_it_is_not(settings: dict[str, Any]) -> None:
    """Each differs from a refused composition by what makes sense of it."""
    compose(SchedulerConfig(**settings))


def test_the_defaults_of_each_policy() -> None:
    admission, phases, closed = {}, set(), {}
    for policy in POLICIES:
        config = SchedulerConfig(policy=policy, prefix_cache=policy == "lpm", length_quantiles=(1, 2, 3))
        parts = compose(config)
        admission[policy] = parts.admission.kind
        closed[policy] = parts.slice_steps
        phases.add(parts.phase)
    assert {policy for policy, kind in admission.items() if kind == "reserve-max"} == {
        "orca-reserve", "static", "multi-bin",
    }  # fmt: skip
    assert set(admission.values()) == {"now", "reserve-max"}
    assert {policy for policy, steps in closed.items() if steps == 0} == {"static", "multi-bin"}
    assert phases == {"prefill-first"}


def test_ageing_is_what_is_said_of_it() -> None:
    by_threshold = compose(SchedulerConfig(policy="srpt", aging_s=2.0)).policy
    assert by_threshold.ageing == Ageing(2_000_000_000)
    linear = compose(SchedulerConfig(policy="sjf-predicted", aging_weight=3.0)).policy
    assert linear.ageing is None
    assert isinstance(linear.waiting, LinearAgeing)
