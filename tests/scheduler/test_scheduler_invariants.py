"""What holds at each step of any run, whatever the policy and its parts; see :mod:`invariants`."""

from __future__ import annotations

from random import Random

import pytest
from fake_world import drive
from hypothesis import given
from hypothesis import strategies as st
from invariants import Checker
from random_runs import POLICY_SETTINGS, Recorder, Run, examples, runs

from scheduler.scheduler import Scheduler


@pytest.mark.parametrize("policy", POLICY_SETTINGS)
def test_every_step_keeps_the_promises(policy: str) -> None:
    @examples(70)
    @given(
        runs(policies=(policy,)), st.integers(0, 2**32), st.sampled_from((0.0, 0.1)), st.sampled_from((0.0, 0.1, 0.5))
    )
    def keeps(run: Run, seed: int, stop_chance: float, abort_chance: float) -> None:
        recorder = Recorder()
        scheduler = Scheduler(run.config, recorder)
        checker = Checker(run.config, scheduler, recorder)
        drive(
            scheduler,
            run.requests,
            Random(seed),
            stop_chance=stop_chance,
            abort_chance=abort_chance,
            watcher=checker,
        )
        checker.check_end()

    keeps()
