"""Orders and urgencies by the names that a policy's description has for them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from scheduler.buckets import Buckets
from scheduler.config import SchedulerConfig
from scheduler.orders import (
    BUCKET_ORDERS,
    ByDeadline,
    ByLength,
    ByPrediction,
    ByPriority,
    ByRemaining,
    ByService,
    attained,
    deadline,
    priority,
    remaining,
    submission,
)
from scheduler.policies.hrrn import ByResponseRatio
from scheduler.policies.lpm import ByCachedPrefix
from scheduler.policies.mlfq import ByLevel, attained_level
from scheduler.policies.multi_bin import DEFAULT_BINS, equal_mass_bins
from scheduler.policies.vtc import ByTenant, Counters
from scheduler.policy import Order, View
from scheduler.sequence import Sequence

DEFAULT_SERVICE_QUANTUM = 128

Options = Mapping[str, Any]
"""What a description says of an order besides its name; ``buckets`` as :class:`~scheduler.buckets.Buckets`"""


@dataclass(frozen=True)
class Option:
    """What an order takes, and what it is if nothing is said."""

    kind: type
    default: Any
    summary: str
    least: int = 0
    names: tuple[str, ...] = ()


@dataclass(frozen=True)
class NamedOrder:
    """An order's builder, what it takes, and where it can be used."""

    build: Callable[[SchedulerConfig, Options], Order]
    summary: str
    options: Mapping[str, Option] = field(default_factory=dict)
    resident: bool = True
    """whether residents can be stepped by it; requests can wait by every order"""
    predicts: bool = False
    """whether it asks the oracle"""


@dataclass(frozen=True)
class NamedUrgency:
    """How urgent a sequence is, and the resident orders under which it stays as it is while a lane is served."""

    build: Callable[[Order], Callable[[Sequence, View], Any]]
    summary: str
    resident: tuple[str, ...] = ()
    """empty: it never changes, and goes with all of them"""
    predicts: bool = False


def _by_length(config: SchedulerConfig, options: Options) -> Order:
    buckets: Buckets = options["buckets"]
    return ByLength(buckets, options["pick"], options["min_rows"], options["shortest_first"], feeds=options["feeds"])


def _by_service(config: SchedulerConfig, options: Options) -> Order:
    quantum = config.quantum if options["quantum"] is None else options["quantum"]
    return ByService(DEFAULT_SERVICE_QUANTUM if quantum is None else quantum)


def _by_bin(config: SchedulerConfig, options: Options) -> Order:
    return equal_mass_bins(config, options["bins"], config.min_batch or config.max_running)


def _of_service(order: Order) -> Callable[[Sequence, View], Any]:
    return attained(order.quantum if isinstance(order, ByService) else 1)


ORDERS = {
    "arrival": NamedOrder(lambda config, options: Order(), "who came first"),
    "length": NamedOrder(
        _by_length,
        "one bucket of prompt and output tokens so far at a time",
        {
            "buckets": Option(object, 1, "a width, pow2, edges:A,B,... or adaptive"),
            "pick": Option(str, "lowest", "the bucket that goes first", names=BUCKET_ORDERS),
            "min_rows": Option(int, 0, "a smaller bucket takes rows from the next ones (resident)"),
            "shortest_first": Option(bool, False, "inside a bucket; else who came first"),
        },
    ),
    "remaining": NamedOrder(lambda config, options: ByRemaining(), "the fewest predicted tokens left", predicts=True),
    "prediction": NamedOrder(lambda config, options: ByPrediction(), "the shortest predicted output", predicts=True),
    "service": NamedOrder(
        _by_service,
        "the fewest output tokens so far, in quanta",
        {"quantum": Option(int, None, "tokens of a quantum; else the policy's quantum, else 128")},
    ),
    "deadline": NamedOrder(lambda config, options: ByDeadline(), "the earliest deadline of a first token"),
    "priority": NamedOrder(lambda config, options: ByPriority(), "the smallest priority number"),
    "level": NamedOrder(
        lambda config, options: ByLevel(),
        "the first level of a multi-level feedback queue; for waiting and resident together",
    ),
    "bin": NamedOrder(
        _by_bin,
        "one of the equal-mass bins of predicted output: a full one, else the one of who came first",
        {"bins": Option(int, DEFAULT_BINS, "how many", least=1)},
        predicts=True,
    ),
    "tenant": NamedOrder(
        lambda config, options: ByTenant(Counters()), "the tenant served least so far (VTC)", resident=False
    ),
    "response-ratio": NamedOrder(
        lambda config, options: ByResponseRatio(),
        "the longest wait for each predicted token",
        resident=False,
        predicts=True,
    ),
    "cached-prefix": NamedOrder(
        lambda config, options: ByCachedPrefix(), "the longest prefix in the prefix cache", resident=False
    ),
}

URGENCIES = {
    "arrival": NamedUrgency(lambda order: submission, "who came last is the least urgent"),
    "remaining": NamedUrgency(
        lambda order: remaining, "who has most predicted tokens left", ("remaining", "prediction"), predicts=True
    ),
    "service": NamedUrgency(_of_service, "who has had most output tokens, in quanta", ("service",)),
    "deadline": NamedUrgency(lambda order: deadline, "who is due last"),
    "priority": NamedUrgency(lambda order: priority, "who has the largest priority number"),
    "level": NamedUrgency(lambda order: attained_level, "who is in the last level", ("level",)),
}
