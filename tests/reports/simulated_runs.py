"""Runs by the simulator, small and the same each time, with or without a journal."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from reports.chronicle import JOURNAL_FILE
from reports.run import Run
from reports.run_folder import RunWriter
from scheduler.config import SchedulerConfig
from scheduler.journal import JournaledScheduler
from scheduler.request import Request
from scheduler.scheduler import Scheduler
from simulator.costs import IntegerCosts
from simulator.replica import simulate

COSTS = IntegerCosts(step_ns=1_000_000, row_ns=50_000, token_ns=2_000, column_ns=100)


def requests_of(count: int, seed: int = 0, gap_ns: int = 3_000_000) -> list[Request]:
    """Inputs of 8 to 100 tokens and outputs of 2 to 40, in an order that ``seed`` decides; two tenants."""
    return [
        Request(
            f"r{i}", i * gap_ns, 8 + (37 * i + 11 * seed) % 93, 64, 2 + (23 * i + 7 * seed) % 39, tenant="ab"[i % 2]
        )
        for i in range(count)
    ]


def simulated_run(
    folder: Path, count: int = 40, journal: bool = False, seed: int = 0, report: bool = False, slower: int = 1,
    gap_ns: int = 3_000_000,
    **settings: Any,
) -> Run:  # fmt: skip
    """``slower``: device times of all steps by so much."""
    config = SchedulerConfig(**{"max_running": 8, "kv_tokens": 4096, **settings})
    manifest = {
        "name": folder.name, "world": "sim", "seed": seed, "config": config.as_dict(), "workload": f"{count} requests",
        "command": "python bench.py --mode sim",
    }  # fmt: skip
    costs = IntegerCosts(slower * 1_000_000, slower * 50_000, slower * 2_000, slower * 100)
    with RunWriter(folder, manifest) as writer, (folder / JOURNAL_FILE).open("w") as stream:
        scheduler = JournaledScheduler(config, stream, writer) if journal else Scheduler(config, writer)
        simulate(requests_of(count, seed, gap_ns), scheduler, costs)
        stream.flush()
        if not journal:
            (folder / JOURNAL_FILE).unlink()
        return writer.close(scheduler.counters, scheduler.digest.hexdigest(), costs=costs, report=report)
