"""A user's policy that fails or breaks a promise is found out; one that keeps them is not disturbed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest
from random_runs import POLICY_SETTINGS, Recorder, draw_run

from scheduler.composition import compose
from scheduler.config import SchedulerConfig
from scheduler.errors import ConfigError, PolicyError
from scheduler.policies import POLICIES
from scheduler.request import Request
from scheduler.scheduler import Scheduler
from simulator.costs import IntegerCosts
from simulator.replica import ANY, simulate

IMPORTS = """\
from scheduler.orders import ByLength, ByRemaining
from scheduler.buckets import FixedWidth
from scheduler.policy import Ageing, LiveOrder, Order, Policy
"""


def written(folder: Path, source: str) -> Path:
    path = folder / "mine.py"
    path.write_text(IMPORTS + dedent(source))
    return path


def line_of(path: Path, text: str) -> int:
    """The line that ``text`` is in."""
    return next(number for number, line in enumerate(path.read_text().splitlines(), 1) if text in line)


def requests(count: int = 12) -> list[Request]:
    """Some wait, some are resident, and there is something to evict for."""
    return [
        Request(f"r{i}", i * 700, 5 + 3 * (i % 4), 9 + i % 3, 3 + 2 * (i % 3), tenant="ab"[i % 2]) for i in range(count)
    ]


def run(path: Path, name: str = "Mine", **settings: Any) -> Scheduler:
    settings = {"max_running": 3, "kv_tokens": 200, "block_tokens": 4, **settings}
    scheduler = Scheduler(SchedulerConfig(policy=f"{path}:{name}", **settings))
    return simulate(requests(), scheduler, IntegerCosts(1000, 37, 11, 3))


def broken(path: Path, name: str = "Mine", **settings: Any) -> str:
    with pytest.raises(PolicyError) as caught:
        run(path, name, **settings)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(f"policy {name} at ")
    return message


# -- nothing is changed


@pytest.mark.parametrize("policy", POLICIES)
def test_a_policy_that_keeps_its_promises_runs_as_if_unwatched(policy: str, tmp_path: Path) -> None:
    path = tmp_path / "again.py"
    path.write_text(
        f"from scheduler.policies import POLICIES\n\ndef again(config):\n    return POLICIES[{policy!r}].build(config)\n"
    )
    for seed in range(12):
        drawn = draw_run(policy, 18, seed)
        # who a policy is named for is of no interest here
        watched = replace(drawn.config, policy=f"{path}:again")
        outcomes = []
        for config in (drawn.config, watched):
            recorder = Recorder()
            scheduler = simulate(
                drawn.requests, Scheduler(config, recorder), drawn.costs, max_repeat=ANY, aborted=drawn.aborts
            )
            outcomes.append((scheduler.digest.hexdigest(), asdict(scheduler.counters), recorder.gap_counts))
        assert outcomes[0] == outcomes[1], (seed, drawn.config)


def test_built_in_policies_are_not_watched() -> None:
    for policy in POLICIES:
        config = SchedulerConfig(policy=policy, prefix_cache=policy == "lpm", length_quantiles=(1, 2, 3))
        parts = compose(config).policy
        for part in (parts.waiting, parts.resident, parts.urgency, parts.ledger, parts.evictable):
            assert "guard" not in type(part).__module__
