"""What a policy of the user's promises as it stands, before it has decided anything."""

from __future__ import annotations

from typing import Any

from scheduler.errors import ConfigError
from scheduler.policy import Ageing, LiveOrder, Order, Policy

NUMERIC = (None, "lane", "rank")


def check_policy(policy: Policy, name: str) -> None:
    """Raises :class:`ConfigError`, one line about the policy ``name``, if ``policy`` cannot be run."""

    def must(holds: bool, what: str, value: Any, rule: str) -> None:
        if not holds:
            raise ConfigError(f"policy {name}: {what} is {value!r}; {rule}")

    must(isinstance(policy.name, str), "name", policy.name, "must be a text")
    for role in ("waiting", "resident"):
        order = getattr(policy, role)
        must(isinstance(order, Order), role, order, "must be an Order")
        must(_count(order.min_rows), f"{role}.min_rows", order.min_rows, "must be a whole number >= 0")
        must(order.numeric in NUMERIC, f"{role}.numeric", order.numeric, "must be None, 'lane' or 'rank'")
    for what, least in (("quantum", 0), ("min_batch", 1), ("max_wait_ns", 0)):
        value = getattr(policy, what)
        must(_count(value, least), what, value, f"must be a whole number >= {least}")
    promote_ns, ageing = policy.promote_ns, policy.ageing
    must(promote_ns is None or _count(promote_ns, 1), "promote_ns", promote_ns, "must be None or nanoseconds >= 1")
    must(ageing is None or isinstance(ageing, Ageing), "ageing", ageing, "must be None or an Ageing")
    for what in ("urgency", "evictable"):
        value = getattr(policy, what)
        must(value is None or callable(value), what, value, "must be None or a function of a sequence and a view")
    _check_parts(policy, name)


def _check_parts(policy: Policy, name: str) -> None:
    """Parts that would be ignored, or that the scheduler cannot follow."""

    def refuse(message: str) -> None:
        raise ConfigError(f"policy {name}: {message}")

    if policy.resident.live or isinstance(policy.resident, LiveOrder):
        refuse(
            "the resident order is live, and residents cannot be ordered by what changes while others are served; make "
            "it the waiting order, or let lanes follow from a sequence's own progress"
        )
    if policy.waiting.timed != policy.resident.timed:
        refuse(
            "one of its two orders is timed: service is counted for residents and is where a request joins; make both"
        )
    if policy.promote_ns is not None and not policy.resident.timed:
        refuse("promote_ns starts a sequence again in the first lane of timed orders, and its orders are not timed")
    if policy.urgency is None and (policy.quantum or policy.evictable is not None):
        refuse("quantum and evictable are about evicting for rank, which needs an urgency; add one or leave them out")
    if policy.run_to_completion and policy.urgency is not None:
        refuse("it has an urgency, and a batch that runs to completion gives nobody up; leave one of them out")
    if not policy.run_to_completion and (policy.min_batch > 1 or policy.max_wait_ns):
        refuse("min_batch and max_wait_ns start a batch that runs to completion; set run_to_completion")


def _count(value: Any, least: int = 0) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least
