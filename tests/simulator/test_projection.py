"""Projections: shares are found again in steps made of them, and what is kept and what moves to another GPU."""

from __future__ import annotations

from dataclasses import replace
from random import Random
from typing import Any

import numpy as np
import pandas as pd
import pytest

from scheduler.model_shapes import model_shape
from scheduler.plan import Kind, StepColumns
from simulator.bounds import StepFloor
from simulator.calibration import calibrate, errors_on, project
from simulator.costs import CostError
from simulator.gpus import GPUS, gpu_of
from simulator.profiles import COLUMNS, Profile, profile_names, profile_path, read_profile
from simulator.projection import ProjectedCosts, SharedRoofline, Shares
from simulator.recorded import costs_of

SHARES = Shares(
    weights=0.7, products=0.6, kv=0.8, row_kv=0.25, attention=0.35, link=0.5, logit_bytes=80.0, layer_ns=30_000.0,
    mixed=1.15, launch_ns={"prefill": 500_000.0, "mixed": 550_000.0},
)  # fmt: skip
ABOUT: dict[str, Any] = {
    "hardware": "NVIDIA H100 80GB HBM3, 16 cores", "model": "shape:qwen-7b", "dtype": "bfloat16", "tp": 1,
    "layouts": ["paged"], "kv_tokens": 107_712, "context_tokens": 8_192, "graph_rows": [1, 8, 64, 256],
    "steps": 900, "recorded": "2026-03-04",
}  # fmt: skip
HOST_NS = 400_000
#: a token of Qwen-7B's shape in bfloat16
KV_BYTES = 2 * 32 * 4096 * 2


def columns_of(kind: Kind, rng: Random) -> StepColumns:
    rows, context, tokens = rng.choice((1, 8, 64, 256)), rng.randint(64, 2000), 16 << rng.randint(0, 7)
    if kind == "decode":
        longest = context if rng.random() < 0.7 else 3 * context
        read = rows * context
        return StepColumns(
            "paged", kind, 1, rows, rows, rows, rows, read, read, read, longest, rows, rows, 0, read, rows
        )
    prompts = rng.choice((1, 4))
    each = tokens // prompts
    pairs, new = prompts * each * (each + 1) // 2, prompts * each
    if kind == "prefill":
        return StepColumns("paged", kind, 1, prompts, prompts, new, new, pairs, pairs, new, each, prompts)
    read = rows * context
    return StepColumns("paged", kind, 1, prompts + rows, prompts + rows, new + rows, new + rows, pairs + read,
                       pairs + read, new + read, max(each, context), prompts + rows, rows, 0, read)  # fmt: skip


def recording(shares: Shares = SHARES, noise: float = 0.01, **about: Any) -> Profile:
    """900 steps of an H100 that reaches ``shares``, a few of them stalled, and 20 that swapped 1,000 tokens."""
    rng = Random(1)
    roofline = SharedRoofline(GPUS["h100"], model_shape("qwen-7b"), shares, "bfloat16")
    rows = []
    for index in range(920):
        columns = columns_of(("prefill", "decode", "mixed")[index % 3], rng)
        swapped = 1_000 if index >= 900 else 0
        seconds = float(np.sum(roofline.seconds(columns, columns.graph_rows > 0))) * rng.uniform(1 - noise, 1 + noise)
        seconds *= 3 if index % 100 == 50 else 1
        seconds += swapped * KV_BYTES / (GPUS["h100"].host_bandwidth * shares.link)
        fields = columns._replace(swapped_tokens=swapped)._asdict()
        times = {"device_ns": round(seconds * 1e9), "host_ns": HOST_NS, "launch_ns": 0, "work_ns": 0}
        rows.append({**fields, **times, "overlap": 0})
    return Profile({**ABOUT, **about}, pd.DataFrame(rows)[list(COLUMNS)])


@pytest.fixture(scope="module")
def made() -> Profile:
    return recording()


def a100(profile: Profile, model: str | None = None) -> ProjectedCosts:
    return project("project:made:a100-80gb", profile, "a100-80gb", model)


# -- the calibration


def test_the_shares_that_steps_are_made_of_are_found_again(made: Profile) -> None:
    found = calibrate(made, costs_of("made", made.about, made.steps, b"")).shares["paged"]
    for name in ("weights", "products", "kv", "mixed"):
        assert getattr(found, name) == pytest.approx(getattr(SHARES, name), rel=0.03), name
    for name in ("row_kv", "attention", "link"):
        assert getattr(found, name) == pytest.approx(getattr(SHARES, name), rel=0.15), name
    for kind, launch_ns in SHARES.launch_ns.items():
        assert found.launch_ns[kind] == pytest.approx(launch_ns, rel=0.02)


