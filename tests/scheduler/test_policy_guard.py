"""A user's policy that fails or breaks a promise is found out; one that keeps them is not disturbed."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest
from random_runs import Recorder, draw_run

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
    lines = [
        "from scheduler.policies import POLICIES",
        "def again(config):",
        f"    return POLICIES[{policy!r}].build(config)",
    ]
    path.write_text("\n".join(lines))
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


# -- what fails


def test_an_exception_is_told_with_its_place(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        """
        class Mine(Order):
            def rank(self, sequence, view):
                return 100 // (sequence.number - 4)  # here
        """,
    )
    where = f"mine.py, line {line_of(path, '# here')}"
    assert broken(path) == (
        f"policy Mine at 0.000003 s: waiting.rank of request r4 raised ZeroDivisionError: "
        f"integer division or modulo by zero ({where})"
    )


def test_a_policy_that_exits_ends_its_run_only(tmp_path: Path) -> None:
    path = written(tmp_path, "class Mine(Order):\n    def rank(self, sequence, view): raise SystemExit(3)")
    assert ": waiting.rank of request r0 raised SystemExit: 3 (mine.py, line " in broken(path)


#: a policy, and what is said of it
BROKEN: dict[str, tuple[str, str]] = {
    "a lane that is no key": (
        "class Mine(Order):\n    def lane(self, sequence, view): return [sequence.known]",
        "waiting.lane of request r0 is [5], which cannot be a key: it is not hashable",
    ),
    "lanes of two kinds": (
        "class Mine(Order):\n    def lane(self, sequence, view): return 'late' if sequence.number > 2 else 0",
        "waiting.lane of request r3 is 'late', which cannot be compared with 0",
    ),
    "a rank of None": (
        "class Mine(Order):\n    def rank(self, sequence, view): return sequence.request.deadline_ns",
        "waiting.rank of request r0 is None, which cannot be compared with None",
    ),
    "ranks of two kinds": (
        "class Mine(Order):\n    def rank(self, sequence, view): return 'x' if sequence.number == 2 else 7",
        "waiting.rank of request r2 is 'x', which cannot be compared with 7",
    ),
    "a rank that is not a number": (
        "class Mine(Order):\n    def rank(self, sequence, view): return (sequence.number % 2, float('nan'))",
        "waiting.rank of request r0 is (0, nan), which is neither before nor after (0, nan)",
    ),
    "a rank that ages": (
        "class Mine(Order):\n    def rank(self, sequence, view): return sequence.arrival_ns - view.now_ns",
        "and it has not been served; what changes by itself is for a LiveOrder",
    ),
    "a lane that changes while it waits": (
        "class Mine(Order):\n    def lane(self, sequence, view): return view.resident",
        "waiting.lane of request r11 is 2 and was 1 when it began to wait",
    ),
    "a lane's rank that changes by itself": (
        """
class Mine(Order):
    def lane(self, sequence, view):
        self.now = view.now_ns
        return sequence.number % 2
    def lane_rank(self, lane): return self.now if lane.key else 0
def Resident(config): return Policy("Resident", resident=Mine())
        """,
        "resident.lane_rank of lane 1",
    ),
    "no steps in a lane": (
        """
class Steps(Order):
    def steps_in_lane(self, sequence, view): return sequence.known % 4
Mine = Policy("Mine", resident=Steps())
        """,
        "is 0; must be a whole number >= 1",
    ),
    "steps that are no whole number": (
        """
class Steps(Order):
    def steps_in_lane(self, sequence, view): return sequence.known / 2
Mine = Policy("Mine", resident=Steps())
        """,
        "resident.steps_in_lane of request r0 is 3.0; must be a whole number >= 1",
    ),
    "a uniform order that is not": (
        """
class Uniform(ByLength):
    def lane(self, sequence, view): return sequence.known // 2
Mine = Policy("Mine", resident=Uniform(FixedWidth(1), "lowest"))
        """,
        "the lanes of a uniform order are lengths",
    ),
    "somebody who does not wait": (
        """
class Mine(LiveOrder):
    def first(self, queue, view):
        self.before = getattr(self, "before", queue.oldest())
        return self.before
        """,
        "waiting.first of request r0 says that it goes first, and it does not wait",
    ),
    "nobody": (
        "class Mine(LiveOrder):\n    def first(self, queue, view): pass",
        "waiting.first is None, which is no sequence",
    ),
    "an urgency that is no number": (
        "Mine = Policy('Mine', urgency=lambda sequence, view: 'very')",
        "is 'very'; must be a number",
    ),
    "an urgency that rises": (
        """
