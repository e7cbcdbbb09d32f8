"""A server whose engine is always the same: for tests of what is shown of one."""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from typing import Any, cast

from prometheus_client.parser import text_string_to_metric_families as parse

from scheduler.config import SchedulerConfig
from scheduler.counters import RunCounters
from serving.cohorts import buckets_of
from serving.engine_client import EngineClient, EngineDeadError, EngineListener
from serving.exchanges import Exchanges
from serving.lookout import Lookout
from serving.messages import STEP_EDGES, EngineInfo, Snapshot
from serving.metrics import ServerMetrics
from serving.server import Server, ServerSettings
from serving.traffic import Traffic

#: of samples, by name and label values
Values = dict[tuple[str, ...], float]

COUNTERS = RunCounters(
    submitted=9, finished=5, steps_prefill=3, steps_decode=20, steps_mixed=2,
    linear_useful_prefill=300, linear_computed_prefill=400, linear_useful_decode=80, linear_computed_decode=100,
    attention_useful_prefill=3000, attention_computed_prefill=3000, attention_useful_decode=700,
    attention_computed_decode=1000, decode_rows=80, decode_rows_computed=100, graph_rows=120, graph_rows_used=90,
    preemptions=4, prefix_hit_tokens=32, prefix_query_tokens=128, kv_peak_tokens=700, kv_held_sum=6000,
    kv_reserved_sum=8000, kv_free_sum=20000, kv_unusable_sum=500, kv_allocations=60, kv_reused=40,
    kv_reused_after_preemption=5, longest_wait_ns=2_000_000_000, longest_gap_ns=1_000_000_000, over_threshold=1,
)  # fmt: skip
SNAPSHOT = Snapshot(
    number=0,
    now_ns=10_000_000_000,
    steps=25,
    running=4,
    waiting=2,
    kv_tokens=600,
    kv_capacity_tokens=1024,
    oldest_wait_ns=1_500_000_000,
    lengths=[20, 100, 100, 380],
    waiting_lengths=[16, 17],
    counters=asdict(COUNTERS),
    device_ns=6_000_000_000,
    busy_ns=8_000_000_000,
    scheduler_ns=50_000_000,
    errors=0,
    kv_allocated_tokens=640,
    step_sizes=[0, 20, 2, 1, 0, 2, *[0] * (len(STEP_EDGES) - 5)],
)
INFO = EngineInfo(
    model="still",
    tokenizer=None,
    vocab=100,
    context_tokens=500,
    end_token_ids=frozenset(),
    config=SchedulerConfig(policy="sjf-bucket", bucket=32, max_running=4, kv_tokens=1024).as_dict(),
    hardware="none",
)


class StillEngine:
    """Answers every question with ``snapshot``; what is handed in is left to the test."""

    def __init__(self, snapshot: Snapshot = SNAPSHOT) -> None:
        self.info = INFO
        self.snapshot_now = snapshot
        self.failure: str | None = None
        self.listeners: list[EngineListener] = []
        self.in_flight = 0
        self.pid = 0
        self.asked = 0

    async def snapshot(self) -> Snapshot:
        self.asked += 1
        if self.failure is not None:
            raise EngineDeadError(self.failure)
        return self.snapshot_now


def still_server(engine: StillEngine, **settings: Any) -> Server:
    return Server(ServerSettings(**settings), cast(EngineClient, engine), None)


class Watched:
    """A still engine, and what is said of it."""

    def __init__(self) -> None:
        self.engine = StillEngine()
        self.server = still_server(self.engine, served_names=("shown",))
        self.exchanges = Exchanges()
        self.now_ns = 0
        self.traffic = Traffic(500, self.exchanges.ended, lambda: self.now_ns)
        self.lookout = Lookout(self.server.engine, self.traffic)
        buckets = buckets_of(self.engine.info.config)
        self.metrics = ServerMetrics(self.server, self.traffic, self.exchanges, self.lookout, buckets)

    def text(self, accept: str = "") -> str:
        return asyncio.run(self.metrics.exposition(accept))[0].decode()

    def values(self) -> Values:
        """By name and label values in the order of their labels, without the model's and the engine's."""
        return {
            (sample.name, *(value for label, value in sample.labels.items() if label not in ("model_name", "engine"))):
            sample.value
            for family in parse(self.text())
            for sample in family.samples
        }  # fmt: skip
