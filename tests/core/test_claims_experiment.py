"""The claims on a small random model: every run can be run, and what was stopped goes on."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import get_args

import pytest
import torch

import bench
from core.claims import experiment, gpu, loads
from core.claims.claims import CLAIMS, reckoned, runs_of
from core.claims.gpu import idle_figures
from core.claims.runs import CELLS, RUNS, needed
from reports.claims import Kind, Quantity, Relation, Results, answer
from scheduler.config import SchedulerConfig
from scheduler.scheduler import Scheduler

CLAIMS_COMMAND = ("--mode", "validate", "--claims", "--quiet")


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch, small_model: None) -> None:
    """Few requests, and a threshold that is over soon."""
    scale = replace(loads.QUARTER, threshold_s=0.05, burst=5)
    monkeypatch.setattr(experiment, "QUARTER", scale)
    monkeypatch.setitem(loads.SCALES, "quarter", scale)


def run(folder: Path, *flags: str) -> int:
    return bench.main([*CLAIMS_COMMAND, "--out", str(folder), *flags])


def kept(folder: Path, name: str) -> dict[str, float]:
    figures: dict[str, float] = json.loads((folder / name / "figures.json").read_text())["figures"]
    return figures


def test_every_reading_is_of_runs_that_there_are() -> None:
    without_runs = set(reckoned())
    for claim in CLAIMS.values():
        for reading in claim.readings:
            for name, valid in (("kind", Kind), ("relation", Relation), ("quantity", Quantity)):
                assert getattr(reading, name) in get_args(valid), reading.text
            assert set(reading.runs) <= set(RUNS) | without_runs, reading.text
        texts = [reading.text for reading in claim.readings]
        assert len(set(texts)) == len(texts), "the verdict names readings by their texts"
        assert any(reading.counts for reading in claim.readings)


def test_every_run_is_for_something() -> None:
    used = {name for claim in CLAIMS.values() for name in runs_of(claim)}
    used |= {name for cell in CELLS for name in (cell.run, cell.plain)}
    assert {run.name for run in needed(used)} == set(RUNS)


def test_runs_come_after_those_that_they_take_their_rate_from() -> None:
    names = list(RUNS)
    for place, one in enumerate(RUNS.values()):
        if one.load.rate_of is not None:
            assert names.index(one.load.rate_of) < place
            assert one.load.rate_of in {run.name for run in needed([one.name])}


@pytest.mark.parametrize("scale", loads.SCALES.values(), ids=lambda scale: scale.name)
def test_every_run_is_a_composition_that_the_scheduler_takes(scale: loads.Scale) -> None:
    for one in RUNS.values():
        own = {"kv_tokens": 4096, **one.settings(scale), "length_quantiles": (1, 8, 48)}
        Scheduler(SchedulerConfig(policy=one.policy, layout=one.layout, **own))


def test_loads_are_the_same_for_the_same_seed_and_scale_with_it() -> None:
    for load in {run.load.name: run.load for run in RUNS.values()}.values():
        full, again = (load.workload(loads.FULL, 7, 2.0) for _ in range(2))
        assert full.sha256() == again.sha256()
        assert full.sha256() != load.workload(loads.FULL, 8, 2.0).sha256()
        quarter = load.workload(loads.QUARTER, 7, 2.0)
        longest = [max(row.prompt_tokens for row in workload.rows) for workload in (full, quarter)]
        assert longest[0] / longest[1] == pytest.approx(4, rel=0.2)


def test_what_needs_no_run_is_reckoned() -> None:
    found = answer(CLAIMS["example"], reckoned())
    assert found.verdict == "does not hold"
    assert [(one.reading.kind, one.after, one.outcome) for one in found.judged] == [
        ("literal", 10, "false"), ("beside", 10, "true")
    ]  # fmt: skip


def test_idle_time_is_what_no_kernel_covers() -> None:
    figures = idle_figures([(60, 70), (0, 10), (5, 20), (6, 8), (90, 100)])
    assert figures == {"gpu_idle": 0.6, "gpu_idle_s": 60e-9, "gpu_running": 0.4}
    assert idle_figures([(3, 9)])["gpu_idle"] == 0


class Nvml:
    """A driver whose counters say 0.9 and 0.15 where they are supported."""

    NVML_GPM_METRICS_GET_VERSION = 1

    def __init__(self, supported: bool) -> None:
        self.supported = supported
        self.taken: list[object] = []

    def nvmlInit(self) -> None: ...  # noqa: N802

    def nvmlShutdown(self) -> None: ...  # noqa: N802

    def nvmlGpmQueryDeviceSupport(self, handle: str) -> SimpleNamespace:  # noqa: N802
        return SimpleNamespace(isSupportedDevice=self.supported)

    def nvmlGpmSampleAlloc(self) -> object:  # noqa: N802
        return object()

    def nvmlGpmSampleGet(self, handle: str, sample: object) -> None:  # noqa: N802
        self.taken.append(sample)

    def nvmlGpmSampleFree(self, sample: object) -> None:  # noqa: N802
        self.taken.remove(sample)

    def c_nvmlGpmMetricsGet_t(self) -> SimpleNamespace:  # noqa: N802
        return SimpleNamespace(metrics=[SimpleNamespace(metricId=0, nvmlReturn=0, value=0.0) for _ in range(2)])

    def nvmlGpmMetricsGet(self, asked: SimpleNamespace) -> None:  # noqa: N802
        assert [asked.sample1, asked.sample2] == self.taken
        for metric in asked.metrics:
            metric.value = {2: 90.0, 3: 15.0}[metric.metricId]

    def nvmlDeviceGetUtilizationRates(self, handle: str) -> SimpleNamespace:  # noqa: N802
        return SimpleNamespace(gpu=99)


@pytest.mark.parametrize("supported", [True, False])
def test_counters_are_read_where_a_gpu_has_them(monkeypatch: pytest.MonkeyPatch, supported: bool) -> None:
    nvml = Nvml(supported)
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    monkeypatch.setattr(gpu, "_handle", lambda *_: "handle")
    monkeypatch.setattr(gpu, "_EVERY_S", 0.001)
    with gpu.watch_of(torch.device("cuda"), profiled=False) as watch:
        assert isinstance(watch, gpu.Counters)
        watch.looked.wait()
    assert watch.figures == {"gpu_busy": 0.99} | ({"sm_activity": 0.9, "sm_occupancy": 0.15} if supported else {})
    assert set(watch.absent) == (set() if supported else {"sm_activity", "sm_occupancy"})
    assert not nvml.taken, "samples are given back"


def test_a_gpu_without_nvml_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    with gpu.watch_of(torch.device("cuda"), profiled=False) as watch:
        pass
    assert not watch.figures
    assert set(watch.absent) == {"sm_activity", "sm_occupancy", "gpu_busy"}
    assert all("nvidia-ml-py" in reason for reason in watch.absent.values())


def test_the_documentation_is_made_from_the_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = Path(bench.__file__).parent
    monkeypatch.chdir(root)
    results = sorted(str(path) for path in Path("benchmarks/results").glob("claims-*.json"))
    again = tmp_path / "claims.md"
    assert results
    assert bench.main(["--mode", "report", *results, "--out", str(again)]) == 0
    kept, made = (path.read_text().split("This page:")[0] for path in (Path("docs/claims.md"), again))
    assert kept == made, f"python bench.py --mode report {' '.join(results)} --out docs/claims.md"


@pytest.mark.usefixtures("short")
def test_all_claims_are_judged_and_all_files_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(experiment, "ROUNDS", 1)
    out = tmp_path / "out"
    assert run(out) == 0
    results = Results.from_json((out / "claims.json").read_text())
    assert set(results.measured) == set(RUNS) | set(reckoned())
    answers = {found.claim.name: found for found in experiment.answers_of(results)}
    assert {name for name, found in answers.items() if found.verdict == "not measured"} == {"sm-occupancy", "gpu-idle"}
    absent = {one.reason for name in ("sm-occupancy", "gpu-idle") for one in answers[name].judged}
    assert absent == {"there is no GPU here"}
    assert len(experiment.contrasts_of(results)) == len(CELLS)
    for name, measured in results.measured.items():
        replayed = [figures.get("replayed", 1.0) for figures in measured.rounds.values()]
        assert set(replayed) == {1.0}, f"{name} does not replay"
    page = (out / "report.html").read_text()
    assert all(f'id="{name}"' in page for name in CLAIMS)
    assert "http" not in page.replace("http://www.w3.org", "")
    text = (out / "claims.md").read_text()
    assert bench.main(["--mode", "report", str(out), "--quiet"]) == 0
    kept_text = (out / "claims.md").read_text()
    assert kept_text.split("This page:")[0] == text.split("This page:")[0], "the report is made from what is kept"


@pytest.mark.usefixtures("short")
def test_padding_is_what_the_policies_say(tmp_path: Path) -> None:
    assert run(tmp_path, "--experiments", "padding-waste") == 0
    assert kept(tmp_path, "sjf-padded-1")["decode_waste"] == 0
    assert 0 < kept(tmp_path, "bucket-padded-1")["decode_waste"] < kept(tmp_path, "fcfs-padded-1")["decode_waste"]
    assert kept(tmp_path, "fcfs-padded-1")["decode_batch"] > kept(tmp_path, "bucket-padded-1")["decode_batch"]
    assert not (tmp_path / "fcfs-paged-1").exists(), "what other claims need is not run"


@pytest.mark.usefixtures("short")
def test_what_was_stopped_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ("--experiments", "fragmentation")
    assert run(tmp_path, *flags, "--budget-s", "0.001") == 0
    assert "goes on from here" in capsys.readouterr().err
    assert not list(tmp_path.glob("memory-*"))
    assert run(tmp_path, *flags) == 0
    first = {path: path.stat().st_mtime_ns for path in tmp_path.glob("memory-*/figures.json")}
    assert len(first) == 9, "three runs, three rounds"
    again = tmp_path / "memory-paged-2" / "figures.json"
    again.unlink()
    assert run(tmp_path, *flags) == 0
    changed = {path for path, time_ns in first.items() if path.stat().st_mtime_ns != time_ns}
    assert changed == {again}


@pytest.mark.usefixtures("short")
def test_a_run_that_fails_leaves_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ("--experiments", "fragmentation")
    with monkeypatch.context() as patch:
        broken = replace(RUNS["memory-contiguous"], flags={"kv_pool": "contiguous", "admission": "now"})
        patch.setattr(experiment, "needed", lambda names: [broken, RUNS["memory-paged"]])
        assert run(tmp_path, *flags) == bench.FAILED
    assert "bench.py: error: memory-contiguous: admission now" in capsys.readouterr().err
    assert not (tmp_path / "memory-contiguous-1" / "figures.json").exists()
    assert kept(tmp_path, "memory-paged-3")["replayed"] == 1
    assert run(tmp_path, *flags) == bench.OK
    assert kept(tmp_path, "memory-contiguous-1")["replayed"] == 1


@pytest.mark.usefixtures("short")
def test_a_folder_of_another_seed_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path, "--experiments", "example") == 0
    assert run(tmp_path, "--experiments", "kv-reuse", "--budget-s", "0.001") == 0
    assert run(tmp_path, "--experiments", "kv-reuse", "--seed", "3") == bench.USAGE
    assert "seed 0 (now: 3)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--experiments", "padding"), "unknown claim 'padding'"),
        (("--requests", "5"), "--requests has no effect with --claims"),
        (("--policy", "sjf"), "--policy has no effect with --claims"),
    ],
)
def test_what_would_be_ignored_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: tuple[str, ...], said: str
) -> None:
    assert run(tmp_path / "out", *flags) == bench.USAGE
    assert said in capsys.readouterr().err


def test_claims_alone_take_a_budget(capsys: pytest.CaptureFixture[str]) -> None:
    assert bench.main(["--mode", "validate", "--budget-s", "5"]) == bench.USAGE
    assert bench.main(["--mode", "validate", "--experiments", "example"]) == bench.USAGE
    assert "give --claims as well" in capsys.readouterr().err