def Mine(config):
    return Policy("Mine", waiting=ByRemaining(), urgency=lambda sequence, view: sequence.output_tokens)
        """,
        "in the same lane; it may rise only when its lane changes",
    ),
    "evictable without an answer": (
        """
def perhaps(sequence, view): sequence.output_tokens > 3
def Mine(config):
    return Policy("Mine", waiting=ByRemaining(), resident=ByRemaining(), evictable=perhaps,
                  urgency=lambda sequence, view: -sequence.number % 3)
        """,
        "is None; must be True or False",
    ),
    "a ledger that loses its book": (
        """
class Ledger:
    def submitted(self, sequence): pass
    def admitted(self, sequence, first): pass
    def served(self, tenant, output_tokens): {}[tenant]
Mine = Policy("Mine", ledger=Ledger())
        """,
        "ledger.served of tenant 'a' raised KeyError: 'a' (mine.py, line",
    ),
    "a hook with the wrong arguments": (
        "class Mine(Order):\n    def rank(self, sequence): return 0",
        "waiting.rank of request r0 raised TypeError: Mine.rank() takes 2 positional arguments but 3 were given",
    ),
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_broken_promise_is_named(what: str, tmp_path: Path) -> None:
    source, said = BROKEN[what]
    name = "Resident" if "Resident" in source else "Mine"
    assert said in broken(written(tmp_path, source), name)


# -- what cannot be run at all

REFUSED: dict[str, tuple[str, str]] = {
    "resident that is no order": ("Mine = Policy('Mine', resident='fcfs')", "resident is 'fcfs'; must be an Order"),
    "quantum that is no count": (
        "Mine = Policy('Mine', urgency=lambda s, v: 0, quantum=1.5)", "quantum is 1.5; must be a whole number >= 0",
    ),
    "urgency that cannot be called": ("Mine = Policy('Mine', urgency=3)", "urgency is 3; must be None or a function"),
    "ageing that is a number": ("Mine = Policy('Mine', ageing=60)", "ageing is 60; must be None or an Ageing"),
    "numeric that is neither": (
        "class Mine(Order):\n    numeric = 'tokens'", "waiting.numeric is 'tokens'; must be None, 'lane' or 'rank'",
    ),
    "a live resident order": (
        "class Live(Order):\n    live = True\nMine = Policy('Mine', resident=Live())", "the resident order is live",
    ),
    "one timed order": (
        "class Timed(Order):\n    timed = True\nMine = Policy('Mine', resident=Timed())", "one of its two orders is",
    ),
    "promotion without levels": ("Mine = Policy('Mine', promote_ns=5)", "its orders are not timed"),
    "a quantum for nothing": ("Mine = Policy('Mine', quantum=5)", "which needs an urgency"),
    "a batch that gives nobody up": (
        "Mine = Policy('Mine', urgency=lambda s, v: 0, run_to_completion=True)", "gives nobody up",
    ),
    "a batch that is never closed": ("Mine = Policy('Mine', min_batch=4)", "set run_to_completion"),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_a_policy_that_cannot_be_run_is_refused(what: str, tmp_path: Path) -> None:
    source, said = REFUSED[what]
    path = written(tmp_path, source)
    with pytest.raises(ConfigError) as caught:
        compose(SchedulerConfig(policy=f"{path}:Mine"))
    assert str(caught.value).startswith(f"policy {path}:Mine: ")
    assert said in str(caught.value)


def test_the_time_is_that_of_the_decision(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        """
        class Mine(LiveOrder):
            def first(self, queue, view):
                if view.now_ns > 5000:
                    raise RuntimeError(f"it is {view.now_ns} ns")
                return queue.oldest()
        """,
    )
    message = broken(path)
    told = message.split("it is ")[1].split(" ns")[0]
    assert f" at {int(told) / 1e9:.6f} s: " in message


def test_ctrl_c_in_a_hook_is_no_mistake(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        """
        class Mine(Order):
            def rank(self, sequence, view):
                raise KeyboardInterrupt
        """,
    )
    with pytest.raises(KeyboardInterrupt):
        run(path)
