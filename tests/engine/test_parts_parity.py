"""Every pair of parts on the engine: a real run replays exactly, and its greedy tokens are transformers' own."""

from __future__ import annotations

import copy
import io
import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import pytest
from covering_array import CoveringArray, Row, covering_array

from engine.executors import build_executor, default_graphs
from engine.loop import EngineLoop, Progress, TokenOutput
from engine.models import LoadedModel, loaded
from scheduler.config import ConfigError, SchedulerConfig
from scheduler.counters import RunCounters
from scheduler.journal import JournaledScheduler, replay
from scheduler.policies import POLICIES
from scheduler.request import Request
from scheduler.scheduler import Scheduler

#: each with its default first
PARTS: dict[str, list[Any]] = {
    "policy": list(POLICIES),
    "layout": ["paged", "padded"],
    "kv_pool": ["paged", "contiguous", "buddy"],
    "batching": [None, "slice:3", "run-to-completion"],
    "phase": [None, "decode-first", "mixed"],
    "admission": [None, "now", "reserve-max", "reserve-pow2", "reserve-oracle", "peak-future", "quantile:0.7"],
    "aging": [None, "linear", "threshold"],
    "victim": [None, "newest", "longest-remaining", "lowest-priority"],
    "preemption": [None, "recompute", "swap"],
    "prefix_cache": [False, True],
    "overlap": [False, True],
    "oracle": [None, "true", "none", "noisy:0.5", "history"],
}
#: a memory in which a few sequences push each other out, chunks shorter than prompts
LIMITS: dict[str, Any] = {
    "kv_tokens": 96, "block_tokens": 4, "max_running": 6, "max_prefill_tokens": 24, "context_tokens": 64,
    "length_quantiles": (3, 5, 6, 7, 9, 14, 14),
}  # fmt: skip
#: settings under which a policy, or a part, is at work in a run of a few milliseconds
LIVELY: dict[tuple[str, Any], dict[str, Any]] = {
    **{("policy", policy): {"quantum": 2} for policy in ("srpt", "trail", "las", "mlfq", "edf")},
    ("policy", "sjf-bucket"): {"bucket": 8},
    ("policy", "multi-bin"): {"bins": 2},
    ("phase", "mixed"): {"chunk_tokens": 11},
    ("aging", "linear"): {"aging_weight": 1000.0},
    ("aging", "threshold"): {"aging_s": 0.01},
    ("preemption", "swap"): {"swap_tokens": 64},
}
MAX_TOKENS = 14
#: a token in so many is an end token: no plan can foresee it
END_TOKENS = frozenset(range(0, 512, 24))


def config_of(row: Row) -> SchedulerConfig:
    settings = {**LIMITS, **row}
    for part in row.items():
        settings |= LIVELY.get(part, {})
    if row["policy"] in ("static", "multi-bin") and row["batching"] != "slice:3":
        settings |= {"min_batch": 3, "max_wait_s": 0.004}
    return SchedulerConfig.from_dict(settings)


def composes(row: Row) -> bool:
    try:
        Scheduler(config_of(row))
    except ConfigError:
        return False
    return True


@cache
def array() -> CoveringArray:
    return covering_array(PARTS, composes)


def requests() -> list[Request]:
    """Some begin alike; some have a hidden length that is foreseen, some one that is not, some only their tokens."""
    source = random.Random(11)
    shared = [source.randrange(10, 512) for _ in range(16)]
    found = []
    for index, length in enumerate((5, 20, 9, 30, 14, 3, 21, 18, 20, 26, 7, 17)):
        own = [source.randrange(10, 512) for _ in range(length)]
        prompt = (shared + own)[:length] if index % 2 else own
        found.append(
            Request(
                f"r{index}", index // 4 * 1_000_000, length, MAX_TOKENS,
                output_tokens={1: 6, 2: 9}.get(index % 4), stop_kind="eos" if index % 4 == 2 else "length",
                tenant="ab"[index % 2], priority=index % 3,
                deadline_ns=None if index % 5 == 0 else (index * 7 % 12) * 2_000_000, prompt_token_ids=tuple(prompt),
            )
        )  # fmt: skip
    return found


@dataclass
class Served:
    """What a real run said."""

    journal: list[str]
    scheduler: JournaledScheduler
    tokens: dict[str, list[int]] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)


