"""What the gate of this repository runs: committed workloads x policies and their parts x memories; and its ceilings.

Arrivals are all at once or evenly spaced: what is drawn is drawn without logarithms, which differ between machines.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

from reports.gate import Case, Ceiling, run_case
from scheduler.config import SchedulerConfig
from scheduler.graphs import graph_sizes, prompt_graph_sizes
from scheduler.policies import POLICIES
from scheduler.quantiles import quantile_table
from workloads.load import load_workload
from workloads.workload import Workload

#: the committed baseline
BASELINE = Path(__file__).with_name("padding_baseline.json")


@dataclass(frozen=True)
class GateLoad:
    """A seeded workload and the limits that it is run under."""

    preset: str
    requests: int
    seed: int
    arrivals: str
    rate: float | None
    limits: Mapping[str, Any]

    def workload(self) -> Workload:
        return load_workload(
            self.preset, rng=random.Random(self.seed), requests=self.requests, arrivals=self.arrivals, rate=self.rate
        )


#: the load in the seed's conditions, and one whose outputs are mostly short, and a few a hundred times as long
SEED, LONG_TAIL = "burst", "chunked"

#: roomy and all at once; steady under a KV memory that preempts; prompts that go in chunks; prompts that begin alike
LOADS = {
    SEED: GateLoad("seed", 96, 1, "all-at-once", None, {"max_running": 16}),
    "steady": GateLoad(
        "chat", 64, 2, "constant", 4.0, {"max_running": 24, "kv_tokens": 12_000, "context_tokens": 8_192}
    ),
    LONG_TAIL: GateLoad("code", 48, 3, "constant", 2.0, {"max_running": 8}),
    "sessions": GateLoad(
        "chat-sessions", 64, 4, "all-at-once", None,
        {"max_running": 16, "kv_tokens": 12_000, "context_tokens": 8_192},
    ),
}  # fmt: skip

#: how rows are computed and KV is held
MEMORIES: dict[str, dict[str, Any]] = {
    "padded": {"layout": "padded", "kv_pool": "paged"},
    "padded-contiguous": {"layout": "padded", "kv_pool": "contiguous"},
    "padded-buddy": {"layout": "padded", "kv_pool": "buddy"},
    "paged": {"layout": "paged", "kv_pool": "paged"},
}

_USUAL_LOADS = ("burst", "steady", "chunked")
_USUAL_MEMORIES = ("padded", "padded-contiguous", "paged")


@dataclass(frozen=True)
class Variant:
    """A policy with the settings that the waste hangs on, and what it is run on.

    ``graphs``: steps run as the graphs that an engine on a GPU would record. Which sizes those are is the program's,
    and no setting: a size that is missing is a difference.
    """

    settings: Mapping[str, Any]
    memories: tuple[str, ...] = _USUAL_MEMORIES
    loads: tuple[str, ...] = _USUAL_LOADS
    graphs: bool = False


VARIANTS = {
    "fcfs": Variant({"policy": "fcfs"}),
    "static": Variant({"policy": "static"}),
    "sjf": Variant({"policy": "sjf"}),
    "sjf-min-rows-4": Variant({"policy": "sjf", "min_rows": 4}),
    "sjf-bucket-32": Variant({"policy": "sjf-bucket", "bucket": 32}),
    "sjf-bucket-64-fullest": Variant({"policy": "sjf-bucket", "bucket": 64, "bucket_order": "fullest", "min_rows": 4}),
    "sjf-aging": Variant({"policy": "sjf-aging", "aging_s": 10.0}),
    "srpt": Variant({"policy": "srpt"}),
    "multi-bin": Variant({"policy": "multi-bin"}),
    "bucket-serve": Variant({"policy": "bucket-serve"}),
    "slice-8": Variant({"policy": "fcfs", "batching": "slice:8"}),
    # the slow ones among them where waste shows
    "sjf-bucket-pow2": Variant({"policy": "sjf-bucket", "bucket": "pow2"}, ("padded",), ("steady", "chunked")),
    "sjf-bucket-edges": Variant(
        {"policy": "sjf-bucket", "bucket": "edges:64,128,256,1024"}, ("padded",), ("burst", "chunked")
    ),
    "orca-reserve": Variant({"policy": "orca-reserve"}, ("padded-buddy", "paged")),
    "mixed": Variant({"policy": "fcfs", "phase": "mixed", "chunk_tokens": 256}, ("paged",)),
    "swap": Variant({"policy": "fcfs", "preemption": "swap"}, ("padded", "paged"), ("steady",)),
    "graphs": Variant({"policy": "fcfs"}, ("paged",), graphs=True),
    "graphs-sjf-bucket": Variant({"policy": "sjf-bucket", "bucket": 128}, ("paged",), graphs=True),
    "no-prefix-cache": Variant({"policy": "fcfs"}, ("paged",), ("sessions",)),
    "prefix-cache": Variant({"policy": "fcfs", "prefix_cache": True}, ("paged",), ("sessions",)),
    "prefix-cache-lpm": Variant({"policy": "lpm", "prefix_cache": True}, ("paged",), ("sessions",)),
    "prefix-cache-mixed": Variant(
        {"policy": "fcfs", "prefix_cache": True, "phase": "mixed", "chunk_tokens": 256}, ("paged",), ("sessions",)
    ),
}

#: what the seed claims of padding with same lengths and with buckets
CLAIMED = Fraction(5, 100)

#: a step of these has rows of one bucket of current lengths, and no others
STRICT_BUCKETS = ("sjf-bucket-32", "sjf-bucket-pow2", "sjf-bucket-edges")
#: these form prefills of one bucket of prompt lengths
PROMPT_BUCKETS = (*STRICT_BUCKETS, "sjf-bucket-64-fullest", "bucket-serve")


def run_cases() -> list[Case]:
    """Simulate every variant on its workloads and memories."""
    cases = []
    workloads = {name: load.workload() for name, load in LOADS.items()}
    for load, name, memory in _names():
        workload = workloads[load]
        asked = {**LOADS[load].limits, **VARIANTS[name].settings, **MEMORIES[memory]}
        config = _config(workload, asked)
        if VARIANTS[name].graphs:
            asked["graphs"] = True
            config = _with_graphs(config)
        cases.append(run_case(f"{load}/{name}/{memory}", workload, config, asked))
    return cases


def _names() -> Iterator[tuple[str, str, str]]:
    for load in LOADS:
        for name, variant in VARIANTS.items():
            if load in variant.loads:
                for memory in variant.memories:
                    yield load, name, memory


def _config(workload: Workload, asked: Mapping[str, Any]) -> SchedulerConfig:
    if "bins" not in POLICIES[asked["policy"]].settings:
        return SchedulerConfig(**asked)
    return SchedulerConfig(**asked, length_quantiles=quantile_table(row.output_tokens for row in workload.rows))


def _with_graphs(config: SchedulerConfig) -> SchedulerConfig:
    return replace(
        config,
        graph_rows=graph_sizes(config.max_running),
        graph_tokens=prompt_graph_sizes(config.max_prefill_tokens),
    )


def ceilings() -> list[Ceiling]:
    """What every one of the cases must keep to; ``docs/gate.md`` says why these and no others.

    In the seed's conditions buckets of 32 waste at most 5 %, and rows of one length waste nothing anywhere. Buckets
    never waste more than the same without them: strict ones than ``fcfs``, prompts by bucket than ``fcfs`` in prefill,
    bins of output lengths than ``static`` in decode, where one bin does not hold a long tail of them.
    """
    found = []
    for load, name, memory in _names():
        case = f"{load}/{name}/{memory}"
        if not memory.startswith("padded"):
            continue
        if name == "sjf":
            found.append(Ceiling(case, Fraction(0)))
        if name == "sjf-bucket-32" and load == SEED:
            found += [Ceiling(case, CLAIMED), Ceiling(case, CLAIMED, "prefill")]
        if name in STRICT_BUCKETS:
            found.append(Ceiling(case, f"{load}/fcfs/{memory}"))
        if name in PROMPT_BUCKETS:
            found.append(Ceiling(case, f"{load}/fcfs/{memory}", "prefill"))
        if name == "multi-bin" and load != LONG_TAIL:
            found.append(Ceiling(case, f"{load}/static/{memory}"))
    return found
