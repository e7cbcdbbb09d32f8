"""What is searched: knobs from the usual ranges, from files and from flags, and ranges that contradict themselves."""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest

from core.arguments import UsageError, given_flags, parse_arguments
from tuning.errors import TuningError
from tuning.setting import Setting
from tuning.space import Knob, Space, build_space
from tuning.tune import Tuning

ARGV = ["--mode", "tune", "--workload", "chat", "--costs", "roofline:l4:qwen2.5-0.5b"]


def space_of(*flags: str, ranges: str = "", folder: Path | None = None) -> Space:
    argv = [*ARGV, *flags]
    if ranges:
        assert folder is not None
        path = folder / "space.yaml"
        path.write_text(ranges)
        argv += ["--space", str(path)]
    args = parse_arguments(argv)
    args.block_tokens = args.block_tokens or 16
    return build_space(args, given_flags(argv), tenants=False, deadlines=False, kv_tokens=None)


def test_knobs_that_a_policy_does_not_take_are_left_out() -> None:
    space = space_of()
    values = {"policy": "fcfs", "bucket": 64, "bucket_order": "oldest", "aging_s": 5, "chunk_tokens": 512}
    assert space.setting(values) == Setting.of({"policy": "fcfs"})
    assert space.setting({**values, "policy": "sjf-bucket"}).values == {
        "policy": "sjf-bucket", "bucket": 64, "bucket_order": "oldest", "aging_s": 5,
    }  # fmt: skip
    assert space.setting({**values, "phase": "mixed"}).values == {
        "policy": "fcfs", "phase": "mixed", "chunk_tokens": 512,
    }  # fmt: skip


def test_nobody_who_serves_knows_the_true_lengths() -> None:
    assert space_of().setting({"policy": "srpt"}).values["oracle"] == "history"
    assert space_of("--oracle", "none").setting({"policy": "srpt"}).values["oracle"] == "none"
    assert "oracle" not in space_of().setting({"policy": "fcfs"}).values


def test_policies_without_what_they_go_by_are_not_tried() -> None:
    policies = space_of().knob("policy")
    assert policies is not None
    assert not {"vtc", "edf", "lpm"} & set(policies.choices)
    cached = space_of("--prefix-cache").knob("policy")
    assert cached is not None
    assert "lpm" in cached.choices


def test_flags_fix_knobs_for_the_policies_that_take_them() -> None:
    space = space_of("--policy", "fcfs,sjf-bucket", "--bucket", "64", "--max-running", "32")
    assert space.knob("max_running") is None
    assert [str(knob) for knob in space.knobs if knob.name == "bucket"] == ["64"]
    assert space.setting({"policy": "sjf-bucket"}).values["bucket"] == 64
    assert "bucket" not in space.setting({"policy": "fcfs"}).values
    assert space.arguments(space.setting({"policy": "sjf-bucket"})).max_running == 32


def test_a_flag_at_its_default_is_given_all_the_same() -> None:
    assert space_of("--max-prefill-tokens", "2048").knob("max_prefill_tokens") is None
    assert space_of().knob("max_prefill_tokens") is not None


def test_steps_of_more_tokens_than_recorded_are_not_tried_unless_asked_for(given: list[str], tmp_path: Path) -> None:
    at_h100 = [*given, "--costs", "h100-qwen-7b", "--block-tokens", "64"]

    def largest(*more: str) -> object:
        argv = [*at_h100, *more]
        knob = Tuning(parse_arguments(argv), given_flags(argv), "").space.knob("max_prefill_tokens")
        return None if knob is None else max(knob.choices)

    assert largest() == 2048
    wider = tmp_path / "wider.yaml"
    wider.write_text("max-prefill-tokens: [2048, 4096]\n")
    assert largest("--space", str(wider)) == 4096
    projected = space_of().knob("max_prefill_tokens")
    assert projected is not None
    assert max(projected.choices) == 8192


