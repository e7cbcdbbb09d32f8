"""One workload in two worlds: composes a run of the engine or of the simulator, and its run folder."""

from __future__ import annotations

import argparse
import os
import random
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import numpy as np
import numpy.typing as npt
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from core.arguments import DEFAULT_MAX_RUNNING, PLAIN, UsageError, scheduler_config, takes
from core.cluster import ClusterSetup, CountingListener, meets
from core.costs import cost_notes, differences, graphs_of_costs, own_costs, refuse, settle_block_tokens
from core.provenance import git_commit, hardware, versions
from core.recording import Recording, recording_settings, run_pilot, scale_of
from reports.chronicle import JOURNAL_FILE
from reports.cluster import ClusterWriter, cluster_block, cluster_digest, common_costs
from reports.overhead import TimedJournaledScheduler, TimedScheduler
from reports.rows import RunFolderError
from reports.run import Run
from reports.run_folder import RunWriter
from reports.slo import Slo
from reports.summary import WallClock
from scheduler.buckets import equal_mass_buckets, equal_mass_edges
from scheduler.composition import compose
from scheduler.config import SchedulerConfig
from scheduler.graphs import Graphs
from scheduler.journal import Replay, replay
from scheduler.observer import Observer
from scheduler.plan import Layout, StepOutcome, StepPlan
from scheduler.prefix_hashes import block_hashes_of
from scheduler.quantiles import quantile_table
from scheduler.request import Request, SamplingParams, requests_of
from scheduler.scheduler import Scheduler
from scheduler.sequence import Sequence
from scheduler.user_policies import is_policy_file, open_user_policy
from simulator.cluster import ClusterPlan, simulate_cluster
from simulator.costs import CostModel, prefill_token_ns
from simulator.jitter import Jitter
from simulator.projection import ProjectedCosts
from simulator.recorded import RecordedCosts
from simulator.replica import simulate
from workloads.load import load_workload
from workloads.prompts import PromptWriter
from workloads.workload import Row, Workload

if TYPE_CHECKING:
    from engine.executors import Executor, MemoryPlan, Started
    from engine.loop import EngineLoop, StepScheduler
    from engine.models import LoadedModel

#: policies that costs are recorded under: full batches, and rows on their own
CALIBRATION = ("fcfs", "sjf")
#: the progress bar is moved this often
SHOWN_EVERY_S = 0.1
#: the most rows that are run before anything is measured
WARM_UP_ROWS = 16


@dataclass(frozen=True)
class Case:
    """One policy on one layout."""

    policy: str
    layout: Layout

    def __str__(self) -> str:
        """For a folder's name: of a policy in a file without the folders above it."""
        policy = Path(self.policy).name.replace(":", "-") if is_policy_file(self.policy) else self.policy
        return f"{policy}-{self.layout}"


@dataclass(frozen=True)
class Measured:
    """A run of the engine, and its journal replayed.

    ``config`` has the KV memory that could be had. ``broken`` says how the device failed, if it did; ``errors`` counts
    the requests that ended with an error, of which ``last_error`` was the last.
    """

    run: Run
    replay: Replay
    interrupted: bool
    config: SchedulerConfig
    broken: str | None = None
    errors: int = 0
    last_error: str = ""


class Counting:
    """An observer that passes everything on and counts the requests that ended on a progress bar."""

    def __init__(self, observer: Observer, advance: Callable[[], None]) -> None:
        self._observer = observer
        self._advance = advance

    def stepped(self, plan: StepPlan, steps: int, outcome: StepOutcome) -> None:
        self._observer.stepped(plan, steps, outcome)

    def gaps(self, gap_ns: npt.NDArray[np.int64], weight: int) -> None:
        self._observer.gaps(gap_ns, weight)

    def ended(self, sequence: Sequence) -> None:
        self._observer.ended(sequence)
        self._advance()


