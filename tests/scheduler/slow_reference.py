"""The scheduler's semantics written down a second time, slowly: lists that are rebuilt at each step, and plain loops.

It shares no data structure with the scheduler: no heap, no cohort, no stretch, no closed form. What it does share are
the definitions (settings, the counters' names, what a step's features are called, cost models, oracles, buckets), or
there would be nothing to compare.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from slow_counts import Piece, count_step, hexdigest, pairs_of
from slow_memory import build_memory
from slow_orders import Job, Rules

from scheduler.config import SchedulerConfig
from scheduler.counters import RunCounters
from scheduler.plan import StepColumns, StepFeatures
from scheduler.request import Request
from simulator.costs import CostModel, TellsOverlap
from simulator.jitter import Jitter
from simulator.warmth import Heat


class EvictionNeededError(Exception):
    """A decision cannot be made while a plan is in flight."""


@dataclass(eq=False)
class Step:
    """One step on its way: planned, in flight (then it counts as done when the next is planned), completed."""

    pieces: list[Piece]
    features: StepFeatures
    planned_at: int
    ahead: bool
    """made while the step before was running"""
    unusable: int
    """free slots of no use to who is next, when the plan was made"""
    advanced: bool = False
    sampled: list[Job] = field(default_factory=list)
    held: int = 0
    reserved: int = 0


class Reference:
    """Runs requests and aborts, one step at a time, until all have ended."""

    def __init__(
        self,
        config: SchedulerConfig,
        costs: CostModel,
        requests: Iterable[Request],
        aborts: Iterable[tuple[int, str]],
        jitter: Jitter | None = None,
    ) -> None:
        self.config = config
        self.costs = costs
        self.jitter = jitter
        self.requests = list(requests)
        self.aborts = list(aborts)
        self.rules = Rules(config, self.hit_tokens)
        self.memory = build_memory(config)
        self.admission = config.admission or self.default_admission()
        self.grows = self.memory.grows and not self.admission.startswith("reserve-")
        self.max_rows = config.max_rows or config.max_running
        self.chunk_tokens = config.chunk_tokens or 512
        self.starvation = round(config.starvation_s * 1e9)
        # what is counted and compared
        self.counters = RunCounters()
        self.jobs: list[Job] = []
        self.gaps: Counter[int] = Counter()
        self.features: list[StepFeatures] = []
        self.steps: list[tuple[str, dict[str, tuple[int, int]]]] = []
        self.spans: list[tuple[int, int]] = []
        # the state
        self.cancelled: list[str] = []
        self.waiting: list[Job] = []
        self.residents: list[Job] = []
        self.ending: list[Job] = []
        self.prefilling: Job | None = None
        self.flight: Step | None = None
        self.ahead: Step | None = None
        #: how long the host is still launching the step that has begun
        self.late = 0
        self.batch: list[Job] = []
        self.batch_rows = 0
        self.batch_step = 0
        self.batch_lane: Any = None
        self.finished_lengths: list[int] = []
        self.host_tokens = 0
        self.last_end = 0
        # of the step that is being planned
        self.admitted: list[Job] = []
        self.evicted: list[Job] = []
        self.stepped: list[Job] = []
        self.coming_in: list[Job] = []
        self.moved_tokens = 0
        #: who gave memory back, or left the host's, since the step before
        self.released = 0

    def default_admission(self) -> str:
        reserves = self.rules.runs_to_completion or self.rules.policy == "orca-reserve"
        return "now" if self.memory.grows and not reserves else "reserve-max"

    # -- time

    def run(self) -> Reference:
        if isinstance(self.costs, TellsOverlap) and self.costs.warmth is not None:
            self.heat = Heat(self.costs.warmth.time_ns)
        now = 0
        step: Step | None = None
        while True:
            self.deliver(now)
            if step is None:
                step = self.next_step(now)
            if step is None:
                times = [request.arrival_ns for request in self.requests[:1]] + [time for time, _ in self.aborts[:1]]
                if self.batch_is_short(now):
                    times.append(self.batch_start())
                if not times:
                    return self
                now = min(times)
                continue
            self.flight = step
            self.ahead = self.next_step(now) if self.config.overlap else None
            now = self.end(step, now)
            self.complete(step, now)
            self.flight, step, self.ahead = None, self.ahead, None

    def times(self, step: Step, index: int) -> tuple[int, int, int]:
        """What a step takes of the device, of the host before it can begin, and of the host after that."""
        columns = self.columns(step.features)
        device, host = int(self.costs.device_ns(columns)), int(self.costs.host_ns(columns))
        if self.jitter is not None:
            device, host = map(int, self.jitter.times(columns, index, device, host))
        launching = isinstance(self.costs, TellsOverlap) and self.config.overlap
        return device, host, int(self.costs.launching_ns(columns)) if launching else 0

    def end(self, step: Step, now: int) -> int:
        """When a step ends that is planned, or with overlap begun, now."""
        device, host, launch = self.times(step, len(self.steps))
        if not self.config.overlap:
            return now + device + host
        if not step.ahead:
            now, self.late = now + host, launch
        device = self.warmed(step, device, now)
        if self.ahead is None:
            return now + max(device, self.late)
        # the host finishes with this step before it turns to the one after
        _, host, launch = self.times(self.ahead, len(self.steps) + 1)
        left = device - self.late
        if isinstance(self.costs, TellsOverlap) and self.jitter is None:
            both = int(self.costs.together_ns(self.columns(self.ahead.features), left, host))
        else:
            both = max(left, host)
        took = self.late + both
        self.late = max(0, self.late + host + launch - took)
        return now + took

    def warmed(self, step: Step, device: int, now: int) -> int:
        """What a step takes of the device that begins now, on a card as warm as the steps before have made it."""
        warmth = self.costs.warmth if isinstance(self.costs, TellsOverlap) else None
        columns = self.columns(step.features)
        if warmth is None or columns.kind == "decode" or columns.new_tokens_computed < warmth.large:
            return device
        device = round(device * warmth.factor(self.heat.during(now, device)))
        self.heat.run(now, device)
        return device

    def deliver(self, now: int) -> None:
        while self.requests and self.requests[0].arrival_ns <= now:
            self.submit(self.requests.pop(0))
        while self.aborts and self.aborts[0][0] <= now:
            self.cancelled.append(self.aborts.pop(0)[1])

    def unended(self) -> list[Job]:
        return [job for job in self.jobs if not job.ended]

    def submit(self, request: Request) -> None:
        context, memory = self.config.context_tokens, self.memory
        most = min(request.max_tokens, context - request.prompt_tokens)
        limit = request.prompt_tokens + min(most, request.planned_output_tokens)
        hidden = request.stop_kind == "eos" and request.output_tokens is not None
        foreseen = request.prompt_tokens + most if hidden else limit
        job = Job(request, len(self.jobs), most, limit, foreseen, request.prompt_tokens)
        had = request.head_start
        if had is not None:
            job.known += had.output_tokens
            # what comes with its KV is brought in as what was swapped out, from nowhere
            job.swapped = job.brought = had.brings_kv
            job.computed = job.known - 1 if had.brings_kv else 0
            job.first_scheduled = had.first_scheduled_ns
            job.token_times = [had.first_token_ns, had.last_token_ns][: had.output_tokens]
        job.estimates = self.rules.oracle.estimates(job)
        self.jobs.append(job)
        self.counters.submitted += 1
        wanted = request.prompt_tokens + (1 if request.output_tokens is None else request.planned_output_tokens)
        if wanted > context or job.known >= limit or memory.need(max(limit, self.booking(job))) > memory.largest:
            job.state = "rejected"
            self.counters.rejected += 1
        else:
            self.rules.submitted(job, self.waiting)
            self.queue(job)

    def queue(self, job: Job) -> None:
        self.waiting.append(job)
        for buckets in self.rules.buckets:
            buckets.submitted(job.known)

    def leave_queue(self, job: Job) -> None:
        self.waiting.remove(job)
        for buckets in self.rules.buckets:
            buckets.removed(job.known)

    # -- a plan

    def next_step(self, now: int) -> Step | None:
        self.rules.now = now
        if self.flight is not None:
            self.advance(self.flight)
        for name in self.cancelled:
            for job in self.unended():
                if job.id == name:
                    self.abort(job, now)
        self.cancelled = []
        if self.rules.policy == "mlfq":
            self.rules.promote([job for job in self.unended() if not self.is_flying(job)], now)
        self.admitted, self.evicted, self.stepped = [], [], []
        try:
            pieces = self.choose(now)
        except EvictionNeededError:
            return None
        if not pieces:
            return None
        pieces.sort(key=lambda piece: piece[0].number)
        for job in self.coming_in:
            self.counters.swapped_in += 1
            self.counters.swapped_tokens += job.computed
            self.moved_tokens += job.computed
        step = Step(pieces, self.measure(pieces), now, self.flight is not None, self.unusable())
        self.moved_tokens, self.coming_in, self.released = 0, [], 0
        return step

    def is_flying(self, job: Job) -> bool:
        return self.flight is not None and any(job is member for member, _, _ in self.flight.pieces)

    def abort(self, job: Job, now: int) -> None:
        if job in self.waiting:
            self.leave_queue(job)
        for queue in (self.residents, self.ending):
            if job in queue:
                queue.remove(job)
        if job is self.prefilling:
            self.prefilling = None
        if job.swapped and not job.brought:
            self.host_tokens -= job.computed
            self.released += 1
        if job in self.coming_in:
            self.coming_in.remove(job)
        if self.flight is not None and job in self.flight.sampled:
            job.known -= 1
        if job.holds_memory and not self.is_flying(job):
            self.give_back(job, "finished")
        job.state, job.finish = "aborted", now
        self.counters.aborted += 1
        self.open_empty_batch()

    def open_empty_batch(self) -> None:
        if not self.residents and self.prefilling is None:
            self.batch, self.batch_rows, self.batch_step = [], 0, 0

    def batch_members(self) -> list[Job]:
        """Those left of a closed batch that has steps to go."""
        if self.batch_step >= self.rules.batch_steps:
            return []
        return [job for job in self.batch if job in self.residents]

    def choose(self, now: int) -> list[Piece]:
        config = self.config
        if self.batch_members():
            return self.decode(now, self.max_rows)
        self.batch, self.batch_rows, self.batch_step = [], 0, 0
        if config.phase == "mixed":
            rows = self.decode(now, min(self.max_rows, self.chunk_tokens))
            self.stepped = [job for job, _, _ in rows]
            budget = min(config.max_prefill_tokens, self.chunk_tokens - len(rows))
            chunks = self.prefill(now, budget, self.max_rows - len(rows))
            if self.admitted and not rows and not chunks:
                rows = self.decode(now, min(self.max_rows, self.chunk_tokens))
            return rows + chunks
        if config.phase == "decode-first" and (self.residents or self.ending):
            rows = self.decode(now, self.max_rows)
            # nobody is left to decode if the only resident was evicted, for a prompt in progress
            if rows or self.ending:
                return rows
        return self.prefill(now, config.max_prefill_tokens, self.max_rows) or self.decode(now, self.max_rows)

    # -- who is prefilled

    def prefill(self, now: int, budget: int, rows: int) -> list[Piece]:
        mixed = self.config.phase == "mixed"
        chunks: list[Piece] = []
        tokens = 0
        if budget <= 0 or rows <= 0:
            return []
        if self.prefilling is not None:
            job = self.prefilling
            tokens = min(budget, job.known - job.computed)
            chunks.append((job, job.computed, tokens))
            if not mixed or job.computed + tokens < job.known:
                return chunks
        if self.batch_is_short(now):
            return chunks
        leader = self.aged_leader(self.candidates(), now)
        first: Job | None = None
        while tokens < budget and len(chunks) < rows:
            self.rules.n_waiting = len(self.waiting)
            order, candidates = self.rules.waiting, self.candidates()
            if order.exclusive and first is not None:
                # buckets that adapt may have become others, now that somebody waits no longer
                candidates = [job for job in candidates if order.lane(job) == order.lane(first)]
            if not candidates:
                break
            job = order.lanes(candidates, None if self.admitted else leader)[0][0]
            first = first or job
            batch_lane = self.rules.waiting.lane(job)
            cached = 0 if job.swapped else self.hit_tokens(job)
            wanted = 0 if job.swapped else job.known - cached
            if chunks and tokens + wanted > budget and not mixed:
                break
            if job in self.evicted or not self.make_room(job):
                break
            self.admit(job, now)
            self.batch_lane = batch_lane
            if job.swapped:
                self.swap_in(job)
                continue
            taken = min(wanted, budget - tokens)
            chunks.append((job, cached, taken))
            job.computed = cached
            tokens += taken
            if taken < wanted:
                self.prefilling = job
        return chunks

    def candidates(self) -> list[Job]:
        """Those who may be admitted: while a batch fills, only those of its lane."""
        if self.rules.runs_to_completion and self.rules.waiting.exclusive and (self.residents or self.prefilling):
            return [job for job in self.waiting if self.rules.waiting.lane(job) == self.batch_lane]
        return self.waiting

    def batch_start(self) -> int:
        return min(job.request.arrival_ns for job in self.waiting) + self.rules.max_wait

    def batch_is_short(self, now: int) -> bool:
        """Whether a batch that runs to completion has yet to wait for more members before it starts."""
        if not self.rules.runs_to_completion or self.residents or self.prefilling or not self.waiting:
            return False
        if self.rules.policy == "multi-bin":
            count = max(len(lane) for lane in self.rules.waiting.lanes(self.waiting))
        else:
            count = len(self.waiting)
        return count < self.rules.min_batch and now < self.batch_start()

    def aged_leader(self, jobs: list[Job], now: int) -> Job | None:
        if self.rules.aging is None or not jobs:
            return None
        first = min(jobs, key=lambda job: job.number)
        return first if now - first.request.arrival_ns >= self.rules.aging else None

    def hit_tokens(self, job: Job) -> int:
        return len(self.hits(job)) * self.memory.size

    def hits(self, job: Job) -> list[int]:
        if not self.config.prefix_cache or job.swapped:
            return []
        return self.memory.hits(self.hashes(job), job.known)

    def hashes(self, job: Job) -> tuple[int, ...]:
        return job.request.block_hashes[: job.prompt_tokens // self.memory.size]

    def booking(self, job: Job) -> int:
        prompt, most = job.prompt_tokens, job.most
        if self.admission == "reserve-max":
            wanted = prompt + most
        elif self.admission == "reserve-oracle":
            wanted = prompt + min(most, job.predicted)
        elif self.admission == "reserve-pow2":
            power = 1
            while power < job.predicted:
                power *= 2
            wanted = prompt + min(most, power)
        else:
            wanted = job.known
        return max(job.known, wanted)

    def consents(self, job: Job) -> bool:
        here = [*self.residents, *([self.prefilling] if self.prefilling else [])]
        here += [other for other in self.admitted if other not in here]
        if not here:
            return True
        capacity = self.memory.total * self.memory.size
        if self.admission == "peak-future":
            members = sorted([*here, job], key=lambda other: -other.left)
            peaks = []
            for count in range(1, len(members) + 1):
                used = sum(other.known for other in members[:count])
                peaks.append(used + count * members[count - 1].left)
            return max(peaks) <= capacity
        if self.admission.startswith("quantile"):
            return sum(other.commitment for other in here) + self.commitment(job) <= capacity
        return True

    def commitment(self, job: Job) -> int:
        quantile = float(self.admission.partition(":")[2] or 0.9)
        lengths = sorted(self.finished_lengths[-1000:])
        length = job.most
        if len(lengths) >= 10:
            index = next(i for i in range(len(lengths)) if i + 1 >= quantile * len(lengths))
            length = min(length, lengths[index])
        return max(job.known, job.prompt_tokens + length)

    def make_room(self, job: Job) -> bool:
        """Whether there is room for the job, once less urgent ones are evicted for it."""
        if not self.consents(job):
            return False
        slots = self.config.max_running - sum(other.holds_memory for other in self.jobs)
        tokens, hits, memory = self.booking(job), self.hits(job), self.memory
        fits = memory.fits(tokens, hits)
        if slots > 0 and fits:
            return True
        urgency = self.rules.urgency
        if urgency is None or not (memory.grows or fits):
            return False
        weaker = [other for other in self.residents if urgency(other) > urgency(job) and self.rules.evictable(other)]
        weaker = [other for other in weaker if other not in self.stepped + self.admitted]
        weaker.sort(key=lambda other: (urgency(other), other.number), reverse=True)
        for count in range(1, len(weaker) + 1):
            victims = weaker[:count]
            if slots + count > 0 and memory.fits(tokens, hits, [victim.number for victim in victims]):
                if self.flight is not None:
                    if self.admitted or self.stepped:
                        return False
                    raise EvictionNeededError
                for victim in victims:
                    self.evict(victim)
                return True
        return False

    def admit(self, job: Job, now: int) -> None:
        c = self.counters
        hits = self.hits(job)
        if self.config.prefix_cache and job.request.block_hashes and not job.swapped:
            c.prefix_query_tokens += job.known
            c.prefix_hit_tokens += len(hits) * self.memory.size
        job.commitment = self.commitment(job) if self.admission.startswith("quantile") else 0
        # a swapped-in job needs room for its next step, too, but takes that block as everybody does: in that step
        self.memory.book(job.number, job.computed if job.swapped and self.grows else self.booking(job), hits)
        self.leave_queue(job)
        job.holds_memory = True
        job.state, job.admitted_known = "prefilling", job.known
        if job.first_scheduled < 0:
            job.first_scheduled = now
            wait = now - job.request.arrival_ns
            c.longest_wait_ns = max(c.longest_wait_ns, wait)
            self.check_starvation(job, wait)
            self.rules.tenant_counter[job.request.tenant] += job.prompt_tokens
        self.admitted.append(job)

    def swap_in(self, job: Job) -> None:
        job.swapped, job.state = False, "resident"
        if job.brought:
            job.brought = False
        else:
            self.host_tokens -= job.computed
            self.coming_in.append(job)
        self.residents.append(job)

    # -- who is stepped

    def decode(self, now: int, limit: int) -> list[Piece]:
        while self.residents:
            rows = self.select(now, limit)
            growing = [job for job in rows if self.must_grow(job)]
            if not growing or len(growing) <= self.memory.free:
                for job in sorted(growing, key=lambda job: job.number):
                    self.memory.grow(job.number)
                self.close_batch(rows)
                return [(job, job.computed, 1) for job in rows]
            if self.flight is not None:
                raise EvictionNeededError
            self.evict(self.victim())
        return []

    def must_grow(self, job: Job) -> bool:
        return self.grows and self.memory.must_grow(job.number, job.computed + 1)

    def close_batch(self, rows: list[Job]) -> None:
        if self.rules.batch_steps:
            if not self.batch_members():
                self.batch = list(self.residents) if self.rules.runs_to_completion else list(rows)
                self.batch_rows, self.batch_step = len(rows), 0
            self.batch_step += 1

    def select(self, now: int, limit: int) -> list[Job]:
        order = self.rules.resident
        members = self.batch_members()
        if members and not self.rules.runs_to_completion:
            return members
        exclusive = order.exclusive and not self.rules.runs_to_completion
        rows: list[Job] = []
        for lane in order.lanes(self.residents, self.aged_leader(self.residents, now)):
            room = min(limit, order.min_rows) if rows and exclusive else limit
            rows += lane[: max(0, room - len(rows))]
        return rows

    def victim(self) -> Job:
        urgency = self.rules.urgency
        ranks: dict[str, Any] = {
            "newest": lambda job: 0,
            "longest-remaining": lambda job: job.left,
            "lowest-priority": lambda job: job.request.priority,
        }
        rank = ranks[self.config.victim] if self.config.victim else urgency or ranks["newest"]
        return max(self.residents, key=lambda job: (rank(job), job.number))

    def evict(self, job: Job) -> None:
        self.residents.remove(job)
        self.give_back(job, "evicted")
        self.counters.preemptions += 1
        job.preemptions += 1
        job.commitment = 0
        room = self.config.swap_tokens is None or self.host_tokens + job.computed <= self.config.swap_tokens
        still_there = job in self.coming_in
        if still_there:
            self.coming_in.remove(job)
        if self.config.preemption == "swap" and room:
            job.swapped = True
            # the executor is told of it as a swap
            self.released -= 1
            self.host_tokens += job.computed
            if not still_there:
                self.counters.swapped_out += 1
                self.counters.swapped_tokens += job.computed
                self.moved_tokens += job.computed
        else:
            self.counters.recomputed_tokens += job.computed
            job.recomputed += job.computed
            job.computed = 0
        job.state = "waiting"
        self.queue(job)
        self.evicted.append(job)

    def give_back(self, job: Job, how: str) -> None:
        self.memory.release(job.number, how)
        self.released += 1
        job.holds_memory = False

    # -- what a step costs and does

    def measure(self, pieces: list[Piece]) -> StepFeatures:
        decoding = [piece for piece in pieces if piece[0] in self.residents]
        kind = "decode" if len(decoding) == len(pieces) else "mixed" if decoding else "prefill"
        rows = len(pieces)
        padded = self.config.layout == "padded"
        rows_computed = max(rows, self.batch_rows) if padded and kind == "decode" else rows
        tokens = [n for _, _, n in pieces]
        ends = [start + n for _, start, n in pieces]
        pairs = pairs_of(pieces)
        graphs = [size for size in self.config.graph_rows if size >= rows and kind == "decode"]
        rows_computed = min(graphs, default=rows_computed)
        filled = rows_computed - rows if graphs else 0
        sizes = {"prefill": self.config.graph_tokens, "mixed": self.config.graph_mixed, "decode": ()}[kind]
        as_rows = sum(start > 0 and n == 1 for _, start, n in pieces) if kind == "mixed" else 0
        prompts = [size for size in sizes if size >= sum(tokens) and rows - as_rows <= 16]
        more = min(prompts) - sum(tokens) if prompts else filled
        return StepFeatures(
            layout=self.config.layout,
            kind=kind,  # type: ignore[arg-type]
            rows=rows,
            rows_computed=rows_computed,
            new_tokens=sum(tokens),
            new_tokens_computed=rows_computed * max(tokens) if padded else sum(tokens) + more,
            context_tokens=pairs,
            kv_columns_computed=rows_computed * max(tokens) * max(ends) if padded else pairs + filled,
            kv_tokens_read=sum(ends),
            longest_context=max(ends),
            blocks_touched=sum(self.memory.need(end) for end in ends) if self.memory.grows else rows,
            sampled_rows=sum(start + n == job.known for job, start, n in pieces),
            decode_rows=len(decoding),
            decode_context_tokens=pairs_of(decoding),
            swapped_tokens=self.moved_tokens,
            graph_rows=min(graphs + prompts, default=0),
            longest_decode_context=max((start + n for _, start, n in decoding), default=0),
            released=self.released,
            shared_kv_tokens=self.memory.shared,
        )

    def unusable(self) -> int:
        if not self.waiting or self.memory.grows:
            return 0
        self.rules.n_waiting = len(self.waiting)
        return self.memory.unusable(self.booking(self.rules.waiting.lanes(self.waiting)[0][0]))

    def columns(self, features: StepFeatures) -> StepColumns:
        same = {name: getattr(features, name) for name in StepColumns._fields if name != "repeat"}
        return StepColumns(repeat=1, **same)

    def advance(self, step: Step) -> None:
        """The step counts as done: everybody is as far as it takes them, but nobody has been told of a token yet."""
        step.advanced = True
        for job, start, n in step.pieces:
            job.computed = start + n
            if job.ended or job.computed < job.known:
                continue
            job.known += 1
            self.rules.tenant_counter[job.request.tenant] += 2
            step.sampled.append(job)
            if job is self.prefilling:
                self.prefilling = None
            if job.known >= job.foreseen:
                self.ending.append(job)
                if job in self.residents:
                    self.residents.remove(job)
            elif job not in self.residents:
                job.state = "resident"
                self.residents.append(job)
        self.count_memory(step)

    def complete(self, step: Step, end: int) -> None:
        self.rules.now = end
        if not step.advanced:
            self.advance(step)
        duration = end - max(step.planned_at, self.last_end)
        self.spans.append((end - duration, end))
        self.last_end = end
        self.features.append(step.features)
        self.steps.append((step.features.kind, {job.id: (start, n) for job, start, n in step.pieces}))
        count_step(self.counters, step.features)
        self.count_time(step, duration)
        for job, start, n in step.pieces:
            if job.ended:
                self.counters.wasted_rows += 1
                self.give_back(job, "finished")
                continue
            job.service += duration
            job.last_served = end
            if self.config.prefix_cache:
                self.memory.enter(job.number, self.hashes(job), start, start + n)
            if job in step.sampled:
                self.emit(job, end)
        self.open_empty_batch()

    def emit(self, job: Job, end: int) -> None:
        if job.token_times:
            gap = end - job.token_times[-1]
            self.gaps[gap] += 1
            self.counters.longest_gap_ns = max(self.counters.longest_gap_ns, gap)
            self.check_starvation(job, gap)
        job.token_times.append(end)
        if job.known >= job.limit:
            self.finish(job, end)

    def finish(self, job: Job, end: int) -> None:
        for queue in (self.residents, self.ending):
            if job in queue:
                queue.remove(job)
        job.state, job.finish = "finished", end
        self.counters.finished += 1
        self.finished_lengths.append(job.output_tokens)
        self.rules.oracle.finished(job)
        wasted = self.ahead is not None and any(job is member for member, _, _ in self.ahead.pieces)
        if not wasted:
            self.give_back(job, "finished")

    # -- what is counted

    def check_starvation(self, job: Job, gap: int) -> None:
        if gap > self.starvation and not job.starved:
            job.starved = True
            self.counters.over_threshold += 1

    def count_memory(self, step: Step) -> None:
        c, memory = self.counters, self.memory
        step.held = sum(job.computed for job in self.jobs if job.holds_memory) - memory.shared
        step.reserved = memory.reserved
        c.kv_peak_tokens = max(c.kv_peak_tokens, step.held)
        c.kv_held_sum += step.held
        c.kv_reserved_sum += step.reserved
        c.kv_free_sum += memory.total * memory.size - step.reserved
        c.kv_unusable_sum += step.unusable
        c.kv_allocations = sum(memory.taken.values())
        c.kv_reused = memory.taken["finished"]
        c.kv_reused_after_preemption = memory.taken["evicted"]

    def count_time(self, step: Step, duration: int) -> None:
        c, memory = self.counters, self.memory
        c.kv_held_token_ns += step.held * duration
        c.kv_reserved_token_ns += step.reserved * duration
        c.kv_free_token_ns += (memory.total * memory.size - step.reserved) * duration
        c.kv_unusable_token_ns += step.unusable * duration

    # -- what is compared

    def hexdigest(self) -> str:
        """The digest of all plans."""
        return hexdigest(self.steps)
