"""A policy in Python: what its name may stand for, and the line that a mistake gets."""

from __future__ import annotations

import io
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest

from scheduler.composition import compose
from scheduler.config import SchedulerConfig
from scheduler.errors import ConfigError
from scheduler.journal import JournaledScheduler, replay
from scheduler.policy import Policy
from scheduler.request import Request
from scheduler.scheduler import Scheduler
from scheduler.user_policies import open_user_policy
from simulator.costs import IntegerCosts
from simulator.replica import simulate

SOURCE = """
    from dataclasses import dataclass

    from scheduler.policy import Order, Policy

    class Shortest(Order):
        def rank(self, sequence, view):
            return sequence.known

    class Longest(Order):
        def __init__(self, sign=-1):
            self.sign = sign

        def rank(self, sequence, view):
            return self.sign * sequence.known

    longest = Longest()
    ready = Policy("ready made", waiting=Shortest())

    def chosen(config):
        return Policy("chosen", waiting=Longest() if config.max_running > 4 else Shortest())

    def with_quantum(config):
        return Policy("evicting", urgency=lambda sequence, view: sequence.number, quantum=config.quantum or 8)

    class Derived(Policy):
        def __init__(self, config):
            super().__init__("derived", waiting=Longest(), quantum=config.quantum or 0,
                             urgency=lambda sequence, view: sequence.number)

    def two(config, more):
        return ready

    def careless(config):
        return 1 / 0

    def forgetful(config):
        ready

    _hidden = ready
    number = 4
    """
FIT = "Shortest, Longest, longest, ready, chosen, with_quantum, Derived, careless, forgetful"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    found = tmp_path / "mine.py"
    found.write_text(dedent(SOURCE))
    return found


def mistake(policy: str, **settings: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        Scheduler(SchedulerConfig(policy=policy, **settings))
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(f"policy {policy}")
    return message.removeprefix(f"policy {policy}")


def policy_of(path: Path, name: str, **settings: Any) -> Policy:
    config = SchedulerConfig(policy=f"{path}:{name}", **settings)
    own = open_user_policy(config)
    assert own is not None
    return own.build(config)


def test_what_a_name_may_stand_for(path: Path) -> None:
    policies = {name: policy_of(path, name) for name in ("Shortest", "longest", "ready", "chosen")}
    assert {name: policy.name for name, policy in policies.items()} == {
        "Shortest": "Shortest", "longest": "longest", "ready": "ready made", "chosen": "chosen",
    }  # fmt: skip
    orders = [type(policy.waiting).__name__ for policy in policies.values()]
    assert orders == ["Shortest", "Longest", "Shortest", "Longest"]
    assert type(policy_of(path, "chosen", max_running=2).waiting).__name__ == "Shortest"


def test_a_class_of_ones_own_is_made_from_the_settings(path: Path) -> None:
    parts = compose(SchedulerConfig(policy=f"{path}:Derived", quantum=7, aging="threshold"))
    assert (parts.policy.name, parts.policy.quantum) == ("derived", 7)


def test_schedulers_share_nothing(path: Path) -> None:
    assert policy_of(path, "longest").waiting is not policy_of(path, "longest").waiting


def test_a_setting_that_nothing_looks_at_is_refused(path: Path) -> None:
    assert policy_of(path, "with_quantum", quantum=3).quantum == 3
    assert mistake(f"{path}:with_quantum", bucket=3) == " takes no bucket: nothing in the file looks at it"
    assert mistake(f"{path}:ready", quantum=3) == " takes no quantum: nothing in the file looks at it"


def test_parts_go_with_it(path: Path) -> None:
    parts = compose(
        SchedulerConfig(policy=f"{path}:Shortest", phase="mixed", aging="threshold", admission="peak-future")
    )
    assert (parts.phase, parts.admission.kind) == ("mixed", "peak-future")
    assert parts.policy.ageing is not None


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("Shortst", f": unknown name 'Shortst'; did you mean Shortest? (valid: {FIT})"),
        ("number", f": number is 4, which is no policy (names in it that fit: {FIT})"),
        ("careless", ": ZeroDivisionError: division by zero (mine.py, line "),
        ("forgetful", ": forgetful gave None, which is no Policy"),
        ("two", ": TypeError: two() missing 1 required positional argument: 'more'"),
    ],
)
def test_a_name_that_is_no_policy(name: str, said: str, path: Path) -> None:
    assert mistake(f"{path}:{name}").startswith(said)


def test_a_file_without_a_name_lists_what_fits(path: Path) -> None:
    assert mistake(str(path)) == f" does not say which policy of the file; add :Shortest (names in it that fit: {FIT})"


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("x = 1\nimport no_such_module\n", ": ModuleNotFoundError: No module named 'no_such_module' (mine.py, line 2)"),
        ("x = 1\ndef f(:\n", ", line 2: invalid syntax"),
        ("raise SystemExit(3)\n", ": SystemExit: 3 (mine.py, line 1)"),
        ("x = 1\n", ": nothing in "),
    ],
)
def test_a_file_that_cannot_be_used(source: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(source)
    assert mistake(f"{path}:Mine").startswith(said)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    assert mistake(f"{tmp_path}/none.py:Mine") == f": no such file as {tmp_path}/none.py"


# -- replay


def test_a_replay_has_the_file_that_was_recorded(path: Path) -> None:
    journal = io.StringIO()
    scheduler = JournaledScheduler(SchedulerConfig(policy=f"{path}:Shortest", max_running=2), journal)
    requests = [Request(f"r{i}", i * 500, 9 - i % 5, 4, 4) for i in range(9)]
    simulate(requests, scheduler, IntegerCosts(1000, 37, 11, 3), max_repeat=1)
    lines = journal.getvalue().splitlines(keepends=True)
    assert replay(lines).exact

    path.write_text(path.read_text().replace("return sequence.known", "return -sequence.known"))
    with pytest.raises(ConfigError, match=r"mine\.py has changed since this was recorded"):
        replay(lines)
    path.unlink()
    with pytest.raises(ConfigError, match=r"no such file as .*mine\.py"):
        replay(lines)