def test_stalls_and_swaps_leave_the_shares_as_they_are() -> None:
    clean = calibrate(*_with_costs(recording(noise=0.0)))
    assert clean.errors["paged", "decode"] < 0.05
    assert clean.shares["paged"].weights == pytest.approx(SHARES.weights, rel=0.01)


def test_no_share_is_more_than_the_whole_and_no_mixed_step_less_than_its_parts() -> None:
    impossible = replace(SHARES, kv=1.4, products=1.2, mixed=0.8)
    found = calibrate(*_with_costs(recording(impossible))).shares["paged"]
    assert found.kv <= 1
    assert found.products <= 1
    assert found.mixed >= 1


def _with_costs(profile: Profile) -> tuple[Profile, Any]:
    return profile, costs_of("made", profile.about, profile.steps, b"")


@pytest.mark.parametrize("name", profile_names())
def test_recorded_profiles_can_be_calibrated_on(name: str) -> None:
    profile = read_profile(profile_path(name))
    errors = project(f"project:{name}:a100-80gb", profile, "a100-80gb").errors
    assert errors["paged", "decode"] < 0.15
    assert set(errors) == {("paged", kind) for kind in ("prefill", "decode", "mixed")}


# -- what moves, and what stays


def test_on_its_own_gpu_a_projection_is_the_recording(made: Profile) -> None:
    own = project("project:made:h100", made, "h100")
    assert own.errors["paged", "decode"] == errors_on(made, own.rooflines)["paged", "decode"] < 0.05


def test_bandwidth_and_operations_move_with_the_datasheet(made: Profile) -> None:
    own, other = project("project:made:h100", made, "h100"), a100(made)
    rng = Random(2)
    for kind, ratio in (("decode", 3.35 / 2.039), ("prefill", 989 / 312)):
        columns = columns_of(kind, rng)  # type: ignore[arg-type]
        if kind == "decode":
            columns = columns._replace(rows_computed=1, new_tokens_computed=1, kv_columns_computed=9, longest_context=9)
        else:
            columns = columns._replace(new_tokens_computed=8192, kv_columns_computed=1, kv_tokens_read=1)
        before, after = (int(np.sum(costs.device_ns(columns))) for costs in (own, other))
        assert after / before == pytest.approx(ratio, rel=0.03)


def test_launches_and_the_host_stay_as_they_were(made: Profile) -> None:
    own, other = project("project:made:h100", made, "h100"), a100(made)
    short = StepColumns("paged", "prefill", 1, 1, 1, 16, 16, 136, 136, 16, 16, 1)
    assert other.device_ns(short) == own.device_ns(short) == pytest.approx(32 * 500_000, rel=0.02)
    # fewer layers, fewer launches
    smaller = a100(made, "qwen2.5-7b")
    assert smaller.device_ns(short) == pytest.approx(int(np.sum(other.device_ns(short))) * 28 / 32, rel=1e-6)
    for costs in (other, smaller):
        assert costs.host_ns(short) == pytest.approx(HOST_NS, rel=0.01)
        assert costs.graphs.graph_rows == (1, 8, 64, 256)


def test_what_the_engine_held_besides_stays_beside_the_weights(made: Profile) -> None:
    weights = model_shape("qwen-7b").weight_bytes()
    held = 0.9 * (80 << 30) - weights - 107_712 * KV_BYTES
    assert a100(made).kv_tokens == pytest.approx(107_712, abs=1)
    small = project("p", made, "a100-40gb").kv_tokens
    assert small == pytest.approx((0.9 * (40 << 30) - weights - held) / KV_BYTES, abs=1)
    # a memory that was limited on purpose says nothing of the engine: 1 GiB, as for a roofline
    limited = a100(recording(kv_tokens=5_000)).kv_tokens
    assert limited == pytest.approx((0.9 * (80 << 30) - weights - (1 << 30)) / KV_BYTES, abs=1)


def test_a_model_of_another_size_is_said_to_be_one(made: Profile) -> None:
    assert "so much smaller; not measured on that GPU" in a100(made, "smollm2-135m").projection
    assert "so much larger; not measured on that GPU" in project("p", made, "h200", "qwen2.5-32b").projection
    assert "so much" not in a100(made, "llama-2-7b").projection


