"""A policy and its parts put together, or refused with the reason and what to change."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import cast

from scheduler.config import SchedulerConfig
from scheduler.errors import ConfigError
from scheduler.orders import ByLength, LinearAgeing
from scheduler.parts import Admission, parse_admission, parse_batching
from scheduler.policies import POLICIES, build_policy, policy_name
from scheduler.policy import Ageing, Order, Phase, Policy
from scheduler.user_policies import PythonPolicy, open_user_policy

DEFAULT_CHUNK_TOKENS = 512
DEFAULT_THRESHOLD_S = 60.0
DEFAULT_AGEING_WEIGHT = 10.0


@dataclass(frozen=True)
class Composition:
    """A policy with every part decided."""

    config: SchedulerConfig
    """with what a policy's file says by default"""
    policy: Policy
    phase: Phase
    chunk_tokens: int
    """token budget of a mixed step; otherwise without effect"""
    slice_steps: int | None
    """decode steps of a closed batch; 0: until its last member ends; ``None``: none is ever closed"""
    admission: Admission
    swaps: bool

    @property
    def takes_all(self) -> bool:
        """Whether every step takes all residents, whatever their lanes are."""
        config, order = self.config, self.policy.resident
        most = min(config.rows, self.chunk_tokens) if self.phase == "mixed" else config.rows
        if order.exclusive or order.uniform or order.strict or most < config.max_running:
            return False
        # with overlap, service is known to each sequence apart, and lanes have to be compared
        return not (order.timed and config.overlap)


def most_mixed_tokens(config: SchedulerConfig) -> int:
    """Tokens of a step of prompts beside rows, at most; 0 where there are no such steps."""
    composed = compose(config)
    return composed.chunk_tokens if composed.phase == "mixed" else 0


def compose(config: SchedulerConfig) -> Composition:
    """What ``config`` describes. A composition that cannot be is a :class:`~scheduler.config.ConfigError`."""
    own = open_user_policy(config)
    if own is None:
        policy = build_policy(config)
        predicts = "oracle" in POLICIES[policy_name(config.policy)].settings
    else:
        config = own.settled(config)
        policy, predicts = own.build(config), own.predicts
    slice_steps = _slice_steps(config, policy)
    if slice_steps == 0 and not policy.run_to_completion:
        policy = replace(policy, run_to_completion=True)
    elif slice_steps != 0:
        policy = replace(policy, run_to_completion=False, min_batch=1, max_wait_ns=0)
    policy = _aged(config, policy, slice_steps)
    admission = parse_admission(config.admission or _default_admission(config, policy))
    phase = _phase(config, slice_steps)
    _check_what_makes_the_policy(config, admission, slice_steps)
    _check_rows(config, policy, slice_steps)
    _check_memory(config, policy, admission)
    _check_eviction(config, policy, admission)
    _check_prefix_cache(config, policy)
    _check_oracle(config, admission, predicts)
    return Composition(
        config=config,
        policy=own.guarded(policy) if isinstance(own, PythonPolicy) else policy,
        phase=phase,
        chunk_tokens=config.chunk_tokens or DEFAULT_CHUNK_TOKENS,
        slice_steps=slice_steps,
        admission=admission,
        swaps=config.preemption == "swap",
    )


def _slice_steps(config: SchedulerConfig, policy: Policy) -> int | None:
    kind, steps = parse_batching(config.batching or ("run-to-completion" if policy.run_to_completion else "iteration"))
    if kind == "run-to-completion" and policy.urgency is not None:
        raise ConfigError(
            f"run-to-completion with {config.policy}: that policy takes a request's place away while it runs, and a "
            f"batch that runs to completion never gives one up; use batching iteration, or a policy such as "
            f"sjf-predicted"
        )
    if kind != "run-to-completion" and (config.min_batch is not None or config.max_wait_s is not None):
        raise ConfigError(
            f"min_batch and max_wait_s start a batch that runs to completion, and batching is "
            f"{config.batching or kind}; leave them out or use batching run-to-completion"
        )
    return None if kind == "iteration" else steps


def _phase(config: SchedulerConfig, slice_steps: int | None) -> Phase:
    phase = config.phase or "prefill-first"
    if phase == "mixed" and config.layout == "padded":
        raise ConfigError("phase mixed needs layout paged: a padded batch would be as wide as its longest chunk")
    if phase != "prefill-first" and slice_steps is not None:
        raise ConfigError(f"phase {phase} needs batching iteration: a closed batch fills first and decodes then")
    if config.chunk_tokens is not None and phase != "mixed":
        raise ConfigError(
            "chunk_tokens is the budget of a mixed step; use it with phase mixed (else max_prefill_tokens)"
        )
    return cast(Phase, phase)


def _aged(config: SchedulerConfig, policy: Policy, slice_steps: int | None) -> Policy:
    kind = config.aging
    linear = kind == "linear" or (config.aging_weight is not None and kind is None)
    threshold = kind == "threshold" or (config.aging_s is not None and kind is None)
    if config.aging_weight is not None and not linear:
        raise ConfigError(f"aging_weight belongs to linear ageing, and ageing is {kind}")
    if config.aging_s is not None and not threshold:
        raise ConfigError(f"aging_s belongs to ageing by threshold, and ageing is {kind}")
    if kind == "none" or linear:
        policy = replace(policy, ageing=None)
    if threshold and _oldest_first(policy.waiting) and _oldest_first(policy.resident):
        raise ConfigError(
            f"ageing by threshold with {config.policy}: it serves the oldest first anyway, so that nobody would be "
            f"served any sooner; leave it out"
        )
    if threshold:
        seconds = DEFAULT_THRESHOLD_S if config.aging_s is None else config.aging_s
        policy = replace(policy, ageing=Ageing(round(seconds * 1e9)))
    if linear:
        weight = DEFAULT_AGEING_WEIGHT if config.aging_weight is None else config.aging_weight
        if policy.waiting.numeric is None and policy.resident.numeric is None:
            raise ConfigError(
                f"linear ageing with {config.policy}: that policy has no rank in tokens to weigh waiting against; "
                f"use aging threshold"
            )
        if policy.waiting.numeric is None and _all_are_stepped(config, slice_steps):
            raise ConfigError(
                f"linear ageing with {config.policy} and batches that run to completion: it weighs who of them is "
                f"stepped, and all are; use aging threshold"
            )
        policy = replace(
            policy,
            waiting=LinearAgeing(policy.waiting, weight) if policy.waiting.numeric else policy.waiting,
            resident=LinearAgeing(policy.resident, weight) if policy.resident.numeric else policy.resident,
        )
    return policy


