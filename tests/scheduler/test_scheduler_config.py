"""Settings: what they come to, and one clear line for those that cannot be."""

from __future__ import annotations

import json
from typing import Any

import pytest

from scheduler.buckets import FixedWidth
from scheduler.config import ConfigError, SchedulerConfig
from scheduler.orders import ByLength
from scheduler.parts import PARTS, parse_admission, parse_batching
from scheduler.policies import ALIASES, POLICIES, POLICY_SETTINGS, build_policy, policy_name
from scheduler.scheduler import Scheduler


@pytest.mark.parametrize(
    "name", ["max_running", "max_rows", "max_prefill_tokens", "kv_tokens", "block_tokens", "context_tokens", "bucket",
             "min_batch", "chunk_tokens", "bins"]
)  # fmt: skip
@pytest.mark.parametrize("value", [0, -3])
def test_counts_are_at_least_1(name: str, value: int) -> None:
    settings: dict[str, Any] = {name: value}
    with pytest.raises(ConfigError, match=rf"^{name} is {value}; must be >= 1$"):
        SchedulerConfig(**settings)


@pytest.mark.parametrize(
    "name", ["starvation_s", "aging_s", "aging_weight", "swap_tokens", "quantum", "min_rows", "max_wait_s",
             "prefill_token_ns"]
)  # fmt: skip
@pytest.mark.parametrize("value", [-1, float("nan")])
def test_times_and_thresholds_are_not_negative(name: str, value: float) -> None:
    settings: dict[str, Any] = {name: value}
    with pytest.raises(ConfigError, match=rf"^{name} is {value}; must be >= 0$"):
        SchedulerConfig(**settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"policy": "sjf-buckets"}, "unknown policy 'sjf-buckets'; did you mean sjf-bucket?"),
        ({"policy": "fcsf"}, "unknown policy 'fcsf'; did you mean fcfs?"),
        ({"policy": "orka"}, "unknown policy 'orka'; did you mean orca?"),
        ({"policy": "zzz"}, "unknown policy 'zzz' (valid: fcfs, orca-reserve, static, sjf, sjf-bucket, "),
        ({"layout": "padd"}, "unknown layout 'padd'; did you mean padded?"),
        ({"kv_pool": "pages"}, "unknown KV pool 'pages'; did you mean paged?"),
        ({"policy": "sjf-bucket", "bucket_order": "fuller"}, "unknown bucket order 'fuller'; did you mean fullest?"),
        ({"policy": "srpt", "oracle": "ture"}, "unknown oracle 'ture'; did you mean true?"),
        ({"oracle": "noisy:2"}, "oracle is noisy:2; must be noisy:TAU[:SEED] with TAU from 0 to 1"),
        ({"bucket": "pow"}, "unknown bucket 'pow'; did you mean pow2?"),
        ({"bucket": 3.5}, "unknown bucket '3.5' (valid: N, pow2, edges:A,B,..., equal-mass:N, adaptive)"),
        ({"phase": "prefil"}, "unknown phase 'prefil'; did you mean prefill-first?"),
        ({"aging": "liner"}, "unknown aging 'liner'; did you mean linear?"),
        ({"victim": "oldest"}, "unknown victim 'oldest'; did you mean newest?"),
        ({"preemption": "swop"}, "unknown preemption 'swop'; did you mean swap?"),
        ({"batching": "slices:8"}, "unknown batching 'slices:8'; did you mean slice:K?"),
        ({"batching": "iteration:2"}, "unknown batching 'iteration:2'; did you mean iteration?"),
        ({"batching": "slice"}, "batching is slice; must be slice:K with K >= 1 decode steps"),
        ({"batching": "slice:0"}, "batching is slice:0; must be slice:K"),
        ({"batching": "slice:-2"}, "batching is slice:-2; must be slice:K"),
        ({"batching": "slice:1.5"}, "batching is slice:1.5; must be slice:K"),
        ({"admission": "reserve"}, "unknown admission 'reserve'; did you mean reserve-max?"),
        ({"admission": "quantile:1"}, "admission is quantile:1; must be quantile:Q with Q between 0 and 1"),
        ({"admission": "quantile:0"}, "admission is quantile:0; must be quantile:Q"),
        ({"admission": "quantile:"}, "admission is quantile:; must be quantile:Q"),
        ({"admission": "quantile:nan"}, "admission is quantile:nan; must be quantile:Q"),
        ({"length_quantiles": ()}, "length_quantiles must be lengths >= 1 that never fall, at least one"),
        ({"length_quantiles": (0, 5)}, "length_quantiles must be lengths >= 1"),
        ({"length_quantiles": (5, 4)}, "length_quantiles must be lengths >= 1"),
        ({"kv_tokens": 10}, "kv_tokens is 10, less than one block of 16 tokens"),
        ({"policy": "fcfs", "bucket": 8}, "policy fcfs takes no bucket (it belongs to sjf-bucket)"),
        ({"policy": "sjf", "quantum": 3}, "policy sjf takes no quantum (it belongs to srpt, trail, las, mlfq, edf)"),
        ({"policy": "orca", "min_rows": 3}, "policy srpt takes no min_rows (it belongs to sjf, sjf-bucket, sjf-aging)"),
    ],
)
def test_what_cannot_be_is_said_in_one_line(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Scheduler(SchedulerConfig(**settings))
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_unknown_keys_name_the_nearest_setting() -> None:
    with pytest.raises(ConfigError, match=r"unknown scheduler setting 'max_runing'; did you mean max_running\?"):
        SchedulerConfig.from_dict({"max_runing": 3})


def test_settings_survive_a_manifest() -> None:
    config = SchedulerConfig(policy="sjf-bucket", bucket=8, layout="padded", max_rows=3, length_quantiles=(1, 4, 4))
    assert SchedulerConfig.from_dict(config.as_dict()) == config
    assert SchedulerConfig.from_dict(json.loads(json.dumps(config.as_dict()))) == config


@pytest.mark.parametrize("part", PARTS)
def test_every_name_of_every_part_is_a_setting(part: str) -> None:
    values = {"slice:K": ["slice:1", "slice:64"], "quantile:Q": ["quantile", "quantile:0.5"]}
    for name in PARTS[part]:
        for value in values.get(name, [name]):
            assert getattr(SchedulerConfig.from_dict({part: value}), part) == value


def test_compound_names_say_their_number() -> None:
    assert parse_batching("slice:8") == ("slice", 8)
    assert parse_batching("run-to-completion").kind == "run-to-completion"
    assert parse_admission("quantile:0.75") == ("quantile", 0.75)
    assert parse_admission("quantile") == ("quantile", 0.9)
    assert parse_admission("peak-future").kind == "peak-future"


@pytest.mark.parametrize(
    ("settings", "pool", "capacity"),
    [
        ({}, "paged", 96),
        ({"layout": "padded"}, "contiguous", 100),
        ({"layout": "padded", "kv_pool": "paged"}, "paged", 96),
        ({"kv_pool": "contiguous"}, "contiguous", 100),
    ],
)
def test_the_pool_follows_the_layout_unless_named(settings: dict[str, Any], pool: str, capacity: int) -> None:
    config = SchedulerConfig(kv_tokens=100, **settings)
    assert (config.pool, config.capacity_tokens) == (pool, capacity)


def test_rows_default_to_all_that_are_resident() -> None:
    assert SchedulerConfig(max_running=7).rows == 7
    assert SchedulerConfig(max_running=7, max_rows=3).rows == 3


def test_orca_is_the_seeds_name_for_srpt() -> None:
    assert policy_name("orca") == "srpt" == ALIASES["orca"]
    assert Scheduler(SchedulerConfig(policy="orca", quantum=3)).policy.quantum == 3


def test_every_setting_of_every_policy_is_a_setting_and_reaches_it() -> None:
    values = {"bucket": 7, "bucket_order": "oldest", "bins": 3, "min_rows": 3, "oracle": "none", "quantum": 9,
              "min_batch": 4, "max_wait_s": 1.5}  # fmt: skip
    assert set(values) == set(POLICY_SETTINGS)
    for name, entry in POLICIES.items():
        own = {setting: values[setting] for setting in entry.settings}
        policy = build_policy(SchedulerConfig.from_dict({"policy": name, "length_quantiles": [1, 2, 3, 4], **own}))
        buckets = getattr(policy.resident, "buckets", None)
        reached = {
            "bucket": getattr(buckets, "width", None),
            "bucket_order": getattr(policy.resident, "pick", None),
            "bins": len(getattr(policy.waiting, "edges", ())) + 1,
            "min_rows": policy.resident.min_rows,
            "quantum": policy.quantum,
            "min_batch": policy.min_batch,
            "max_wait_s": policy.max_wait_ns / 1e9,
            "oracle": "none",
        }
        for setting in entry.settings:
            assert reached[setting] == values[setting], (name, setting)


def test_the_seeds_defaults() -> None:
    """Ageing from 60 s on, buckets of 32, at most 2,048 prefill tokens."""
    ageing = build_policy(SchedulerConfig(policy="sjf-aging")).ageing
    assert ageing is not None
    assert ageing.threshold_ns == 60_000_000_000
    order = build_policy(SchedulerConfig(policy="sjf-bucket")).resident
    assert isinstance(order, ByLength)
    assert isinstance(order.buckets, FixedWidth)
    assert order.buckets.width == 32
    assert SchedulerConfig().max_prefill_tokens == 2048


@pytest.mark.parametrize("setting", [{"min_batch": 4}, {"max_wait_s": 1.0}])
def test_half_a_rule_for_starting_a_batch_is_refused(setting: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="min_batch and max_wait_s go together"):
        Scheduler(SchedulerConfig(policy="static", **setting))