def test_swaps_move_at_the_share_of_the_link_that_was_reached(made: Profile) -> None:
    costs = a100(made)
    columns = columns_of("decode", Random(3))
    beyond = int(np.sum(costs.device_ns(columns._replace(swapped_tokens=10_000)))) - int(
        np.sum(costs.device_ns(columns))
    )
    assert beyond / 1e9 == pytest.approx(10_000 * KV_BYTES / (GPUS["a100-80gb"].host_bandwidth * SHARES.link), rel=0.15)


def test_a_stretch_is_rounded_step_by_step(made: Profile) -> None:
    costs = a100(made)
    context = 500 + np.arange(40)
    stretch = StepColumns("paged", "decode", 40, 8, 8, 8, 8, 8 * context, 8 * context, 8 * context, context, 8,
                          graph_rows=8)  # fmt: skip
    steps = [stretch._replace(repeat=1, kv_columns_computed=8 * c, longest_context=c) for c in context.tolist()]
    found = costs.device_ns(stretch)
    assert isinstance(found, np.ndarray)
    assert found.tolist() == [costs.device_ns(step) for step in steps]


@pytest.mark.parametrize("overlap", [False, True])
def test_no_step_is_faster_than_its_floors(made: Profile, overlap: bool) -> None:
    costs = a100(made)
    floors = costs.floors("paged", overlap)
    rng = Random(4)
    for _ in range(300):
        kind: Kind = rng.choice(("prefill", "decode"))
        columns = columns_of(kind, rng)
        device, host = (int(np.sum(ns(columns))) for ns in (costs.device_ns, costs.host_ns))
        took = max(device, host) if overlap else device + host
        assert all(took >= _least(floor, columns) for floor in floors[kind])


def _least(floor: StepFloor, columns: StepColumns) -> float:
    read = int(np.sum(columns.kv_tokens_read))
    return floor.step_ns + floor.token_ns * columns.new_tokens_computed + floor.column_ns * read


# -- what is refused


@pytest.mark.parametrize(
    ("about", "said"),
    [
        ({"tp": 2}, "recorded on 2 GPUs: a roofline knows no traffic between them"),
        ({"hardware": "AMD EPYC 7763, 2 cores"}, "recorded on AMD EPYC 7763, 2 cores, whose datasheet is not known"),
        ({"model": "some/gemma-3-4b"}, "recorded with some/gemma-3-4b, of whose shape a roofline knows nothing"),
        ({"dtype": "float32"}, "recorded in float32: datasheets are read for 16-bit products"),
    ],
)
def test_a_recording_that_a_roofline_cannot_tell_of_is_refused(about: dict[str, Any], said: str) -> None:
    with pytest.raises(CostError, match=said):
        a100(recording(**about))


def test_a_target_that_is_not_known_or_too_small_is_refused(made: Profile) -> None:
    with pytest.raises(CostError, match=r"unknown GPU 'a100-80'; did you mean a100-80gb"):
        project("p", made, "a100-80")
    with pytest.raises(CostError, match=r"unknown model shape 'lama-2-7b'; did you mean llama-2-7b\?"):
        project("p", made, "a100-80gb", "lama-2-7b")
    with pytest.raises(CostError, match="llama-2-70b in bfloat16 leaves no room for KV on an NVIDIA T4"):
        project("p", made, "t4", "llama-2-70b")


def test_a_layout_that_was_not_recorded_is_refused_by_name(made: Profile) -> None:
    columns = columns_of("decode", Random(5))._replace(layout="padded")
    for refused in (lambda: a100(made).require("padded"), lambda: a100(made).device_ns(columns)):
        with pytest.raises(CostError, match="project:made:a100-80gb has too few padded prefill steps"):
            refused()


def test_gpus_are_known_by_what_cuda_calls_them() -> None:
    assert gpu_of("NVIDIA A100 80GB PCIe, Some CPU, 16 cores") is GPUS["a100-80gb-pcie"]
    assert gpu_of("NVIDIA L4, Some CPU, 4 cores") is GPUS["l4"]
    assert gpu_of("Some CPU, 4 cores") is None
    names = [device for gpu in GPUS.values() for device in gpu.devices]
    assert len(names) == len(set(names)) > len(GPUS) - 1