def _oldest_first(order: Order) -> bool:
    if isinstance(order, ByLength):
        return order.pick == "oldest" and not order.shortest_first
    return type(order) is Order


def _all_are_stepped(config: SchedulerConfig, slice_steps: int | None) -> bool:
    """Whether every step takes everybody of the closed batch, whatever the resident order."""
    return slice_steps == 0 and config.rows >= config.max_running


def _check_what_makes_the_policy(config: SchedulerConfig, admission: Admission, slice_steps: int | None) -> None:
    """A policy without the part that it is named for is another one, and should not run under its name."""
    if config.policy == "static" and slice_steps != 0:
        raise ConfigError(
            f"batching {config.batching} with static: static is arrival order with batches that run to completion; use "
            f"policy fcfs with batching {config.batching}"
        )
    if config.policy == "orca-reserve" and not admission.kind.startswith("reserve-"):
        raise ConfigError(
            f"admission {admission.kind} with orca-reserve: it is fcfs with memory reserved up front; use policy fcfs "
            f"with admission {config.admission}"
        )
    if config.policy == "sjf-aging" and config.aging == "none":
        raise ConfigError("aging none with sjf-aging: it is sjf with ageing; use policy sjf")


def _check_rows(config: SchedulerConfig, policy: Policy, slice_steps: int | None) -> None:
    min_rows = policy.resident.min_rows
    if min_rows > config.rows:
        limit = f"max_rows {config.max_rows}" if config.max_rows is not None else f"max_running {config.max_running}"
        raise ConfigError(f"min_rows {min_rows} with {limit}: a step never has so many rows; lower min_rows")
    if min_rows and slice_steps == 0:
        raise ConfigError(
            f"min_rows {min_rows} with batches that run to completion: a step takes all rows of the batch, or max_rows "
            f"of them; leave it out or use batching iteration"
        )
    if config.bucket_order is not None and _all_are_stepped(config, slice_steps):
        raise ConfigError(
            f"bucket_order {config.bucket_order} with batches that run to completion: all rows of the batch are "
            f"stepped, and no bucket goes first; leave it out, or set max_rows below max_running"
        )


def _default_admission(config: SchedulerConfig, policy: Policy) -> str:
    grows = config.pool == "paged" and not policy.run_to_completion and not policy.reserves
    return "now" if grows else "reserve-max"


def _check_memory(config: SchedulerConfig, policy: Policy, admission: Admission) -> None:
    reserves = admission.kind.startswith("reserve-")
    if not reserves and config.pool != "paged":
        raise ConfigError(
            f"admission {admission.kind} with a {config.pool} pool: what is reserved there cannot grow; "
            f"use kv_pool paged or admission reserve-max"
        )
    if not reserves and policy.run_to_completion:
        raise ConfigError(
            f"admission {admission.kind} with batches that run to completion: nobody can be preempted when memory runs "
            f"out; use admission reserve-max or batching iteration"
        )
    if admission.kind in ("reserve-pow2", "reserve-oracle") and (config.oracle or "true") != "true":
        raise ConfigError(f"admission {admission.kind} stands for knowing the output length; use oracle true")


def _check_eviction(config: SchedulerConfig, policy: Policy, admission: Admission) -> None:
    if config.swap_tokens is not None and config.preemption != "swap":
        raise ConfigError("swap_tokens is the host memory that preemption swap uses; add preemption swap")
    reserves = admission.kind.startswith("reserve-")
    if config.victim is not None and reserves:
        raise ConfigError(
            f"victim {config.victim} with admission {admission.kind}: memory never runs out, so nobody has to be "
            f"chosen; leave victim out or use admission now"
        )
    if config.preemption is not None and reserves and policy.urgency is None:
        raise ConfigError(
            f"preemption {config.preemption} with {config.policy} and admission {admission.kind}: nobody is ever "
            f"preempted; leave it out or use admission now"
        )


def _check_prefix_cache(config: SchedulerConfig, policy: Policy) -> None:
    if config.prefix_cache and (config.pool != "paged" or config.layout != "paged"):
        raise ConfigError("prefix_cache shares KV blocks between sequences; it needs layout paged and kv_pool paged")
    if policy.needs_prefix_cache and not config.prefix_cache:
        raise ConfigError(
            f"{config.policy} ranks by what the prefix cache holds, and there is none; add prefix_cache, or use fcfs"
        )


def _check_oracle(config: SchedulerConfig, admission: Admission, predicts: bool) -> None:
    if config.oracle is None:
        return
    asks = admission.kind in ("peak-future", "reserve-pow2", "reserve-oracle") or config.victim == "longest-remaining"
    if not predicts and not asks:
        raise ConfigError(
            f"oracle {config.oracle} with {config.policy}: nothing in this composition asks for a length; leave it "
            f"out, or use a policy, an admission or a victim that does (srpt, peak-future, longest-remaining)"
        )
