"""Shortest predicted remaining first, with preemption only early in a sequence's life.

Source: TRAIL (arXiv 2410.01035): a sequence that is far along holds much memory, so that preempting it costs more than
it gains. Its predictor looks at every token anew; here a prediction changes when it is outlived.
"""

from dataclasses import replace

from scheduler.config import SchedulerConfig
from scheduler.orders import before_share
from scheduler.policies import srpt
from scheduler.policy import Policy

#: share of the predicted output after which a sequence is left alone
PREEMPTIBLE_SHARE = 0.8


def build(config: SchedulerConfig) -> Policy:
    """:mod:`scheduler.policies.srpt`; only who has made less than 0.8 of its first predicted output is evicted."""
    return replace(srpt.build(config), evictable=before_share(PREEMPTIBLE_SHARE))