def test_ranges_are_read_from_a_file(tmp_path: Path) -> None:
    space = space_of(ranges="max-running: 4:64\npolicy: [fcfs, srpt]\naging_s: [default, 10]\n", folder=tmp_path)
    knob = space.knob("max_running")
    assert knob == Knob("max_running", low=4, high=64)
    assert space.knob("aging_s") == Knob("aging_s", (None, 10))
    drawn = [knob.drawn(Random(n)) for n in range(200)]
    assert (min(drawn), max(drawn)) == (4, 63)
    assert sum(value < 16 for value in drawn) > 80, "on a logarithmic scale half of them are below the middle"


def test_all_settings_are_each_there_once(tmp_path: Path) -> None:
    ranges = (
        "policy: [fcfs, srpt]\nphase: [default, mixed]\nchunk_tokens: [256, 512]\nmax_running: [4, 8]\n"
        "bucket: default\nbucket_order: default\naging_s: default\nmax_prefill_tokens: 2048\nadmission: default\n"
    )
    space = space_of(ranges=ranges, folder=tmp_path)
    found = space.settings(1000)
    assert found is not None
    keys = [space.setting(values).key for values in found]
    assert len(keys) == len(set(keys)) == 2 * 2 * 3, "a budget of a mixed step counts in mixed steps alone"
    assert space.settings(10) is None


def test_an_autoscaler_and_a_router_come_with_a_range_of_replicas() -> None:
    space = space_of("--replicas", "1:8")
    assert {knob.name for knob in space.knobs} >= {"replicas", "router", "scaling", "autoscale.upscale_delay_s"}
    one = space.setting({"policy": "fcfs", "replicas": 1, "router": "random", "scaling": "autoscale"})
    assert one.values == {"policy": "fcfs", "replicas": 1}
    several = {"policy": "fcfs", "replicas": 4, "router": "random", "autoscale.upscale_delay_s": 10}
    assert "autoscale.upscale_delay_s" not in space.setting({**several, "scaling": "fixed"}).values
    scaled = space.setting({**several, "scaling": "autoscale"})
    settings = space.scaling(scaled)
    assert settings is not None
    assert (settings.min_replicas, settings.max_replicas, settings.upscale_delay_s) == (1, 4, 10)
    assert space.arguments(scaled).replicas is None


@pytest.mark.parametrize(
    ("ranges", "said"),
    [
        ("max_running: 64:16", "max_running is from 64 to 16: the low end is above the high"),
        ("max_runing: 4:8", "did you mean"),
        ("max_running: 0:8", "max_running 0: "),
        ("policy: [fcfs]\nbucket: [16, 32]", "bucket (16, 32) has no effect on any setting: policy is fcfs"),
        ("phase: prefill-first\nchunk_tokens: [256, 512]", "chunk_tokens (256, 512) has no effect"),
        ("admission: [sometimes]", "admission sometimes: "),
        ("max_running: []", "max_running has no values"),
        ("- fcfs", "must be a mapping of flags to ranges"),
        ("max_running: [", "is not YAML"),
    ],
)
def test_ranges_that_cannot_be_are_refused_by_name(ranges: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(TuningError) as error:
        space_of(ranges=ranges, folder=tmp_path)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_a_knob_that_is_also_a_flag_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TuningError, match="max_running is also given as --max-running"):
        space_of("--max-running", "8", ranges="max_running: 4:16", folder=tmp_path)


def test_a_range_of_replicas_the_wrong_way_round_is_refused() -> None:
    with pytest.raises(UsageError, match="8:1 has its ends the wrong way round"):
        parse_arguments([*ARGV, "--replicas", "8:1"])
    with pytest.raises(UsageError, match="is a range, for --mode tune"):
        parse_arguments(["--mode", "sim", "--costs", "roofline:l4:qwen2.5-0.5b", "--replicas", "1:8"])
