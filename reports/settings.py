"""The scheduler's settings as they were in force: what was asked for, and what the policy decided where nothing was."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from scheduler.composition import DEFAULT_AGEING_WEIGHT, Composition, compose
from scheduler.config import ConfigError, SchedulerConfig
from scheduler.graphs import Graphs
from scheduler.oracle import ORACLES
from scheduler.orders import LinearAgeing
from scheduler.parts import PARTS
from scheduler.policies import POLICIES, multi_bin, policy_name, sjf_bucket
from scheduler.user_policies import open_user_policy, policy_path
from scheduler.user_policies.files import PYTHON

#: settings of :class:`~scheduler.config.SchedulerConfig` by what they are about
_LIMITS = (
    "max_running", "max_rows", "max_prefill_tokens", "kv_tokens", "block_tokens", "context_tokens", "starvation_s",
    *Graphs._fields,
)  # fmt: skip
_PARTS = (
    "batching", "phase", "chunk_tokens", "admission", "aging", "aging_s", "aging_weight", "victim", "preemption",
    "swap_tokens", "prefix_cache", "overlap", "oracle",
)  # fmt: skip
_OWN = ("bucket", "bucket_order", "bins", "min_rows", "quantum", "min_batch", "max_wait_s")

#: at and above this a limit is none
_NO_LIMIT = 1 << 30
#: of what some policies take, their own defaults
_OWN_DEFAULTS: dict[str, dict[str, Any]] = {
    "sjf-bucket": {"bucket": sjf_bucket.DEFAULT_WIDTH, "bucket_order": "lowest"},
    "multi-bin": {"bins": multi_bin.DEFAULT_BINS},
}
_URGENCY = "the least urgent by the policy's rank is evicted first"
_PREDICTING_ADMISSIONS = ("peak-future", "reserve-pow2", "reserve-oracle")


def settings_in_force(config: SchedulerConfig) -> dict[str, Any]:
    """``policy``, ``layout``, ``kv_pool``, and by name the ``parts``, the policy's ``own`` settings and the ``limits``.

    A part that has no effect in this composition is ``None``. Of a policy in a Python file of the user's, and of one
    whose file is gone or has changed, only what was asked for is known: looking at settings runs nobody's code.
    """
    parts = {name: getattr(config, name) for name in _PARTS}
    own = {name: getattr(config, name) for name in _OWN if getattr(config, name) is not None}
    if policy_path(config.policy).suffix != PYTHON:
        try:
            composed = compose(config)
        except ConfigError:
            pass
        else:
            parts = _parts(composed)
            own = {**_OWN_DEFAULTS.get(config.policy, {}), **own, **_own(composed)}
    return {
        "policy": config.policy,
        "layout": config.layout,
        "kv_pool": config.pool,
        "parts": parts,
        "own": own,
        "limits": {name: getattr(config, name) for name in _LIMITS},
    }


def _parts(composed: Composition) -> dict[str, Any]:
    config, policy, steps = composed.config, composed.policy, composed.slice_steps
    linear = isinstance(policy.waiting, LinearAgeing) or isinstance(policy.resident, LinearAgeing)
    aging = "linear" if linear else "none" if policy.ageing is None else "threshold"
    weight = DEFAULT_AGEING_WEIGHT if config.aging_weight is None else config.aging_weight
    grows = not composed.admission.kind.startswith("reserve-")
    preempts = grows or policy.urgency is not None
    admission = composed.admission.kind
    return {
        "batching": "iteration" if steps is None else f"slice:{steps}" if steps else "run-to-completion",
        "phase": composed.phase,
        "chunk_tokens": composed.chunk_tokens if composed.phase == "mixed" else None,
        "admission": f"quantile:{composed.admission.share:g}" if admission == "quantile" else admission,
        "aging": aging,
        "aging_s": None if policy.ageing is None else policy.ageing.threshold_ns / 1e9,
        "aging_weight": weight if linear else None,
        "victim": (config.victim or ("newest" if policy.urgency is None else "urgency")) if preempts else None,
        "preemption": ("swap" if composed.swaps else "recompute") if preempts else None,
        "swap_tokens": config.swap_tokens,
        "prefix_cache": config.prefix_cache,
        "overlap": config.overlap,
        "oracle": (config.oracle or "true") if _predicts(config, admission) else None,
    }


def _own(composed: Composition) -> dict[str, Any]:
    """Defaults that the policy chose itself."""
    policy = composed.policy
    own: dict[str, Any] = {}
    if policy.urgency is not None:
        own["quantum"] = policy.quantum
    if policy.run_to_completion and policy.max_wait_ns:
        own |= {"min_batch": policy.min_batch, "max_wait_s": policy.max_wait_ns / 1e9}
    return own


def _predicts(config: SchedulerConfig, admission: str) -> bool:
    """Whether anything asks for a length."""
    if admission in _PREDICTING_ADMISSIONS or config.victim == "longest-remaining":
        return True
    described = open_user_policy(config)
    return "oracle" in POLICIES[policy_name(config.policy)].settings if described is None else described.predicts


# -- as a reader wants them


def readable(settings: Mapping[str, Any] | None) -> list[tuple[str, str]]:
    """Names and values of the settings in force, those without effect left out; empty for ``None``."""
    if not settings:
        return []
    own, limits = settings["own"], settings["limits"]
    lines = [
        ("Policy", ", ".join([str(settings["policy"]), *_readable_own(own)])),
        ("Layout", str(settings["layout"])),
        ("KV pool", _pool(str(settings["kv_pool"]), limits)),
        *_readable_parts(settings["parts"]),
        ("Sequences holding KV", f"at most {limits['max_running']:,}"),
    ]
    if limits["max_rows"] is not None:
        lines.append(("Rows of a step", f"at most {limits['max_rows']:,}"))
    if limits.get("graph_rows"):
        sizes = limits["graph_rows"]
        lines.append(("Graphs of decode steps", f"{len(sizes)}, of {sizes[0]:,} to {sizes[-1]:,} rows"))
    if limits.get("graph_tokens"):
        sizes = limits["graph_tokens"]
        lines.append(("Graphs of prompts", f"{len(sizes)}, of {sizes[0]:,} to {sizes[-1]:,} tokens"))
    if limits.get("graph_mixed"):
        sizes = limits["graph_mixed"]
        lines.append(("Graphs of prompts beside rows", f"{len(sizes)}, of {sizes[0]:,} to {sizes[-1]:,} tokens"))
    lines.append(("Prompt tokens of a step", f"at most {limits['max_prefill_tokens']:,}"))
    if limits["context_tokens"] < _NO_LIMIT:
        lines.append(("Context", f"{limits['context_tokens']:,} tokens"))
    return lines


def asked(settings: Mapping[str, Any] | None) -> list[str]:
    """What was asked for beyond policy and layout, a few words each: the settings that would else be others."""
    if not settings:
        return []
    parts, usual = settings["parts"], _unasked(settings)
    words = [f"{name} {value}" for name, value in _readable_values(parts) if value != usual.get(name)]
    words += [name.replace("_", " ") for name in ("prefix_cache", "overlap") if parts[name]]
    return words + _readable_own({name: value for name, value in settings["own"].items() if value != usual.get(name)})


def _unasked(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Readable parts and own settings of the same policy where nothing is asked for."""
    asked = SchedulerConfig(
        policy=settings["policy"],
        layout=settings["layout"],
        kv_pool=settings["kv_pool"],
        max_running=settings["limits"]["max_running"],
        prefix_cache=settings["parts"]["prefix_cache"],
        length_quantiles=(1,),
    )
    usual = settings_in_force(asked)
    return {**dict(_readable_values(usual["parts"])), **usual["own"]}