@dataclass
class Engine:
    """What stays on the device from run to run: the model, how its memory is shared out, and the last executor."""

    model: LoadedModel | None = None
    warm: set[Layout] = field(default_factory=set)
    """layouts whose executor has run in this process"""
    memory: dict[tuple[Any, ...], MemoryPlan] = field(default_factory=dict)
    """by what they are found from"""
    started: tuple[tuple[Any, ...], Started] | None = None
    """the executor that is there, with the settings that it depends on"""


class Session:
    """What the runs of one command have in common: the workload, the objectives, the manifest.

    ``engine`` is another session's, whose model and executor are used again.
    """

    def __init__(
        self,
        args: argparse.Namespace,
        command: str,
        workload: Workload | None = None,
        engine: Engine | None = None,
    ) -> None:
        settle_block_tokens(args, None)
        self.workload = _workload(args, args.seed) if workload is None else workload
        self.args = with_edges(args, self.workload)
        self.command = command
        self.slo = Slo.parse(args.slo) if args.slo else None
        self.engine = Engine() if engine is None else engine

    # -- settings

    @property
    def max_running(self) -> int:
        return self.args.max_running or self.workload.max_running or DEFAULT_MAX_RUNNING

    def config(
        self,
        case: Case,
        kv_tokens: int | None,
        context_tokens: int | None,
        costs: CostModel | None = None,
        plain: bool = False,
    ) -> SchedulerConfig:
        """The scheduler's settings for ``case``, with the memory and context that the model or hardware has.

        ``costs`` say what a prefill takes, and whether decode steps run as graphs. ``plain`` leaves out the settings
        that were asked for a policy.
        """
        if self.args.tp > 1 and case.layout != "paged":
            raise UsageError(f"--tp {self.args.tp} needs the paged layout; leave out --layout {case.layout}")
        limits: dict[str, Any] = {"max_running": self.max_running}
        kv_tokens = self.args.kv_tokens or kv_tokens
        if kv_tokens is not None:
            limits["kv_tokens"] = kv_tokens
        if context_tokens is not None:
            limits["context_tokens"] = context_tokens
        if costs is not None:
            limits["prefill_token_ns"] = prefill_token_ns(self._for_layout(costs, case.layout), case.layout)
        args = argparse.Namespace(**{**vars(self.args), **PLAIN}) if plain else self.args
        if takes(case.policy, "bins") or (args.oracle or "").startswith("noisy"):
            limits["length_quantiles"] = quantile_table(row.output_tokens for row in self.workload.rows)
        config = scheduler_config(args, case.policy, case.layout, **limits)
        return self._with_graphs(config, graphs_of_costs(costs, config))

    def _with_graphs(self, config: SchedulerConfig, graphs: Graphs) -> SchedulerConfig:
        """``config`` with ``graphs``, or with those that were asked for."""
        args, sizes = self.args, graphs._asdict()
        asked = {name: getattr(args, name) for name in sizes if getattr(args, name) is not None}
        if any(asked.values()) and "paged" not in (args.layout or ["paged"]):
            return replace(config, **asked)  # which is refused, with the reason
        return config if config.layout != "paged" else replace(config, **{**sizes, **asked})

    def check(self, config: SchedulerConfig, requests: list[Request]) -> None:
        """Refuse what could not be served: a lone or (``--strict``) any such request, a KV memory that is too small."""
        scheduler = Scheduler(config)
        for row, request in enumerate(requests, 1):
            refusal = scheduler.refusal(request)
            if refusal is None:
                continue
            if self.args.strict or len(requests) == 1:
                raise UsageError(f"request {row} of workload {self.workload.name}: {refusal}")
            if request.prompt_tokens + request.planned_output_tokens <= config.context_tokens:
                needed = max(scheduler.kv_tokens_needed(r) for r in requests if r.prompt_tokens < config.context_tokens)
                raise UsageError(
                    f"a KV memory of {config.capacity_tokens} tokens cannot hold the longest request, which needs "
                    f"{needed}; raise --kv-tokens or lower --max-running"
                )

    # -- the simulator

    def requests(self) -> list[Request]:
        """The workload's requests, by their lengths and what their prompts share."""
        workload, args = self.workload, self.args
        return requests_of(workload.rows, args.block_tokens, workload.prefix_block_tokens, self._prefix_cache)

    @cached_property
    def _prefix_cache(self) -> bool:
        """Whether any of the runs has a prefix cache, which a policy's own file may ask for."""
        opened = [open_user_policy(SchedulerConfig(policy=policy)) for policy in self.args.policy or ()]
        defaults = [own.settled(SchedulerConfig()) for own in opened if own is not None]
        return self.args.prefix_cache or any(config.prefix_cache for config in defaults)

    def simulate(
        self,
        case: Case,
        costs: CostModel,
        folder: Path,
        config: SchedulerConfig,
        requests: list[Request],
        *,
        report: bool = True,
    ) -> Run:
        """Simulate ``requests`` into ``folder``; without ``report`` there is no HTML.

        Raises :class:`~simulator.costs.CostError` for costs that were recorded with other settings, unless ``--force``.
        """
        notes: dict[str, Any] = {"costs": costs.name}
        forced = self.fitting(costs, config)
        if forced:
            notes["forced"] = f"recorded with {', '.join(forced)}"
        costs, jitter = self.step_times(case, costs)
        if jitter is not None:
            notes["jitter"] = {"seed": jitter.seed}
        manifest = self._manifest("sim", case, config, notes | cost_notes(costs, config))
        started_s = time.monotonic()
        with (
            RunWriter(folder, manifest) as writer,
            self._bar(writer, len(requests), f"simulating {case}") as observer,
        ):
            scheduler = TimedScheduler(config, observer)
            simulate(requests, scheduler, costs, jitter=jitter)
            wall = WallClock(manifest["started_at"], time.monotonic() - started_s, scheduler.spent_ns)
            return writer.close(
                scheduler.counters, scheduler.digest.hexdigest(), slo=self.slo, costs=costs, wall=wall, report=report
            )

    def step_times(self, case: Case, costs: CostModel) -> tuple[CostModel, Jitter | None]:
        """What a simulation of ``case`` takes its step times from, and how they vary where ``--jitter`` asks for it.

        Raises :class:`~simulator.costs.CostError` where ``costs`` know nothing of the layout.
        """
        costs = self._for_layout(costs, case.layout)
        if isinstance(costs, (RecordedCosts, ProjectedCosts)):
            costs.require(case.layout)
        if isinstance(costs, RecordedCosts) and self.args.jitter:
            return costs, Jitter(costs, self.args.seed)
        return costs, None

    def cluster_plan(self, case: Case, setup: ClusterSetup, requests: list[Request]) -> ClusterPlan:
        """The cluster for ``case``, each replica with the memory that its costs have; ``requests`` are checked."""
        configs = []
        for costs in setup.costs:
            if isinstance(costs, RecordedCosts):
                costs.require(case.layout)
            config = self.config(case, costs.kv_tokens, costs.context_tokens, costs)
            self.fitting(costs, config)
            if config not in configs:
                self.check(config, requests)
            configs.append(config)
        return setup.plan(configs)

    def simulate_cluster(
        self, case: Case, setup: ClusterSetup, folder: Path, plan: ClusterPlan, requests: list[Request]
    ) -> Run:
        """Simulate ``requests`` on several replicas into ``folder``."""
        costs = common_costs(plan.costs)
        notes = {"costs": plan.costs[0].name, **cost_notes(plan.costs[0], plan.configs[0])} if costs else {}
        manifest = self._manifest("sim", case, plan.configs[0], notes | {"cluster": setup.notes()})
        started_s = time.monotonic()
        schedulers: list[TimedScheduler] = []

        def make_scheduler(config: SchedulerConfig, observer: Observer) -> Scheduler:
            schedulers.append(TimedScheduler(config, observer))
            return schedulers[-1]

        with (
            ClusterWriter(folder, manifest) as writer,
            self._progress(len(requests), f"simulating {case} on {plan.replicas} replicas") as advance,
        ):
            listener = CountingListener(writer, advance)
            cluster = simulate_cluster(
                requests, plan, listener, make_scheduler=make_scheduler, is_good=meets(self.slo)
            )  # fmt: skip
            spent_ns = sum(scheduler.spent_ns for scheduler in schedulers)
            wall = WallClock(manifest["started_at"], time.monotonic() - started_s, spent_ns)
            return writer.close(
                cluster.counters, cluster_digest(cluster), slo=self.slo, costs=costs, wall=wall,
                cluster=cluster_block(cluster, plan, setup.gpus),
            )  # fmt: skip

    def fitting(self, costs: CostModel, config: SchedulerConfig) -> list[str]:
        """Raise :class:`~simulator.costs.CostError` where ``costs`` were recorded with other settings than these.

        With ``--force`` it returns what differs. Costs that the session has recorded itself are what they should be.
        """
        if not (self.args.costs or self.args.replica_costs):
            return []
        engine = None
        if self.args.mode == "validate":
            model = self.model()
            engine = {"model": model.name, "dtype": str(model.dtype).removeprefix("torch."), "tp": self.args.tp}
        found = differences(costs, config, kv_asked=self.args.kv_tokens is not None, engine=engine)
        if not self.args.force:
            refuse(costs, found)
        return found

    def _for_layout(self, costs: CostModel, layout: Layout) -> CostModel:
        """``costs``, which with ``--force`` may have been recorded on another layout."""
        if self.args.force and isinstance(costs, RecordedCosts) and layout not in costs.layouts:
            return costs.standing_in(layout)
        return costs

    # -- the engine

    def model(self) -> LoadedModel:
        """The model that ``--model`` names, loaded once."""
        if self.engine.model is None:
            from engine.parallel.loading import load_divided_model

            args = self.args
            self.engine.model = load_divided_model(
                args.model, args.tp, dtype=args.dtype, device=args.device, progress=not args.quiet
            )
        return self.engine.model

    def real_config(
        self, case: Case, costs: CostModel | None = None, plain: bool = False, **settings: Any
    ) -> SchedulerConfig:
        """The settings for ``case`` on the engine, with the KV memory and the graphs that the model's device has.

        ``settings`` take the place of the case's own.
        """
        from engine.executors import default_graphs

        model = self.model()
        limits = self.config(case, None, model.context_tokens, costs, plain)
        limits = replace(limits, **settings)
        limits = self._with_graphs(limits, default_graphs(model, limits))
        return replace(limits, kv_tokens=self.memory(limits).kv_tokens)

    def memory(self, config: SchedulerConfig) -> MemoryPlan:
        """How the device's memory is shared out under the limits of ``config``; found once for equal ones."""
        from engine.executors import DEFAULT_UTILIZATION, plan_memory

        model, share = self.model(), self.args.gpu_memory_utilization
        if share is not None and model.device.type != "cuda":
            raise UsageError(f"--gpu-memory-utilization has no effect on a model on the {model.device}; leave it out")
        limits = (config.layout, config.pool, config.max_running, config.rows, config.max_prefill_tokens,
                  config.chunk_tokens, config.block_tokens, config.graphs)  # fmt: skip
        plans = self.engine.memory
        if limits not in plans:
            self.engine.started = None  # what it holds is to be shared out
            plans[limits] = plan_memory(
                model, config, utilization=DEFAULT_UTILIZATION if share is None else share,
                kv_tokens=self.args.kv_tokens,
            )  # fmt: skip
            if not self.args.quiet and model.device.type == "cuda":
                print(plans[limits])
        return plans[limits]

    def _start(self, config: SchedulerConfig, memory: MemoryPlan) -> Started:
        """An executor for ``config`` that knows of no sequence, and ``config`` with the KV memory that it has.

        The one of the run before is taken again where it is just that.
        """
        from engine.executors import Started, start_executor

        there = self.engine.started
        needs = (config.layout, config.pool, config.capacity_tokens, config.max_running, config.rows,
                 config.block_tokens, config.graphs, config.overlap)  # fmt: skip
        if there is not None and there[0] == needs:
            there[1].executor.reset()
        else:
            there = self.engine.started = None  # its memory is needed
            there = needs, start_executor(self.model(), config, memory)
            self.engine.started = there
        executor, had, memory = there[1]
        return Started(executor, replace(config, kv_tokens=had.kv_tokens), memory)

    def prompts(self, workload: Workload) -> list[Request]:
        """The workload's requests with real prompts of the wanted lengths, reproducible from the seed."""
        args, tokenizer = self.args, self.model().tokenizer
        # random weights have no tokenizer: the bytes of the text serve as token ids
        encode = str.encode if tokenizer is None else lambda text: tokenizer.encode(text, special_tokens=False)
        writer = PromptWriter(encode, seed=args.seed)
        temperature = workload.temperature if args.temperature is None else args.temperature
        requests = []
        for index, request in enumerate(requests_of(workload.rows, prefix_cache=False)):
            row = workload.rows[index]
            token_ids = writer.prompt(index, row.prompt_tokens, row.prefix_ids, workload.prefix_block_tokens)
            requests.append(
                replace(
                    request,
                    prompt_token_ids=token_ids,
                    block_hashes=block_hashes_of(token_ids, args.block_tokens) if self._prefix_cache else (),
                    output_tokens=None if args.stop_on_eos else request.output_tokens,
                    sampling=SamplingParams(temperature=temperature, seed=args.seed * 1_000_003 + index),
                )
            )
        return requests

    def measure(
        self,
        case: Case,
        folder: Path,
        config: SchedulerConfig,
        requests: list[Request],
        *,
        around: AbstractContextManager[object] | None = None,
        report: bool = True,
    ) -> Measured:
        """Run ``requests`` on the engine into ``folder``, and replay what the scheduler was told.

        What there is when the device fails is kept as a run that was interrupted is. ``around`` is entered when the
        engine is ready, and left when the last request has ended; without ``report`` there is no HTML.
        """

        def play(loop: EngineLoop) -> None:
            with around or nullcontext():
                loop.run(requests)

        if case.layout not in self.engine.warm:
            self._warm_up(config)
            self.engine.warm.add(case.layout)
        executor, config, memory = self._start(config, self.memory(config))
        run, loop, interrupted = self._run(
            case, folder, config, {"memory": memory.as_dict()}, len(requests), play,
            partial(self._loop, executor=executor, memory=memory), report=report,
        )  # fmt: skip
        if interrupted or loop.broken is not None:
            self.engine.started = None
        with (folder / JOURNAL_FILE).open(encoding="utf-8") as journal:
            replayed = replay(journal)
        return Measured(run, replayed, interrupted, config, loop.broken, loop.errors, loop.last_error)

    def _warm_up(self, config: SchedulerConfig) -> None:
        """A short run: libraries load what they need for a shape when they first meet it.

        The batch thins out from ``rows`` to one, so that each number of rows is met once.
        """
        from engine.loop import EngineLoop

        rows = min(config.max_running, WARM_UP_ROWS)
        # the executor is to be the run's own
        plain = {name: value for name, value in PLAIN.items() if name != "overlap"}
        plain_config = SchedulerConfig.from_dict({**config.as_dict(), **plain, "policy": "fcfs", "policy_sha256": None})
        executor, config, memory = self._start(plain_config, self.memory(config))
        loop = EngineLoop(Scheduler(config), executor, memory=memory)
        lengths = [8 + 4 * row for row in range(rows)]
        loop.run(
            Request(f"warm-up {row}", 0, length, row + 2, row + 2, prompt_token_ids=tuple(range(length)))
            for row, length in enumerate(lengths)
        )

    def record(self, case: Case, folder: Path, budget_s: float) -> tuple[Run, list[str], bool]:
        """Record what steps cost on ``case``'s layout into ``folder``, in about ``budget_s`` seconds.

        Returns the run, a line on each part of the recording, and whether it was interrupted. The manifest has the KV
        memory that the device has (``kv_capacity_tokens``), which is more than the recording fills.

        Raises :class:`~engine.errors.DeviceError` when the device fails; what was recorded is in the folder.
        """
        from engine.errors import DeviceError
        from engine.executors import start_executor
        from engine.loop import undisturbed

        model = self.model()
        settings = recording_settings(case.layout, self.args.max_prefill_tokens)
        config = self.real_config(case, plain=True, overlap=self.args.overlap, **settings)
        memory = self.memory(config)
        # as much as there is, however few sequences are to run
        config = replace(config, kv_tokens=self.args.kv_tokens or memory.room_tokens)
        self.engine.started = None  # the pilot and the recording have their own
        pilot = run_pilot(self._loop, config, model.vocab, budget_s)
        scale = scale_of(config, pilot, budget_s)
        executor, had, memory = start_executor(model, scale.config, memory)
        scale = replace(scale, config=had)
        temperature = self.workload.temperature if self.args.temperature is None else self.args.temperature
        recording = Recording(scale, model.vocab, temperature=temperature, seed=self.args.seed)
        notes = {
            "kv_capacity_tokens": config.capacity_tokens,
            "recording": {"budget_s": budget_s, **pilot._asdict()},
            "memory": memory.as_dict(),
        }
        with undisturbed():
            run, loop, interrupted = self._run(
                case, folder, scale.config, notes, None, recording.play,
                partial(self._loop, executor=executor, memory=memory), recording.watching,
            )  # fmt: skip
        if loop.broken is not None:
            raise DeviceError(loop.broken)
        if loop.errors:
            recording.notes.append(f"{loop.errors} requests ended with an error, the last one: {loop.last_error}")
        return run, recording.notes, interrupted

    def _loop(
        self, scheduler: StepScheduler, executor: Executor | None = None, memory: MemoryPlan | None = None
    ) -> EngineLoop:
        """A loop of ``scheduler`` and ``executor``, by default one of the scheduler's settings."""
        from engine.executors import build_executor
        from engine.loop import EngineLoop

        model = self.model()
        return EngineLoop(
            scheduler, executor or build_executor(model, scheduler.config), tokenizer=model.tokenizer,
            end_token_ids=model.eos_token_ids, memory=memory,
        )  # fmt: skip

    def _run(
        self,
        case: Case,
        folder: Path,
        config: SchedulerConfig,
        notes: dict[str, Any],
        requests: int | None,
        play: Callable[[EngineLoop], None],
        make_loop: Callable[[StepScheduler], EngineLoop],
        watching: Callable[[Observer], Observer] = lambda observer: observer,
        report: bool = True,
    ) -> tuple[Run, EngineLoop, bool]:
        """``play`` on a loop into ``folder``: the run, the loop, and whether it was interrupted.

        The scheduler tells ``watching(observer)`` of what happens, which passes it on.
        """
        from engine.errors import DeviceError

        model = self.model()
        about = {
            "model": model.name,
            "device": str(model.device),
            "dtype": str(model.dtype).removeprefix("torch."),
            "tp": self.args.tp,
        }
        manifest = self._manifest("real", case, config, about | notes)
        interrupted = False
        started_s = time.monotonic()
        with (
            RunWriter(folder, manifest) as writer,
            _journal(folder / JOURNAL_FILE) as journal,
            self._bar(writer, requests, f"running {case}") as observer,
        ):
            scheduler = TimedJournaledScheduler(config, journal, watching(observer))
            loop = make_loop(scheduler)
            try:
                play(loop)
            except KeyboardInterrupt:
                interrupted = True
            except DeviceError:
                pass  # the loop says so
            writer.flush()
            wall = WallClock(manifest["started_at"], time.monotonic() - started_s, scheduler.spent_ns)
            counters, digest = scheduler.counters, scheduler.digest.hexdigest()
            run = writer.close(counters, digest, slo=self.slo, costs=own_costs(folder), wall=wall, report=report)
        return run, loop, interrupted

    def calibrations(
        self, layout: Layout, cases: Iterable[Case], requests: list[Request]
    ) -> dict[str, SchedulerConfig]:
        """The runs that costs on ``layout`` are recorded by, under their names: ``requests`` all at once.

        None of them overlaps, so that host time shows. Where ``cases`` mix prompts into decode steps, one run does,
        with slots for half of the requests, so that prompts come while others decode; where they swap, one has memory
        for half of the prompts, so that their growth preempts.
        """
        runs = {policy: self.real_config(Case(policy, layout), plain=True) for policy in CALIBRATION}
        plain, half = runs["fcfs"], max(2, len(requests) // 2)
        parts = [compose(self.real_config(case)) for case in cases if case.layout == layout]
        budgets = [composed.chunk_tokens for composed in parts if composed.phase == "mixed"]
        if budgets:
            mixed = self.real_config(Case("fcfs", layout), plain=True, phase="mixed", chunk_tokens=min(budgets))
            runs["mixed"] = replace(mixed, max_running=min(half, plain.max_running))
        if any(composed.swaps for composed in parts):
            kv_tokens = _memory_for_prompts(requests, half, plain.block_tokens)
            runs["swap"] = replace(plain, kv_pool="paged", preemption="swap", kv_tokens=kv_tokens)
        return runs

    # -- what is written down

    def _manifest(self, world: str, case: Case, config: SchedulerConfig, notes: dict[str, Any]) -> dict[str, Any]:
        return {
            "name": self.args.name or f"{world}-{self.workload.name}-{case}",
            **_policy_notes(config),
            "world": world,
            "mode": self.args.mode,
            "command": self.command,
            "started_at": datetime.now().astimezone().isoformat(timespec="seconds"),
            "seed": self.args.seed,
            "config": config.as_dict(),
            "workload": self.workload.source,
            **notes,
            "slo": dict(self.slo.limits_ms) if self.slo else None,
            "versions": versions(),
            "hardware": self._hardware() if world == "real" else "none: simulated",
            "git_commit": git_commit(),
            "sha256": {"workload": self.workload.sha256(), **notes.pop("sha256", {})},
        }

    def _hardware(self) -> str:
        first = self.model().device.index or 0
        return hardware(range(first, first + self.args.tp))

    @contextmanager
    def _bar(self, writer: RunWriter, requests: int | None, title: str) -> Iterator[Observer]:
        with self._progress(requests, title) as advance:
            yield Counting(writer, advance)

    @contextmanager
    def _progress(self, requests: int | None, title: str) -> Iterator[Callable[[], None]]:
        """A bar on standard error; what to call when a request has ended."""
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        with Progress(*columns, disable=self.args.quiet or not os.isatty(2), transient=True) as progress:
            yield _Bar(progress, requests, title).advance


class _Bar:
    """A bar that is moved every so often, since that takes longer than a simulated request."""

    def __init__(self, progress: Progress, requests: int | None, title: str) -> None:
        self._progress = progress
        self._task = progress.add_task(title, total=requests)
        self._ended = 0
        self._shown_s = time.monotonic()

    def advance(self) -> None:
        """A request has ended."""
        self._ended += 1
        now_s = time.monotonic()
        if now_s - self._shown_s >= SHOWN_EVERY_S:
            self._shown_s = now_s
            self._progress.update(self._task, completed=self._ended)


def recording_session(args: argparse.Namespace, command: str) -> Session:
    """The session of a recording of costs, whose requests are no workload's."""
    plan = Workload("recording", (Row(0, 1, 1, 1),), "requests of random tokens, as the plan of a recording needs them")
    return Session(args, command, plan)


def with_edges(args: argparse.Namespace, workload: Workload) -> argparse.Namespace:
    """The arguments with ``--bucket equal-mass:N`` turned into the edges that ``workload`` gives."""
    buckets = None if args.bucket is None else equal_mass_buckets(args.bucket)
    if buckets is None:
        return args
    edges = equal_mass_edges(((row.prompt_tokens, row.output_tokens) for row in workload.rows), buckets)
    return argparse.Namespace(**{**vars(args), "bucket": f"edges:{','.join(map(str, edges))}"})


def _workload(args: argparse.Namespace, seed: int) -> Workload:
    return load_workload(
        args.workload, rng=random.Random(seed), requests=args.requests, rate=args.rate, arrivals=args.arrivals,
        time_scale=args.time_scale, trace_format=args.trace_format,
    )  # fmt: skip


def calibration_workload(args: argparse.Namespace, workload: Workload, most: int = 8) -> Workload:
    """What costs for ``workload`` are recorded on: the same kind of requests from another seed, all at once.

    ``most`` at most; half of them are as long as its longest, so that its contexts are among what is recorded.
    """
    other = argparse.Namespace(**vars(args))
    other.arrivals, other.rate, other.time_scale = "all-at-once", None, None
    other.requests = min(len(workload), most)
    drawn = _workload(other, args.seed + 1)
    half = len(drawn) // 2
    longest = max(workload.rows, key=lambda row: row.prompt_tokens + row.output_tokens)
    as_long = [
        row._replace(prompt_tokens=longest.prompt_tokens, output_tokens=longest.output_tokens,
                     max_tokens=max(row.max_tokens, longest.output_tokens), prefix_ids=())
        for row in drawn.rows[half:]
    ]  # fmt: skip
    return replace(drawn, rows=(*drawn.rows[:half], *as_long))


def _memory_for_prompts(requests: list[Request], count: int, block_tokens: int) -> int:
    """KV tokens for the prompts of the first ``count`` requests and nothing more, but for any of them to its end."""

    def blocks(tokens: int) -> int:
        return -(-tokens // block_tokens)

    prompts = sum(blocks(request.prompt_tokens) for request in requests[:count])
    longest = max(blocks(request.prompt_tokens + request.planned_output_tokens) for request in requests)
    return max(prompts, longest) * block_tokens


@contextmanager
def _journal(path: Path) -> Iterator[TextIO]:
    """A journal's file, each line of which is written at once. Raises :class:`RunFolderError` for a full disk."""
    try:
        with path.open("w", buffering=1, encoding="utf-8") as journal:
            yield journal
    except OSError as error:
        raise RunFolderError(f"cannot write {path}: {error.strerror or error}") from error


def _policy_notes(config: SchedulerConfig) -> dict[str, Any]:
    """What a policy in a file is called; its path and SHA-256 are among the settings."""
    own = open_user_policy(config)
    if own is None:
        return {}
    return {"label": f"{own.name} on {config.layout}", "policy": {"name": own.name, "summary": own.summary}}


def twin_requests(measured: Run, requests: list[Request]) -> list[Request]:
    """The requests as a simulation is given them: with the output lengths that the engine came to."""
    lengths = measured.requests.set_index("id")["output_tokens"]
    return [
        request
        if request.output_tokens is not None
        else replace(request, output_tokens=max(1, int(lengths.get(request.id, 1))), stop_kind="eos")
        for request in requests
    ]