def serve(model: Any, config: SchedulerConfig) -> Served:
    """A real run in which three requests are aborted, wherever they are."""
    stream = io.StringIO()
    served = Served([], JournaledScheduler(config, stream))

    def hear(output: TokenOutput) -> None:
        assert output.request_id not in served.reasons, "news of a request that has ended"
        if output.token_id is not None:
            served.tokens.setdefault(output.request_id, []).append(output.token_id)
        if output.finish_reason:
            served.reasons[output.request_id] = output.finish_reason

    loop = EngineLoop(
        served.scheduler, build_executor(model, config), end_token_ids=END_TOKENS, listener=hear
    )  # fmt: skip

    def abort_some(progress: Progress) -> None:
        live = [sequence.id for sequence, _ in loop._live.values()]
        if live and progress.steps in (5, 12):
            loop.abort(live[-1])
        if live and progress.steps == 9:
            loop.abort(live[0])

    loop.run(requests(), abort_some)
    served.journal = stream.getvalue().splitlines(keepends=True)
    return served


def assert_served_well(served: Served, both: Any) -> None:
    scheduler = served.scheduler
    assert scheduler.idle
    assert scheduler.pool.free_blocks == scheduler.pool.capacity_blocks
    assert set(served.reasons.values()) <= {"length", "eos", "aborted"}
    for request in requests():
        prompt, given, reason = request.prompt_token_ids, served.tokens.get(request.id, []), served.reasons[request.id]
        assert prompt is not None
        expected = both.greedy(list(prompt), MAX_TOKENS)
        assert given[: len(expected)] == expected[: len(given)], request.id
        if request.output_tokens is not None and reason != "aborted":
            assert len(given) == request.output_tokens
        elif request.output_tokens is None:
            ends = [place for place, token in enumerate(given) if token in END_TOKENS]
            assert ends == ([len(given) - 1] if reason == "eos" else [])
            assert len(given) == MAX_TOKENS or reason != "length"


def assert_replays(served: Served) -> None:
    again = replay(served.journal)
    assert again.exact, again.first_difference
    assert again.scheduler.digest.hexdigest() == served.scheduler.digest.hexdigest()
    assert again.scheduler.counters == served.scheduler.counters
    assert again.scheduler.idle


#: counters of the runs so far on a CPU, by policy
seen: dict[str, list[RunCounters]] = {}


def run_rows(policy: str, both: Any, model: LoadedModel) -> list[RunCounters]:
    counters = []
    for row in array().rows:
        if row["policy"] != policy:
            continue
        try:
            config = config_of(row)
            served = serve(model, replace(config, **default_graphs(model, config)._asdict()))
            assert_served_well(served, both)
            assert_replays(served)
        except Exception as error:
            error.add_note(f"with {row}")
            raise
        counters.append(served.scheduler.counters)
    return counters


def run_rows_once(policy: str, both: Any) -> list[RunCounters]:
    if policy not in seen:
        seen[policy] = run_rows(policy, both, both.ours)
    return seen[policy]


@pytest.mark.parametrize("policy", POLICIES)
def test_a_real_run_gives_the_right_tokens_and_replays(reference: Callable[[str], Any], policy: str) -> None:
    assert len(run_rows_once(policy, reference("qwen2"))) >= 3


@pytest.mark.gpu
@pytest.mark.parametrize("policy", POLICIES)
def test_so_does_one_on_a_gpu(reference: Callable[[str], Any], policy: str) -> None:
    both = reference("qwen2")
    assert len(run_rows(policy, both, loaded("ours", copy.deepcopy(both.ours.model).cuda()))) >= 3


def test_the_runs_have_all_that_can_go_wrong(reference: Callable[[str], Any]) -> None:
    """Or the test above would prove little."""
    for policy in POLICIES:
        run_rows_once(policy, reference("qwen2"))
    for counter in ("preemptions", "recomputed_tokens", "swapped_out", "swapped_in", "prefix_hit_tokens",
                    "wasted_rows", "steps_mixed", "steps_prefill", "steps_decode", "aborted", "finished"):  # fmt: skip
        found = sum(getattr(counters, counter) > 0 for runs in seen.values() for counters in runs)
        # far more than that: how many depends on how fast the machine is
        assert found >= 1, counter


def test_only_what_is_refused_is_left_out() -> None:
    for pair in array().impossible:
        row = {name: values[0] for name, values in PARTS.items()} | dict(pair)
        with pytest.raises(ConfigError):
            Scheduler(config_of(row))
