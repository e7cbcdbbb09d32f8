"""How good and how fast the tuner is.

    python benchmarks/tuning.py grid  --workload TRACE --requests 3000 --time-scale 0.6 --costs h100-qwen-7b
    python benchmarks/tuning.py speed --workload TRACE --requests 10000 --time-scale 0.6 --costs h100-qwen-7b

``grid`` simulates every setting of a space of 360 in full, which is what the tuner is to spare, and then searches it
with ten seeds: how near each comes to the true best, and what it simulated for that, in full runs. ``speed`` times 200
candidates, halved as ``--mode tune`` does it and each in full, on two workers and on one.

    python benchmarks/tuning.py refit FOLDER=SECONDS ...

``refit`` takes folders of tunings that were validated with ``--validate-s SECONDS``, and the costs that were fitted to
the engine's runs there (``validation/costs.csv.xz``) where there are some: what do these say of the settings, and of
those of the other folders, whose runs they have not seen? And what do the costs say today that it was tuned with?
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import sys
import tempfile
import time
from concurrent.futures import Future
from datetime import date
from pathlib import Path
from typing import Any

from scipy.stats import kendalltau

# this folder's scheduler.py is not the package
sys.path[0] = str(Path(__file__).resolve().parent.parent)

from core.arguments import Budget, given_flags, parse_arguments  # noqa: E402
from core.provenance import git_commit, hardware  # noqa: E402
from tuning.search import Search  # noqa: E402
from tuning.setting import Setting  # noqa: E402
from tuning.store import Store  # noqa: E402
from tuning.tune import Tuning  # noqa: E402
from tuning.validation import session_on, stretch_of  # noqa: E402
from tuning.workers import Workers, workers_for  # noqa: E402
from tuning.world import Evaluation, Job  # noqa: E402

#: small enough to be enumerated: 360 settings that differ
SPACE = """\
policy: [fcfs, srpt, sjf-predicted, hrrn, las, bucket-serve]
phase: [default, mixed]
chunk_tokens: [512, 2048]
max_prefill_tokens: 2048
max_running: [32, 64, 128, 256]
admission: [default, reserve-max, peak-future]
aging_s: [default, 10]
bucket: default
bucket_order: default
"""
SEEDS = 10
#: settings that a search of the grid may ask for
ASKED = 200
CANDIDATES = 200


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("grid", "speed", "refit"))
    own, rest = parser.parse_known_args()
    print(f"$ python {' '.join(sys.argv)}")
    print(f"{hardware()}; Python {platform.python_version()}; {date.today()}; commit {git_commit()}")
    {"grid": grid, "speed": speed, "refit": refit}[own.what](rest)


def tuning_of(rest: list[str], space: str | None) -> Tuning:
    with tempfile.TemporaryDirectory() as folder:
        argv = ["--mode", "tune", "--quiet", "--slo", "ttft_ms=500,tpot_ms=50", *rest]
        if space is not None:
            path = Path(folder) / "space.yaml"
            path.write_text(space)
            argv += ["--space", str(path)]
        return Tuning(parse_arguments(argv), given_flags(argv), "")


class Remembering:
    """Workers that simulate a job once, whatever the seed of the search: a simulation is the same each time."""

    def __init__(self, workers: Workers) -> None:
        self.count = workers.count
        self._workers = workers
        self._known: dict[str, Future[Evaluation]] = {}

    def submit(self, job: Job) -> Future[Evaluation]:
        job = job._replace(seed=0)
        whole = self._known.get(job._replace(limit_ns=None).key)
        if whole is not None and job.limit_ns is not None and whole.result().figures["ended_ns"] <= job.limit_ns:
            return whole
        if job.key not in self._known:
            self._known[job.key] = self._workers.submit(job)
        return self._known[job.key]


def searched(tuning: Tuning, workers: Workers, seed: int, settings: int) -> tuple[Search, float]:
    """A search of its own, and how many full runs it simulated."""
    with tempfile.TemporaryDirectory() as folder:
        search = Search(
            tuning.space, tuning.objectives, tuning.parts, list(tuning.baselines().values()), seed, workers,
            Store(Path(folder), {}), Budget(settings=settings),
        )  # fmt: skip
        return search, search.run().full


def grid(rest: list[str]) -> None:
    tuning = tuning_of(rest, SPACE)
    values = tuning.space.settings(10_000)
    assert values is not None
    settings = [tuning.space.setting(one) for one in values]
    full = tuning.parts.searched
    with workers_for(tuning.world, None, None) as workers:
        remembering = Remembering(workers)
        started_s = time.perf_counter()
        futures = [remembering.submit(Job(setting, full, 0)) for setting in settings]
        results = [future.result() for future in futures]
        truth = sorted((one.values[0] for one in results if not one.failed), reverse=True)
        near = sum(value >= 0.99 * truth[0] for value in truth)
        took_s = time.perf_counter() - started_s
        print(f"{len(settings)} settings on {full.stop:,} requests, all in full: {took_s:.0f} s")
        print(f"best goodput {truth[0]:.4f}/s, {near} within 1 % of it, median {truth[len(truth) // 2]:.4f}")
        good = 0
        for seed in range(SEEDS):
            search, cost = searched(tuning, remembering, seed, ASKED)
            best = search.best()
            assert best is not None
            share = best.results[-1].values[0] / truth[0]
            good += share >= 0.99
            print(
                f"seed {seed}: {100 * share:.2f} % of the best, simulated as much as {cost:.1f} full runs "
                f"({100 * cost / len(settings):.1f} % of {len(settings)}): {best.setting}"
            )
    print(f"within 1 % of the true best: {good} of {SEEDS}")


def speed(rest: list[str]) -> None:
    tuning = tuning_of(rest, None)
    halved: dict[int, float] = {}
    whole: dict[int, float] = {}
    for count in (2, 1):
        with workers_for(tuning.world, count, None) as workers:
            # the processes are there before the clock starts
            first = [workers.submit(Job(tuning.space.start, tuning.parts.rungs[0], 0)) for _ in range(2 * count)]
            for future in first:
                future.result()
            started_s = time.perf_counter()
            search, cost = searched(tuning, workers, 0, CANDIDATES)
            halved[count] = time.perf_counter() - started_s
            say(f"{count} workers, {CANDIDATES} candidates halved: {halved[count]:.0f} s, {cost:.1f} full runs")
            jobs = [search.job(one.setting, tuning.parts.searched) for one in search.candidates[:CANDIDATES]]
            started_s = time.perf_counter()
            results = [future.result() for future in [workers.submit(job) for job in jobs]]
            whole[count] = time.perf_counter() - started_s
            of_each = sorted(result.seconds for result in results)
            each = f"{tuning.parts.searched.stop:,} requests each, median {of_each[len(of_each) // 2]:.2f} s"
            left = sum(bool(result.overdue) for result in results)
            say(f"{count} workers, {len(jobs)} candidates in full ({each}; {left} overdue): {whole[count]:.0f} s")
    print(
        f"two workers are {halved[1] / halved[2]:.2f} times as fast as one with a search, "
        f"{whole[1] / whole[2]:.2f} times with candidates in full"
    )


def refit(rest: list[str]) -> None:
    places = {Path(name): float(seconds) for name, seconds in (word.split("=") for word in rest)}
    kept = {f"fitted to {place.name}": place / "validation" / "costs.csv.xz" for place in places}
    fitted = {title: path for title, path in kept.items() if path.is_file()}
    for place, seconds in places.items():
        result = json.loads((place / "tuning.json").read_text())
        validation = result["validation"]
        print(f"\n{place.name}, {validation['stretch']}")
        measured = [one["measured"] for one in validation["settings"]]
        name = result["costs"][0]
        columns = {
            "measured": measured,
            f"{name}, when it was tuned": [one["predicted"] for one in validation["settings"]],
        }
        for title, costs in {f"{name}, today": name, **fitted}.items():
            columns[title] = predictions(result, str(costs), seconds)
        for column, values in columns.items():
            errors = ", ".join(f"{value:.2f} ({100 * (value / real - 1):+.1f} %)"
                               for value, real in zip(values, measured, strict=True))  # fmt: skip
            tau = kendalltau(values, measured).statistic
            print(f"  {column}: {errors}; tau {tau:.2f}")


def predictions(result: dict[str, Any], costs: str, seconds: float) -> list[float]:
    """What ``costs`` say of the validated settings, on the stretch that the engine ran."""
    _, _, *argv = shlex.split(result["command"])
    argv = [*argv[: argv.index("--costs")], "--costs", costs, *argv[argv.index("--costs") + 2 :], "--force"]
    tuning = Tuning(parse_arguments(argv), given_flags(argv), "")
    model, stretch = tuning.first_costs, stretch_of(tuning.workload, seconds, None)
    found = []
    for one in result["validation"]["settings"]:
        session, case = session_on(tuning, Setting.of(one["setting"]), stretch, "sim")
        with tempfile.TemporaryDirectory() as folder:
            config = session.config(case, model.kv_tokens, model.context_tokens, model)
            run = session.simulate(case, model, Path(folder) / "run", config, session.requests())
        found.append(tuning.objectives[0].value(run.requests, run.summary["makespan_s"]))
    return found


def say(text: str) -> None:
    """A line, with how much else the machine does."""
    print(f"{text}; load {os.getloadavg()[0]:.1f}", flush=True)


if __name__ == "__main__":
    main()
