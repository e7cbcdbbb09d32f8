"""What is in force is what the composition came to, whoever decided it; what has no effect is not listed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from reports.settings import asked, readable, settings_in_force
from scheduler.composition import compose
from scheduler.config import SchedulerConfig
from scheduler.policies import POLICIES


def config_of(policy: str, **settings: Any) -> SchedulerConfig:
    needed: dict[str, Any] = {"lpm": {"prefix_cache": True}, "multi-bin": {"length_quantiles": (5, 50, 500)}}
    return SchedulerConfig(policy, **{**needed.get(policy, {}), **settings})


@pytest.mark.parametrize("policy", POLICIES)
def test_parts_in_force_are_those_of_the_composition(policy: str) -> None:
    config = config_of(policy)
    settings, composed = settings_in_force(config), compose(config)
    assert settings["policy"] == policy
    assert settings["parts"]["admission"].startswith(composed.admission.kind)
    assert settings["parts"]["phase"] == composed.phase
    assert (settings["parts"]["batching"] == "run-to-completion") == composed.policy.run_to_completion
    assert (settings["parts"]["aging"] == "threshold") == (composed.policy.ageing is not None)
    assert asked(settings) in ([], ["prefix cache"])
    assert dict(readable(settings))["Policy"].startswith(policy)


def test_what_has_no_effect_is_none() -> None:
    parts = settings_in_force(SchedulerConfig("orca-reserve"))["parts"]
    assert (parts["admission"], parts["victim"], parts["preemption"], parts["oracle"]) == ("reserve-max", *[None] * 3)
    assert settings_in_force(SchedulerConfig("fcfs"))["parts"]["chunk_tokens"] is None
    assert settings_in_force(SchedulerConfig("fcfs", phase="mixed"))["parts"]["chunk_tokens"] == 512


def test_what_was_asked_for_is_said_in_a_few_words() -> None:
    settings = settings_in_force(
        config_of("sjf-bucket", bucket="pow2", phase="decode-first", aging="threshold", aging_s=2.5, overlap=True)
    )
    assert asked(settings) == ["phase decode-first", "aging threshold (2.5 s)", "overlap", "bucket pow2"]
    assert asked(settings_in_force(SchedulerConfig(layout="padded"))) == []
    assert asked(settings_in_force(SchedulerConfig(batching="slice:8"))) == ["batching slice:8"]


def test_names_with_numbers_are_explained() -> None:
    lines = dict(readable(settings_in_force(SchedulerConfig(batching="slice:8", admission="quantile:0.75"))))
    assert lines["Batching"].startswith("slice:8: a batch is closed")
    assert lines["Admission"].startswith("quantile:0.75: if prompts")


def test_a_policy_of_the_users_own_is_not_run_to_be_shown() -> None:
    settings = settings_in_force(SchedulerConfig("nowhere/mine.py:Mine", phase="mixed"))
    assert settings["parts"]["phase"] == "mixed"
    assert settings["parts"]["admission"] is None
    assert dict(readable(settings))["Policy"] == "nowhere/mine.py:Mine"


def test_a_policy_that_is_described_says_its_parts(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("waiting: arrival\nphase: mixed\nchunk_tokens: 48\n")
    parts = settings_in_force(SchedulerConfig(str(file)))["parts"]
    assert (parts["phase"], parts["chunk_tokens"], parts["admission"]) == ("mixed", 48, "now")
    file.unlink()
    assert settings_in_force(SchedulerConfig(str(file)))["parts"]["admission"] is None