def _readable_own(own: Mapping[str, Any]) -> list[str]:
    return [
        f"{name.removesuffix('_s').replace('_', ' ')} {f'{value:g} s' if name.endswith('_s') else value}"
        for name, value in own.items()
    ]


def _pool(pool: str, limits: Mapping[str, Any]) -> str:
    tokens = "" if limits["kv_tokens"] >= _NO_LIMIT else f", {limits['kv_tokens']:,} tokens"
    blocks = f", blocks of {limits['block_tokens']}" if pool == "paged" else ""
    return pool + tokens + blocks


def _readable_parts(parts: Mapping[str, Any]) -> list[tuple[str, str]]:
    titles = {"aging": "Ageing"}
    lines = []
    for name, value in _readable_values(parts):
        about = _about(name, str(parts[name]))
        lines.append((titles.get(name, name.capitalize()), f"{value}: {about}" if about else value))
    lines += [(name.replace("_", " ").capitalize(), "on") for name in ("prefix_cache", "overlap") if parts[name]]
    return lines


def _readable_values(parts: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The parts that are chosen by a name, with their numbers."""
    numbers = {
        "phase": ("chunk_tokens", "{:,} tokens a step"),
        "aging": ("aging_s", "{:g} s") if parts["aging"] == "threshold" else ("aging_weight", "{:g} tokens a second"),
        "preemption": ("swap_tokens", "{:,} tokens of host memory"),
    }
    values = []
    for name in ("batching", "phase", "admission", "aging", "victim", "preemption", "oracle"):
        if parts[name] is None:
            continue
        number, text = numbers.get(name, ("", ""))
        amount = parts.get(number)
        values.append((name, str(parts[name]) + ("" if amount is None else f" ({text.format(amount)})")))
    return values


def _about(part: str, value: str) -> str:
    """The line that says what a part's name means, of names with a number (``slice:8``) too."""
    if (part, value) == ("victim", "urgency"):
        return _URGENCY
    names = ORACLES if part == "oracle" else PARTS.get(part, {})
    kind = value.partition(":")[0]
    return next((text for name, text in names.items() if value == name or kind == name.partition(":")[0]), "")
