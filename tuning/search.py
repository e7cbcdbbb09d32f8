"""The search: settings are asked for in batches, and each batch is halved as its runs get longer.

A batch is simulated on a short part of the workload; the best third goes on to a part three times as long, until the
best of all are simulated on everything. Who is worse than the best beyond chance is given up at once, and of several
whose plans are the same so far only one goes on. All candidates see the same requests, so that what they
differ by is theirs. A batch is asked for with what was known two batches before: so two of them can run side by side,
and what is asked does not hang on who finished first. The same seed and number of settings therefore give the same
answer with any number of workers, and a search that was killed is played again from what it has kept, until it is where
it was.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, as_completed, wait
from dataclasses import dataclass, field
from fractions import Fraction
from random import Random
from typing import Any

from core.arguments import Budget
from tuning.objectives import Objective
from tuning.parts import GROWTH, Parts
from tuning.ranking import best_first, cannot_win, upwards
from tuning.sampler import Sampler
from tuning.setting import Setting, Value
from tuning.space import Space
from tuning.store import Store
from tuning.workers import Workers
from tuning.world import Evaluation, Job, Part

#: settings that are halved together: three thirds of three thirds of three
BATCH = 27
#: batches that run side by side
LAG = 2
#: at the end settings go on for what they promised: as much as so many full runs at a time, and as this share of all
#: settings would take at most, if they are no more than that behind the best
PLAYOFF, PLAYOFF_SHARE, PROMISING = 4, 0.06, 0.03
#: a candidate that takes this many times as long as the slowest baseline for a part is left there
OVERDUE = 2
#: times that another setting is asked for in the place of one that there was already
TRIES = 40
#: a space of fewer settings can be used up
ENUMERABLE = 20_000


@dataclass
class Candidate:
    """A setting and how it did, on ever longer parts."""

    number: int
    setting: Setting
    values: dict[str, Value | None]
    results: list[Evaluation] = field(default_factory=list)
    kept: bool = False
    """simulated in full whatever it does"""

    @property
    def failed(self) -> str:
        return self.results[-1].failed if self.results else ""

    @property
    def hopeless(self) -> bool:
        """Whether it cannot be simulated, or does not keep up with the baselines."""
        return bool(self.failed) or bool(self.results and self.results[-1].overdue)


@dataclass
class Found:
    """What a search came to: all candidates, in the order in which they were asked for; the first ones are the
    baselines. ``requests`` were simulated, ``full`` runs of everything that is searched would be as many."""

    candidates: list[Candidate]
    baselines: int
    requests: int
    full: float
    settings: int
    batches: int

    def whole(self, rungs: int) -> list[Candidate]:
        """Those that were simulated in full."""
        return [one for one in self.candidates if len(one.results) == rungs and not one.hopeless]


Progress = Callable[["Search"], None]
Batch = Generator[list[Job], list[Evaluation], None]


class Search:
    """One search. ``baselines`` are simulated first and in full; ``progress`` is told each time something has ended."""

    def __init__(
        self,
        space: Space,
        objectives: Sequence[Objective],
        parts: Parts,
        baselines: Sequence[Setting],
        seed: int,
        workers: Workers,
        store: Store,
        budget: Budget,
        progress: Progress = lambda search: None,
    ) -> None:
        self.space, self.objectives, self.parts, self.budget = space, tuple(objectives), parts, budget
        self.candidates: list[Candidate] = []
        self.requests = 0
        self._baselines = tuple(baselines)
        self._seed = seed
        self._workers, self._store, self._progress = workers, store, progress
        self._rng = Random(f"tuning {seed}")
        self._seen: set[str] = set()
        self._batches: list[list[Candidate]] = []
        self._told = 0
        self._all: list[dict[str, Value | None]] | None = None
        self._exhausted = False
        self._began_s = time.monotonic()
        self._before_s = store.seconds / workers.count
        self._sampler = Sampler(space, self.objectives, seed)
        self._trials: dict[int, Any] = {}
        self._kept: dict[Future[Evaluation], Job] = {}
        self._limits: dict[Part, int] = {}
        #: seconds that settings took for a request of the last part
        self._request_s: dict[str, float] = {}

    # -- how far it is

    @property
    def used_s(self) -> float:
        """Time used, that of earlier runs of the same search included."""
        return self._before_s + time.monotonic() - self._began_s

    @property
    def asked(self) -> int:
        """Settings asked for, baselines not counted."""
        return len(self._seen) - len({one.key for one in self._baselines})

    @property
    def left_s(self) -> float | None:
        """Time left, as far as it can be told."""
        if self.budget.seconds is not None:
            return max(0.0, self.budget.seconds - self.used_s)
        ended = sum(bool(one.results) for one in self.candidates)
        if not ended or self.budget.settings is None:
            return None
        return (time.monotonic() - self._began_s) / ended * max(0, self.budget.settings - self.asked)

    def best(self) -> Candidate | None:
        """The best of those simulated in full so far."""
        return self._best_of([self.candidates])

    # -- running

    def run(self) -> Found:
        """Search until the budget is used, then play off those that promised most."""
        baselines = self._start()
        running: dict[int, _Running] = {}
        started, ended = 0, set[int]()
        noted = self._store.number("batches")
        while True:
            while len(running) < LAG and (started < LAG or started - LAG in ended) and self._goes_on(started, noted):
                candidates = [*baselines, *self._ask(started)] if started == 0 else self._ask(started)
                if not candidates:
                    self._exhausted = True
                    break
                self._batches.append(candidates)
                running[started] = _Running(self._halved(candidates, self._known(started)))
                started += 1
                self._store.set_number("batches", max(noted, started))
                self._advance(running, started - 1, None, ended)
            if not running:
                break
            waiting = [future for one in running.values() for future in one.waiting]
            if waiting:
                wait(waiting, return_when=FIRST_COMPLETED)
            self._keep([future for future in self._kept if future.done()])
            for number in sorted(running):
                if running[number].ready:
                    self._advance(running, number, running[number].results(), ended)
                    self._progress(self)
        # what ended while the last results were handed on
        self._keep([*self._kept])
        self._play_off()
        full = self.requests / self.parts.searched.requests
        return Found(self.candidates, len(self._baselines), self.requests, full, self.asked, started)

    def _goes_on(self, number: int, noted: int) -> bool:
        if self._exhausted:
            return False
        if self.budget.settings is not None:
            return self.asked < self.budget.settings or number == 0
        return number == 0 or number < noted or self.used_s < (self.budget.seconds or 0)

    def _advance(
        self, running: dict[int, _Running], number: int, results: list[Evaluation] | None, ended: set[int]
    ) -> None:
        """Hand a batch its results, and begin what it wants next."""
        try:
            jobs = next(running[number].batch) if results is None else running[number].batch.send(results)
        except StopIteration:
            del running[number]
            ended.add(number)
            return
        running[number].begin(self._begin_all(jobs))

    def _begin_all(self, jobs: Sequence[Job]) -> list[Future[Evaluation]]:
        """Begin jobs, those that promise to take longest first: none is left over for one worker at the end."""
        by_time = sorted(range(len(jobs)), key=lambda i: self._expected_s(jobs[i]), reverse=True)
        futures = {i: self._begin(jobs[i]) for i in by_time}
        return [futures[i] for i in range(len(jobs))]

    def _expected_s(self, job: Job) -> float:
        """What a job takes, by what its setting took for a shorter part."""
        return job.part.requests * self._request_s.get(job.setting.key, 1.0)

    def _begin(self, job: Job) -> Future[Evaluation]:
        known = self._store.get(job.key)
        if known is not None:
            done: Future[Evaluation] = Future()
            done.set_result(known)
            self.requests += known.simulated
            return done
        future = self._workers.submit(job)
        self._kept[future] = job
        if future.done():  # where this process simulates, nothing else comes in between
            self._keep([future])
            self._progress(self)
        return future

    def _keep(self, futures: Iterable[Future[Evaluation]]) -> None:
        """Write down what has been simulated."""
        for future in futures:
            job = self._kept.pop(future, None)
            if job is not None:
                result = future.result()
                self._store.put(job.key, result)
                self.requests += result.simulated
                self._request_s[job.setting.key] = result.seconds / max(1, job.part.requests)

    def simulate(self, jobs: Sequence[Job]) -> list[Evaluation]:
        """Jobs beside the search, such as those on what is held out, in their order."""
        futures = self._begin_all(jobs)
        for future in as_completed(set(futures)):
            self._keep([future])
            self._progress(self)
        return [future.result() for future in futures]

    # -- halving

    def _start(self) -> list[Candidate]:
        """Simulate the baselines in full: what takes so much longer than they do is not waited for."""
        baselines = [self._candidate(setting, {}, kept=True) for setting in self._baselines]
        self._seen |= {one.setting.key for one in baselines}
        jobs = [Job(one.setting, part, self._seed) for one in baselines for part in self.parts.rungs]
        results = iter(self.simulate(jobs))
        for one in baselines:
            one.results += [next(results) for _ in self.parts.rungs]
        for level, part in enumerate(self.parts.rungs):
            took = [one.results[level].figures.get("ended_ns", 0) for one in baselines]
            if all(took):
                self._limits[part] = OVERDUE * max(took)
        return baselines

    def job(self, setting: Setting, part: Part) -> Job:
        """A setting on a part, for as long as the baselines give it."""
        return Job(setting, part, self._seed, limit_ns=self._limits.get(part))

    def _known(self, number: int) -> list[Candidate]:
        """The best so far, as batch ``number`` may know it."""
        best = self._best_of(self._batches[: max(0, number - LAG + 1)])
        return [] if best is None else [best]

    def _best_of(self, batches: Sequence[Sequence[Candidate]]) -> Candidate | None:
        """The best of those in ``batches`` simulated in full (of several objectives: the first on the front)."""
        whole = [one for batch in batches for one in batch if len(one.results) == len(self.parts.rungs)]
        whole = [one for one in whole if not one.hopeless]
        if not whole:
            return None
        return whole[best_first([upwards(one.results[-1], self.objectives) for one in whole])[0]]

    def _halved(self, candidates: list[Candidate], known: list[Candidate]) -> Batch:
        alive = candidates
        for level, part in enumerate(self.parts.rungs):
            running = [one for one in alive if not one.kept]
            results = yield [self.job(one.setting, part) for one in running]
            for one, result in zip(running, results, strict=True):
                one.results.append(result)
            if level < len(self.parts.rungs) - 1:
                alive = self._promoted(alive, level, known)

    def _promoted(self, alive: list[Candidate], level: int, known: list[Candidate]) -> list[Candidate]:
        """Who goes on to a longer part."""
        better = [one for one in alive if not one.hopeless]
        points = [upwards(one.results[level], self.objectives) for one in better]
        ranked = [better[i] for i in best_first(points)]
        places = math.ceil(sum(not one.kept for one in alive) / GROWTH)
        leaders = [one.results[level] for one in [*ranked[:1], *known]]
        promoted: list[Candidate] = []
        plans: set[Any] = set()
        for one in ranked:
            result = one.results[level]
            plan = (result.values, result.figures.get("digest"))
            hopeless = any(cannot_win(result, leader) for leader in leaders)
            if one.kept or (len(promoted) < places and plan not in plans and not hopeless):
                promoted.append(one)
                plans.add(plan)
        return promoted

    def projected(self, one: Candidate, by: Candidate | None = None) -> tuple[float, ...] | None:
        """What a candidate would come to in full, by what it and ``by`` (the best so far) did on the part that it got
        to."""
        if not one.results or one.failed:
            return None
        base, level = (by or self.candidates[0]).results, len(one.results) - 1
        values = []
        for axis, value in enumerate(one.results[-1].values):
            if level < len(base) and not base[level].failed and base[level].values[axis] and not base[-1].failed:
                ratio = base[-1].values[axis] / base[level].values[axis]
                value = value * ratio if math.isfinite(ratio) else value
            values.append(value)
        return tuple(values)

    def _play_off(self) -> None:
        """Simulate on longer parts who promises as much as the best and was not let through, since others did the same
        on the shorter ones: each a part further, in waves, each with what the one before found."""
        left = Fraction(max(PLAYOFF, round(PLAYOFF_SHARE * self.asked)))
        while True:
            chosen: list[Candidate] = []
            cost = Fraction(0)
            for one in self._promising():
                share = self._share(one)
                if cost + share > min(Fraction(PLAYOFF), left):
                    break
                chosen.append(one)
                cost += share
            if not chosen:
                return
            left -= cost
            results = self.simulate([self.job(one.setting, self._next(one)) for one in chosen])
            for one, result in zip(chosen, results, strict=True):
                one.results.append(result)
            self._progress(self)

    def _next(self, one: Candidate) -> Part:
        """The part that comes after those that a candidate was simulated on."""
        return self.parts.rungs[len(one.results)]

    def _share(self, one: Candidate) -> Fraction:
        """What its next part is of all that is searched."""
        return Fraction(self._next(one).requests, self.parts.searched.requests)

    def _promising(self) -> list[Candidate]:
        """Who would come near the best or pass it: in turns who promises most, and whose policy has been simulated in
        full least often."""
        best = self.best()
        if best is None:
            return []
        goal = [v - PROMISING * abs(v) for v in upwards(best.results[-1], self.objectives)]
        tried = Counter(one.setting.policy for one in self.candidates if len(one.results) == len(self.parts.rungs))
        found = []
        for one in self.candidates:
            done = one.hopeless or len(one.results) == len(self.parts.rungs)
            point = None if done else self._upwards(one, best)
            if point is not None and all(v >= least for v, least in zip(point, goal, strict=True)):
                found.append((point, one))
        ranked = [found[i][1] for i in best_first([point for point, _ in found])]
        chosen: list[Candidate] = []
        while ranked:
            by_policy = min(ranked, key=lambda one: (tried[one.setting.policy], ranked.index(one)))
            one = by_policy if len(chosen) % 2 else ranked[0]
            ranked.remove(one)
            tried[one.setting.policy] += 1
            chosen.append(one)
        return chosen

    # -- asking

    def _ask(self, number: int) -> list[Candidate]:
        """The settings of a batch: each policy's defaults first, then what the sampler finds with all that batch
        ``number`` may know. One that there was already is drawn again, near the best."""
        self._tell(number)
        batch: list[Candidate] = []
        if number == 0:
            for values in self.space.starts():
                self._add(batch, values)
        while sum(not one.kept for one in batch) < BATCH and self._wanted():
            if not self._add(batch, *self._sampled()) and not self._add_other(batch):
                break
        return batch

    def _wanted(self) -> bool:
        return self.budget.settings is None or self.asked < self.budget.settings

    def _candidate(self, setting: Setting, values: dict[str, Value | None], kept: bool = False) -> Candidate:
        one = Candidate(len(self.candidates), setting, values, kept=kept)
        self.candidates.append(one)
        return one

    def _add(self, batch: list[Candidate], values: dict[str, Value | None], trial: Any = None) -> bool:
        """Add the setting of ``values`` to the batch, if it is new and wanted."""
        setting = self.space.setting(values)
        if setting.key in self._seen or not self._wanted():
            if trial is not None:
                self._sampler.forget(trial)
            return False
        self._seen.add(setting.key)
        one = self._candidate(setting, values)
        if trial is not None:
            self._trials[one.number] = trial
        batch.append(one)
        return True

    def _add_other(self, batch: list[Candidate]) -> bool:
        """Add a setting that there was not yet: near the best, or any."""
        near = self._nearest()
        for attempt in range(TRIES):
            from_best = near is not None and attempt < TRIES // 2
            values = self.space.neighbour(near, self._rng) if from_best and near else self.space.drawn(self._rng)
            if self._add(batch, values):
                return True
        return self._add_unseen(batch)

    def _add_unseen(self, batch: list[Candidate]) -> bool:
        """Add what is left of a space that is nearly used up."""
        if self._all is None:
            self._all = self.space.settings(ENUMERABLE)
        unseen = [values for values in self._all or () if self.space.setting(values).key not in self._seen]
        return bool(unseen) and self._add(batch, unseen[self._rng.randrange(len(unseen))])

    def _nearest(self) -> dict[str, Value | None] | None:
        """The values of the best setting that a batch may know of."""
        known = [one for batch in self._batches[: self._told] for one in batch if one.values and not one.failed]
        by = self._best_of(self._batches[: self._told])
        points = [(self._upwards(one, by), one) for one in known]
        found = [(point, one) for point, one in points if point is not None]
        return found[best_first([point for point, _ in found])[0]][1].values if found else None

    def _upwards(self, one: Candidate, by: Candidate | None) -> tuple[float, ...] | None:
        projected = self.projected(one, by)
        if projected is None or not all(map(math.isfinite, projected)):
            return None
        return tuple(v if o.maximise else -v for v, o in zip(projected, self.objectives, strict=True))

    def _sampled(self) -> tuple[dict[str, Value | None], Any]:
        if not self.space.free:
            return {}, None
        return self._sampler.ask()

    def _tell(self, number: int) -> None:
        """Tell the sampler of the batches that batch ``number`` may know, in their order."""
        news = self._batches[self._told : max(0, number - LAG + 1)]
        self._told = max(self._told, number - LAG + 1)
        by = self._best_of(self._batches[: self._told])
        for one in (one for batch in news for one in batch if one.values):
            self._sampler.tell(one.values, self._upwards(one, by), self._trials.pop(one.number, None))


class _Running:
    """A batch that is under way, and what it waits for."""

    def __init__(self, batch: Batch) -> None:
        self.batch = batch
        self._futures: list[Future[Evaluation]] = []

    def begin(self, futures: list[Future[Evaluation]]) -> None:
        self._futures = futures

    @property
    def waiting(self) -> list[Future[Evaluation]]:
        return [future for future in self._futures if not future.done()]

    @property
    def ready(self) -> bool:
        return not self.waiting

    def results(self) -> list[Evaluation]:
        return [future.result() for future in self._futures]
