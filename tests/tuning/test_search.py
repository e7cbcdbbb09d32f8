"""The search: how it halves, that nothing but its seed and budget decides what it finds, and that it goes on."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest

import tuning as tuning_package
from core.arguments import Budget, given_flags, parse_arguments
from tuning.errors import TuningError
from tuning.parts import held_out_needed, parts_of
from tuning.ranking import best_first, cannot_win, dominates, fronts
from tuning.search import BATCH, Found, Search
from tuning.setting import Setting
from tuning.store import Store
from tuning.tune import Tuning
from tuning.world import Evaluation, Job
from workloads.workload import Row, Workload

BASE = Setting.of({"policy": "fcfs", "max_prefill_tokens": 2048, "max_running": 8})


def evaluation(value: float, blocks: tuple[float, ...] = (), digest: str = "") -> Evaluation:
    return Evaluation((value,), (blocks,), {"digest": digest}, 1, 0.0)


class Bowl:
    """Workers whose figures are a function of the setting, best with srpt and as near to 40 running as the space lets
    it, with noise on the shorter parts."""

    count = 1

    def __init__(self) -> None:
        self.jobs: list[Job] = []

    def value(self, job: Job) -> float:
        values = job.setting.values
        running = int(values.get("max_running", 256))
        noise = 0.0 if job.part.whole else Random(job.key).uniform(-2, 2)
        return 100 - abs(running - 40) + (5 if values["policy"] == "srpt" else 0) + noise

    def result(self, job: Job) -> Evaluation:
        value, count = self.value(job), job.part.stop - job.part.start
        rng = Random(job.part.stop)
        blocks = tuple(value + rng.uniform(-9, 9) for _ in range(10))
        return Evaluation((value,), (blocks,), {"digest": job.key}, count, 0.01)

    def submit(self, job: Job) -> Future[Evaluation]:
        self.jobs.append(job)
        done: Future[Evaluation] = Future()
        done.set_result(self.result(job))
        return done


class Late(Bowl):
    """The same, two at a time, that end in whatever order."""

    count = 2

    def __init__(self, pool: ThreadPoolExecutor) -> None:
        super().__init__()
        self._pool = pool

    def submit(self, job: Job) -> Future[Evaluation]:
        self.jobs.append(job)
        pause_s = Random(len(self.jobs)).uniform(0, 0.004)

        def run() -> Evaluation:
            threading.Event().wait(pause_s)
            return self.result(job)

        return self._pool.submit(run)


@pytest.fixture
def tuning(given: list[str], space: Path) -> Tuning:
    argv = [*given, "--space", str(space)]
    return Tuning(parse_arguments(argv), given_flags(argv), "the command")


def searched(tuning: Tuning, folder: Path, workers: Any, settings: int = 70, seed: int = 0) -> tuple[Search, Found]:
    search = Search(
        tuning.space, tuning.objectives, tuning.parts, [BASE], seed, workers, Store(folder, {"a": 1}),
        Budget(settings=settings),
    )  # fmt: skip
    return search, search.run()


def told(found: Found) -> list[tuple[str, int, tuple[float, ...]]]:
    return [(one.setting.key, len(one.results), one.results[-1].values) for one in found.candidates]


class Slow(Bowl):
    """What ``sjf-predicted`` does takes three times as long as anything else, and would be the best of all."""

    def result(self, job: Job) -> Evaluation:
        found = super().result(job)
        late = job.setting.values["policy"] == "sjf-predicted"
        figures = {**found.figures, "ended_ns": 3000 if late else 1000}
        overdue = 7 if late and job.limit_ns is not None else 0
        return replace(found, values=(found.values[0] + 50 * late,), figures=figures, overdue=overdue)


def test_what_takes_twice_as_long_as_the_baselines_is_left(tuning: Tuning, tmp_path: Path) -> None:
    workers = Slow()
    search, found = searched(tuning, tmp_path, workers)
    rungs = len(tuning.parts.rungs)
    assert [job.limit_ns for job in workers.jobs[:rungs]] == [None] * rungs, "the baseline takes the time it takes"
    assert {job.limit_ns for job in workers.jobs[rungs:]} == {2000}
    slow = [one for one in found.candidates if one.setting.values["policy"] == "sjf-predicted"]
    assert slow
    assert all(one.hopeless and len(one.results) == 1 for one in slow)
    best = search.best()
    assert best is not None
    assert best.setting.values["policy"] != "sjf-predicted"
    assert not set(map(id, slow)) & set(map(id, found.whole(rungs)))


def test_it_finds_the_best_and_simulates_few_in_full(tuning: Tuning, tmp_path: Path) -> None:
    search, found = searched(tuning, tmp_path, Bowl())
    best = search.best()
    assert best is not None
    assert best.results[-1].values[0] >= 0.99 * (100 - (40 - 32) + 5)
    assert len(found.whole(len(tuning.parts.rungs))) < 20
    assert found.settings == 70
    assert found.full < 0.5 * 70


def test_longer_parts_are_for_the_best_of_the_shorter_ones(tuning: Tuning, tmp_path: Path) -> None:
    workers = Bowl()
    search, found = searched(tuning, tmp_path, workers, settings=BATCH)
    rungs = tuning.parts.rungs
    assert len(rungs) >= 2
    first = [one for one in found.candidates if not one.kept]
    ranked = sorted(first, key=lambda one: -one.results[0].values[0])
    promoted = [one for one in first if len(one.results) > 1 and one.results[1] is not one.results[-1]]
    assert set(map(id, promoted)) <= set(map(id, ranked[: BATCH // 3]))
    assert found.candidates[0].kept
    assert len(found.candidates[0].results) == len(rungs), "the baseline is simulated in full, whatever it does"
    del search


def test_the_order_in_which_jobs_end_changes_nothing(tuning: Tuning, tmp_path: Path) -> None:
    _, one = searched(tuning, tmp_path / "a", Bowl())
    with ThreadPoolExecutor(2) as pool:
        _, other = searched(tuning, tmp_path / "b", Late(pool))
    assert told(one) == told(other)
    _, another = searched(tuning, tmp_path / "c", Bowl(), seed=1)
    assert told(one) != told(another)


class KilledError(Exception):
    """As if the process had been killed."""


class Mortal(Bowl):
    def __init__(self, jobs: int) -> None:
        super().__init__()
        self._left = jobs

    def submit(self, job: Job) -> Future[Evaluation]:
        self._left -= 1
        if self._left < 0:
            raise KilledError
        return super().submit(job)


@pytest.mark.parametrize("jobs", [1, 25, 60])
def test_what_was_killed_goes_on_to_the_same_answer(jobs: int, tuning: Tuning, tmp_path: Path) -> None:
    whole = Bowl()
    _, one = searched(tuning, tmp_path / "a", whole)
    with pytest.raises(KilledError):
        searched(tuning, tmp_path / "b", Mortal(jobs))
    rest = Bowl()
    _, other = searched(tuning, tmp_path / "b", rest)
    assert told(one) == told(other)
    kept = len(Store(tmp_path / "b", {"a": 1}))
    assert len(rest.jobs) < len(whole.jobs) if jobs > BATCH else len(rest.jobs) <= len(whole.jobs)
    assert kept == len(whole.jobs)


def test_a_search_that_has_ended_simulates_nothing_again(tuning: Tuning, tmp_path: Path) -> None:
    _, one = searched(tuning, tmp_path, Bowl())
    again = Bowl()
    _, other = searched(tuning, tmp_path, again)
    assert told(one) == told(other)
    assert again.jobs == []
    more = Bowl()
    _, larger = searched(tuning, tmp_path, more, settings=90)
    assert told(larger)[: BATCH + 1] == told(one)[: BATCH + 1]
    assert more.jobs


def test_a_space_that_is_used_up_ends_the_search(tuning: Tuning, tmp_path: Path) -> None:
    _, found = searched(tuning, tmp_path, Bowl(), settings=5000)
    keys = [one.setting.key for one in found.candidates]
    assert len(keys) == len(set(keys))
    values = tuning.space.settings(10_000)
    assert values is not None
    assert set(keys) | {BASE.key} == {tuning.space.setting(one).key for one in values} | {BASE.key}


def test_a_folder_of_another_problem_is_refused(tmp_path: Path) -> None:
    Store(tmp_path, {"workload": "abc"}).close()
    with pytest.raises(TuningError, match='is of another tuning: workload is "abc" there and "def" here'):
        Store(tmp_path, {"workload": "def"})


# -- who is better


def test_who_is_worse_beyond_chance_cannot_win() -> None:
    leader = evaluation(1.0, (1.0, 0.9, 1.0, 0.9, 1.0, 0.9))
    assert cannot_win(evaluation(0.5, (0.5, 0.4, 0.6, 0.4, 0.5, 0.5)), leader)
    assert not cannot_win(evaluation(0.9, (1.3, 0.5, 1.2, 0.6, 1.0, 0.7)), leader)
    assert not cannot_win(leader, leader)
    assert not cannot_win(evaluation(0.1, (0.1,)), evaluation(1.0, (1.0,))), "one block says nothing"
    assert cannot_win(Evaluation((), (), {}, 0, 0.0, failed="no"), leader)


def test_fronts_and_the_order_in_them() -> None:
    points = [(1.0, 5.0), (5.0, 1.0), (3.0, 3.0), (1.0, 1.0), (2.9, 3.2)]
    assert fronts(points) == [[0, 1, 2, 4], [3]]
    order = best_first(points)
    assert set(order[:2]) == {0, 1}, "the ends of a front stand alone"
    assert order[-1] == 3
    assert best_first([(1.0,), (3.0,), (2.0,)]) == [1, 2, 0]
    assert not dominates((1.0, 2.0), (1.0, 2.0))


# -- parts


def workload_of(count: int) -> Workload:
    rows = [Row(i * 10**9, 100, 10, 64) for i in range(count)]
    busy = count // 3
    rows[busy : busy + 40] = [row._replace(prompt_tokens=5000) for row in rows[busy : busy + 40]]
    return Workload("mine", tuple(rows), "made")


def test_a_third_is_held_out_and_the_rest_grows() -> None:
    parts = parts_of(workload_of(3000), 0.95)
    assert parts.searched == (0, 2000, True, 0)
    assert parts.held_out == (2000, 3000, True, 5)
    assert parts.held_out.edges() == [2000, 2200, 2400, 2600, 2800, 3000]
    lengths = [part.stop - part.start for part in parts.rungs]
    assert lengths == [74, 222, 666, 2000]
    assert all(part.start <= 1000 and part.stop >= 1040 for part in parts.rungs), "the busiest stretch"
    assert not any(part.whole for part in parts.rungs[:-1])


def test_as_many_parts_are_held_out_as_the_confidence_needs() -> None:
    assert [held_out_needed(share) for share in (0.5, 0.75, 0.9, 0.95, 0.99)] == [2, 2, 4, 5, 7]


def test_a_trace_that_is_too_short_says_what_would_do() -> None:
    with pytest.raises(TuningError) as error:
        parts_of(workload_of(900), 0.95)
    assert "has 900 requests, too few for a confidence of 0.95" in str(error.value)
    assert "1500 in all; give a longer trace, or --confidence 0.75" in str(error.value)
    parts_of(workload_of(1500), 0.95)
    with pytest.raises(TuningError, match="too few"):
        parts_of(workload_of(1499), 0.95)


# -- workers


SUBMITTING = """
import sys
from concurrent.futures import wait
from core.arguments import given_flags, parse_arguments
from tuning.tune import Tuning
from tuning.setting import Setting
from tuning.workers import workers_for
from tuning.world import Job, Part

if __name__ == "__main__":
    argv = sys.argv[1:]
    world = Tuning(parse_arguments(argv), given_flags(argv), "").world
    with workers_for(world, 2, None) as workers:
        wait([workers.submit(Job(Setting.of({"policy": "fcfs"}), Part(0, 40 + n), 0)) for n in range(4)])
        print(*workers._pool._processes, flush=True)
        sys.stdin.read()
"""


def runs(pid: int) -> bool:
    """Whether a process is there and has not ended; who it belongs to may be slow to notice."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_workers_end_with_a_process_that_is_killed(given: list[str], tmp_path: Path) -> None:
    script = tmp_path / "submitting.py"
    script.write_text(SUBMITTING)
    root = Path(tuning_package.__file__).parent.parent
    process = subprocess.Popen(
        [sys.executable, str(script), *given], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": str(root)},
    )  # fmt: skip
    assert process.stdout is not None
    pids = [int(pid) for pid in process.stdout.readline().split()]
    assert len(pids) == 2
    process.kill()
    process.wait()
    deadline = time.monotonic() + 60
    while any(map(runs, pids)):
        assert time.monotonic() < deadline, "they are still there"
        time.sleep(0.05)
