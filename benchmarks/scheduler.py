"""What a scheduling decision costs: ``next_step`` + ``complete``, at 256 running and 10,000 waiting.

    python benchmarks/scheduler.py [--policies fcfs,srpt] [--running 256] [--waiting 10000] [--steps 2000]
    LOCKSTEP_COMPILE=1 pip install --no-deps --target build/compiled .
    python benchmarks/scheduler.py --package build/compiled

Each policy runs step by step on a device that takes a fixed time. A request comes in as one ends, so that the number of
those that run and wait stays. Printed are the microseconds of a step: the median and the mean over all, the 99th
percentile, the median of the steps in which nobody ended or was admitted, nor in the one before ("quiet"), and that at
a quarter of the running sequences, since a quiet step must not cost more with more of them. Then how many requests a
step admits and evicts on average: what a policy decides more often, it pays for more often.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import sys
import time
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from random import Random
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
_place = argparse.ArgumentParser(add_help=False)
_place.add_argument(
    "--package", type=Path, default=ROOT, help="folder that holds the scheduler (default: this checkout)"
)
sys.path[0] = str(_place.parse_known_args()[0].package.resolve())

import scheduler.scheduler as scheduler_module  # noqa: E402
from scheduler.config import SchedulerConfig  # noqa: E402
from scheduler.plan import StepOutcome  # noqa: E402
from scheduler.policies import POLICIES  # noqa: E402
from scheduler.request import Request  # noqa: E402
from scheduler.scheduler import Scheduler  # noqa: E402

STEP_NS = 20_000_000
#: what a policy needs beyond its name
SETTINGS = {"lpm": {"prefix_cache": True}}


def requests(seed: int) -> Iterator[Request]:
    """Chat-like requests without end: prompts of 50 to 1,000 tokens, outputs of 50 to 600, eight tenants."""
    rng = Random(seed)
    number = 0
    while True:
        arrival_ns = number * 1_000
        yield Request(
            f"r{number}", arrival_ns, rng.randint(50, 1000), max_tokens=1024, output_tokens=rng.randint(50, 600),
            tenant=f"t{rng.randrange(8)}", deadline_ns=arrival_ns + rng.randint(1, 10) * 1_000_000_000,
        )  # fmt: skip
        number += 1


class Measured(NamedTuple):
    taken: list[int]
    """nanoseconds of each step"""
    quiet: list[int]
    """of the quiet ones"""
    admitted: float
    """requests a step"""
    evicted: float


def measure(policy: str, running: int, waiting: int, steps: int) -> Measured:
    config = SchedulerConfig(
        policy=policy, max_running=running, kv_tokens=running * 2048, max_prefill_tokens=8192,
        length_quantiles=tuple(range(50, 601)), **SETTINGS.get(policy, {}),
    )  # fmt: skip
    scheduler = Scheduler(config)
    source = requests(0)
    now = 0
    for _ in range(running + waiting):
        scheduler.submit(next(source), now)
    taken, quiet = [], []
    clock = time.perf_counter_ns
    warm = 0
    was_quiet = False
    began_with = (0, 0, 0)
    while len(taken) < steps:
        now += 1_000
        began = clock()
        plan = scheduler.next_step(now)
        planned = clock() - began
        if plan is None:
            now = max(now, scheduler.next_wakeup() or now)
            continue
        now += STEP_NS
        outcome = StepOutcome([now], STEP_NS, 0)
        began = clock()
        ended = scheduler.complete(plan, outcome, now)
        took = planned + clock() - began
        if scheduler.waiting > waiting - running // 4:
            warm += 1
        is_quiet = plan.kind == "decode" and not ended
        if scheduler.resident >= running * 3 // 4 or warm > 4 * running:
            if not taken:
                began_with = counts(scheduler)
            taken.append(took)
            if is_quiet and was_quiet:
                quiet.append(took)
        was_quiet = is_quiet
        for _ in ended:
            scheduler.submit(next(source), now)
    resident, finished, evicted = (now - then for now, then in zip(counts(scheduler), began_with, strict=True))
    return Measured(taken, quiet, (resident + finished + evicted) / steps, evicted / steps)


def counts(scheduler: Scheduler) -> tuple[int, int, int]:
    """How many are resident, have finished, and were evicted so far."""
    return scheduler.resident, scheduler.counters.finished, scheduler.counters.preemptions


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, parents=[_place]
    )
    parser.add_argument("--policies", default=",".join(POLICIES), help="names, with commas between (default: all)")
    parser.add_argument("--running", type=int, default=256)
    parser.add_argument("--waiting", type=int, default=10_000)
    parser.add_argument("--steps", type=int, default=2_000)
    args = parser.parse_args()
    command = " ".join(["python", *sys.argv])
    kind = "plain Python" if scheduler_module.__file__.endswith(".py") else "compiled core"
    python = f"Python {platform.python_version()} on {platform.machine()}"
    print(f"# {command} · {date.today()} · {python} · {kind}", flush=True)
    print("policy          median us    mean us     p99 us   quiet us  at 1/4 running   admitted    evicted")
    for policy in args.policies.split(","):
        full = measure(policy, args.running, args.waiting, args.steps)
        fewer = measure(policy, max(1, args.running // 4), args.waiting, args.steps)
        p99 = statistics.quantiles(full.taken, n=100)[98]
        times = (statistics.median(full.taken), statistics.fmean(full.taken), p99, statistics.median(full.quiet or [0]))
        print(
            f"{policy:14s}" + "".join(f"{ns / 1e3:11.1f}" for ns in times)
            + f"{statistics.median(fewer.quiet or [0]) / 1e3:16.1f}{full.admitted:11.2f}{full.evicted:11.2f}",
            flush=True,
        )  # fmt: skip


if __name__ == "__main__":
    main()
