"""Parity: what the engine's scheduler was told, told again, gives the same plans."""

from __future__ import annotations

import copy
import io
import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from engine.executors import build_executor, default_graphs
from engine.loop import EngineLoop, Progress
from engine.models import loaded
from scheduler.config import SchedulerConfig
from scheduler.journal import JournaledScheduler, replay
from scheduler.request import Request, SamplingParams
from scheduler.scheduler import Scheduler

#: every policy, with settings under which each of its parts is at work
POLICIES: dict[str, dict[str, Any]] = {
    "fcfs": {},
    "static": {},
    "sjf": {},
    "sjf-bucket": {"bucket": 8},
    "sjf-aging": {"aging_s": 0.02},
    "srpt": {"quantum": 2},
}
#: a token in so many is an end token: no plan can foresee it
END_TOKENS = frozenset(range(0, 512, 24))


def recorded(model: Any, policy: str, layout: str) -> tuple[str, JournaledScheduler]:
    """A run with end tokens, an abort, and a pool in which sequences push each other out; and its journal."""
    config = SchedulerConfig.from_dict(
        {"policy": policy, "layout": layout, "kv_pool": "paged", "kv_tokens": 96, "block_tokens": 4, "max_running": 6,
         "max_prefill_tokens": 24, "context_tokens": 64, **POLICIES[policy]}
    )  # fmt: skip
    config = replace(config, **default_graphs(model, config)._asdict())
    stream = io.StringIO()
    scheduler = JournaledScheduler(config, stream)
    loop = EngineLoop(scheduler, build_executor(model, config), end_token_ids=END_TOKENS)
    lengths = itertools.cycle((5, 9, 9, 30, 14, 3, 21))
    requests = [
        Request(
            f"r{index}", index * 2_000_000, length, 24, prompt_token_ids=tuple(range(40, 40 + length)),
            sampling=SamplingParams(temperature=1.5, seed=index),
        )
        for index, length in zip(range(20), lengths, strict=False)
    ]  # fmt: skip

    def abort_one(progress: Progress) -> None:
        if progress.steps == 12:
            sequence, _ = next(iter(loop._live.values()))
            loop.abort(sequence.id)

    loop.run(requests, abort_one)
    return stream.getvalue(), scheduler


@pytest.mark.parametrize("layout", ["padded", "paged"])
@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_a_real_run_replays_to_the_same_plans(
    reference: Callable[[str], Any], policy: str, layout: str, device: str
) -> None:
    model = loaded("ours", copy.deepcopy(reference("qwen2").ours.model).to(device))
    journal, scheduler = recorded(model, policy, layout)
    assert scheduler.counters.aborted == 1
    assert '"eos"' in journal
    assert policy == "static" or scheduler.counters.preemptions > 0
    again = replay(journal.splitlines(keepends=True))
    assert again.exact, again.first_difference
    assert again.scheduler.digest.hexdigest() == scheduler.digest.hexdigest()
    assert again.scheduler.counters == scheduler.counters


def test_a_world_that_steps_another_cohort_is_found_out(reference: Callable[[str], Any]) -> None:
    class Other(Scheduler):
        """Cohorts of equal length too, but the fullest goes first."""

        def __init__(self, config: SchedulerConfig, observer: Any = None) -> None:
            super().__init__(replace(config, policy="sjf-bucket", bucket=1, bucket_order="fullest"), observer)

    journal, _ = recorded(reference("qwen2").ours, "sjf", "paged")
    lines = journal.splitlines(keepends=True)
    assert replay(lines).exact
    assert not replay(lines, world=Other).exact
