"""The scheduler's semantics written down a second time, slowly: lists that are rebuilt at each step, and plain loops.

It shares no data structure with the scheduler: no heap, no cohort, no stretch, no closed form. What it does share are
the definitions (the policies, the padding formulas, the counters' names), or there would be nothing to compare.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from scheduler.config import SchedulerConfig
from scheduler.counters import RunCounters
from scheduler.plan import StepColumns, StepFeatures
from scheduler.request import Request
from simulator.costs import CostModel

WIDTHS = {"sjf": 1, "sjf-aging": 1, "sjf-bucket": 32}


@dataclass(eq=False)
class Job:
    """A request on its way."""

    request: Request
    number: int
    most: int
    limit: int
    known: int
    computed: int = 0
    admitted_known: int = 0
    booked: int = 0
    state: str = "waiting"
    first_scheduled: int = -1
    finish: int = -1
    token_times: list[int] = field(default_factory=list)
    preemptions: int = 0
    recomputed: int = 0
    starved: bool = False

    @property
    def predicted(self) -> int:
        output = self.request.output_tokens
        return self.request.max_tokens if output is None else min(output, self.request.max_tokens)


Piece = tuple[Job, int, int]


class Blocks:
    """Paged memory: a stack of free blocks, each with the tag of how it was freed; the untouched ones are below."""

    def __init__(self, tokens: int, size: int) -> None:
        self.size = size
        self.free: list[str | None] = [None] * (tokens // size)
        self.total = len(self.free)
        self.taken: Counter[str | None] = Counter()

    def need(self, tokens: int) -> int:
        return (tokens + self.size - 1) // self.size

    def fits(self, tokens: int) -> bool:
        return self.need(tokens) <= len(self.free)

    def book(self, job: Job, tokens: int) -> None:
        job.booked = 0
        for _ in range(self.need(tokens)):
            self.grow(job)

    def grow(self, job: Job) -> None:
        self.taken[self.free.pop()] += 1
        job.booked += 1

    def give_back(self, job: Job, tag: str) -> None:
        self.free += [tag] * job.booked
        job.booked = 0

    @property
    def reserved(self) -> int:
        return (self.total - len(self.free)) * self.size

    def unusable(self, tokens: int) -> int:
        return 0


class Slots:
    """Contiguous memory: one owner a token."""

    size = 1

    def __init__(self, tokens: int) -> None:
        self.owner: list[Job | None] = [None] * tokens
        self.left: list[str | None] = [None] * tokens
        self.total = tokens
        self.taken: Counter[str | None] = Counter()

    @property
    def free(self) -> list[int]:
        return [slot for slot, job in enumerate(self.owner) if job is None]

    def need(self, tokens: int) -> int:
        return tokens

    def pieces(self) -> list[range]:
        found: list[range] = []
        for slot in self.free:
            if found and found[-1].stop == slot:
                found[-1] = range(found[-1].start, slot + 1)
            else:
                found.append(range(slot, slot + 1))
        return found

    def fits(self, tokens: int) -> bool:
        return any(len(piece) >= tokens for piece in self.pieces())

    def book(self, job: Job, tokens: int) -> None:
        piece = next(piece for piece in self.pieces() if len(piece) >= tokens)[:tokens]
        self.taken[self.left[piece.start] if all(self.left[slot] for slot in piece) else None] += 1
        for slot in piece:
            self.owner[slot] = job
        job.booked = tokens

    def give_back(self, job: Job, tag: str) -> None:
        self.left = [tag if owner is job else left for owner, left in zip(self.owner, self.left, strict=True)]
        self.owner = [None if owner is job else owner for owner in self.owner]
        job.booked = 0

    @property
    def reserved(self) -> int:
        return sum(job is not None for job in self.owner)

    def unusable(self, tokens: int) -> int:
        pieces = [len(piece) for piece in self.pieces()]
        return sum(length for length in pieces if length < tokens) if sum(pieces) >= tokens else 0


class Reference:
    """Runs requests and aborts, one step at a time, until all have ended."""

    def __init__(
        self, config: SchedulerConfig, costs: CostModel, requests: Iterable[Request], aborts: Iterable[tuple[int, str]]
    ) -> None:
        self.config = config
        self.costs = costs
        self.requests = list(requests)
        self.aborts = list(aborts)
        self.counters = RunCounters()
        self.jobs: list[Job] = []
        self.waiting: list[Job] = []
        self.residents: list[Job] = []
        self.prefilling: Job | None = None
        self.closed_rows = 0
        self.gaps: Counter[int] = Counter()
        self.features: list[StepFeatures] = []
        self.steps: list[tuple[str, dict[str, tuple[int, int]]]] = []
        paged = (config.kv_pool or ("paged" if config.layout == "paged" else "contiguous")) == "paged"
        self.grows_blocks = paged and config.policy != "static"
        self.memory: Blocks | Slots = (
            Blocks(config.kv_tokens, config.block_tokens) if paged else Slots(config.kv_tokens)
        )
        self.width = config.bucket or WIDTHS.get(config.policy)
        self.min_rows = config.min_rows or 0
        self.max_rows = config.max_rows or config.max_running
        self.starvation = round(config.starvation_s * 1e9)
        self.aging: int | None = None
        if config.policy == "sjf-aging":
            self.aging = round((60 if config.aging_s is None else config.aging_s) * 1e9)
        self.quantum = 32 if config.quantum is None else config.quantum

    # -- time

    def run(self) -> Reference:
        now = 0
        while True:
            self.deliver(now)
            pieces = self.next_pieces(now)
            if pieces:
                kind = "decode" if all(job in self.residents for job, _, _ in pieces) else "prefill"
                features = self.measure(kind, pieces)
                end = now + int(self.costs.device_ns(self.columns(features)))
                self.finish_step(pieces, features, end)
                now = end
                continue
            later = [r.arrival_ns for r in self.requests] + [time for time, _ in self.aborts]
            if self.waiting and not self.residents:
                later.append(min(job.request.arrival_ns for job in self.waiting) + self.max_wait)
            if not later:
                return self
            now = min(later)

    @property
    def max_wait(self) -> int:
        return round((self.config.max_wait_s or 0) * 1e9)

    def deliver(self, now: int) -> None:
        while self.requests and self.requests[0].arrival_ns <= now:
            self.submit(self.requests.pop(0))
        while self.aborts and self.aborts[0][0] <= now:
            _, name = self.aborts.pop(0)
            for job in [*self.waiting, *self.residents, *([self.prefilling] if self.prefilling else [])]:
                if job.request.id == name:
                    self.abort(job, now)

    def submit(self, request: Request) -> None:
        context, memory = self.config.context_tokens, self.memory
        most = min(request.max_tokens, context - request.prompt_tokens)
        planned = (
            request.max_tokens if request.output_tokens is None else min(request.output_tokens, request.max_tokens)
        )
        job = Job(request, len(self.jobs), most, request.prompt_tokens + min(most, planned), request.prompt_tokens)
        self.jobs.append(job)
        self.counters.submitted += 1
        wanted = request.prompt_tokens + (1 if request.output_tokens is None else planned)
        held = job.limit if self.grows_blocks else request.prompt_tokens + most
        if wanted > context or held > memory.total * memory.size:
            job.state = "rejected"
            self.counters.rejected += 1
        else:
            self.waiting.append(job)

    def abort(self, job: Job, now: int) -> None:
        for queue in (self.waiting, self.residents):
            if job in queue:
                queue.remove(job)
        if job is self.prefilling:
            self.prefilling = None
        self.memory.give_back(job, "finished")
        job.state, job.finish = "aborted", now
        self.counters.aborted += 1
        if not self.residents and self.prefilling is None:
            self.closed_rows = 0

    # -- who goes

    def next_pieces(self, now: int) -> list[Piece]:
        if self.prefilling is None and self.waiting and not self.closed_rows and not self.batch_is_short(now):
            admitted = self.admit(now)
            if len(admitted) == 1 and admitted[0].known > self.config.max_prefill_tokens:
                self.prefilling = admitted[0]
            elif admitted:
                return [(job, 0, job.known) for job in admitted]
        if self.prefilling is not None:
            job = self.prefilling
            return [(job, job.computed, min(self.config.max_prefill_tokens, job.known - job.computed))]
        return self.decode_pieces(now)

    def batch_is_short(self, now: int) -> bool:
        if self.config.policy != "static" or self.residents:
            return False
        oldest = min(job.request.arrival_ns for job in self.waiting)
        return len(self.waiting) < (self.config.min_batch or 1) and now < oldest + self.max_wait

    def lane(self, job: Job) -> int:
        return (job.known - 1) // self.width if self.width else 0

    def remaining(self, job: Job) -> int:
        predicted = job.request.max_tokens if self.config.oracle == "none" else job.predicted
        return max(1, predicted - (job.known - job.request.prompt_tokens))

    def aged_leader(self, jobs: list[Job], now: int) -> Job | None:
        if self.aging is None:
            return None
        oldest = min(jobs, key=lambda job: job.number)
        return oldest if now - oldest.request.arrival_ns >= self.aging else None

    def prefill_queue(self, leader: Job | None) -> list[Job]:
        """The waiting jobs that may share a prefill step, in the order in which they are packed."""
        if self.config.policy == "srpt":
            return sorted(self.waiting, key=lambda job: (self.remaining(job), job.number))
        in_order = sorted(self.waiting, key=lambda job: (job is not leader, job.number))
        if self.width is None:
            return in_order
        groups: dict[int, list[Job]] = {}
        for job in in_order:
            groups.setdefault(self.lane(job), []).append(job)
        if leader is not None:
            return groups[self.lane(leader)]
        return min(groups.values(), key=lambda group: (-len(group), group[0].number))

    def admit(self, now: int) -> list[Job]:
        admitted: list[Job] = []
        evicted: list[Job] = []
        tokens = 0
        for job in self.prefill_queue(self.aged_leader(self.waiting, now)):
            if tokens >= self.config.max_prefill_tokens or len(admitted) == self.max_rows:
                break
            if admitted and tokens + job.known > self.config.max_prefill_tokens:
                break
            victims = self.make_room(job, len(admitted))
            if victims is None:
                break
            evicted += victims
            self.waiting.remove(job)
            self.memory.book(job, self.booking(job))
            job.state, job.admitted_known = "prefilling", job.known
            if job.first_scheduled < 0:
                job.first_scheduled = now
                wait = now - job.request.arrival_ns
                self.counters.longest_wait_ns = max(self.counters.longest_wait_ns, wait)
                self.check_starvation(job, wait)
            admitted.append(job)
            tokens += job.known
            if evicted and self.waiting and self.prefill_queue(None)[0] in evicted:
                # it is its turn again, and nobody passes it
                break
        return sorted(admitted, key=lambda job: job.number)

    def booking(self, job: Job) -> int:
        return job.known if self.grows_blocks else max(job.known, job.request.prompt_tokens + job.most)

    def make_room(self, job: Job, admitted: int) -> list[Job] | None:
        """Those evicted for ``job``, or ``None`` if there is no room for it."""
        slots = self.config.max_running - len(self.residents) - admitted
        tokens, memory = self.booking(job), self.memory
        fits = memory.fits(tokens)
        if slots > 0 and fits:
            return []
        if self.config.policy != "srpt" or (isinstance(memory, Slots) and not fits):
            return None
        weaker = [
            other
            for other in self.residents
            if self.remaining(other) > self.remaining(job) and other.known - other.admitted_known >= self.quantum
        ]
        weaker.sort(key=lambda other: (-self.remaining(other), -other.number))
        for count in range(1, len(weaker) + 1):
            victims = weaker[:count]
            if slots + count > 0 and len(memory.free) + sum(v.booked for v in victims) >= memory.need(tokens):
                for victim in victims:
                    self.evict(victim)
                return victims
        return None

    def evict(self, job: Job) -> None:
        self.residents.remove(job)
        self.memory.give_back(job, "evicted")
        self.counters.preemptions += 1
        self.counters.recomputed_tokens += job.computed
        job.preemptions += 1
        job.recomputed += job.computed
        job.computed = 0
        job.state = "waiting"
        self.waiting.append(job)

    def decode_pieces(self, now: int) -> list[Piece]:
        while self.residents:
            rows = self.select(now)
            growing = [job for job in rows if job.computed % self.memory.size == 0]
            if not self.grows_blocks or len(growing) <= len(self.memory.free):
                if self.config.policy == "static" and not self.closed_rows:
                    self.closed_rows = len(rows)
                return [(job, job.computed, 1) for job in sorted(rows, key=lambda job: job.number)]
            if self.config.policy == "srpt":
                self.evict(max(self.residents, key=lambda job: (self.remaining(job), job.number)))
            else:
                self.evict(max(self.residents, key=lambda job: job.number))
        return []

    def select(self, now: int) -> list[Job]:
        leader = self.aged_leader(self.residents, now)
        lanes: dict[int, list[Job]] = {}
        for job in self.residents:
            lanes.setdefault(self.lane(job), []).append(job)

        def lane_rank(item: tuple[int, list[Job]]) -> tuple[object, ...]:
            key, jobs = item
            oldest = min(job.number for job in jobs)
            pick = {"fullest": (-len(jobs), oldest), "oldest": (oldest, 0)}.get(
                self.config.bucket_order or "", (key, 0)
            )
            return (leader not in jobs, *pick)

        def rank(job: Job) -> tuple[object, ...]:
            first = {"sjf-bucket": job.known, "srpt": self.remaining(job)}.get(self.config.policy, 0)
            return (job is not leader, first, job.number)

        rows: list[Job] = []
        for _, jobs in sorted(lanes.items(), key=lane_rank):
            limit = self.max_rows if not rows else min(self.max_rows, self.min_rows)
            rows += sorted(jobs, key=rank)[: max(0, limit - len(rows))]
        return rows

    # -- what a step costs and does

    def measure(self, kind: str, pieces: list[Piece]) -> StepFeatures:
        rows = len(pieces)
        padded = self.config.layout == "padded"
        rows_computed = max(rows, self.closed_rows) if padded and kind == "decode" else rows
        tokens = [n for _, _, n in pieces]
        ends = [start + n for _, start, n in pieces]
        pairs = sum(position + 1 for _, start, n in pieces for position in range(start, start + n))
        blocks = sum(self.memory.need(end) for end in ends) if isinstance(self.memory, Blocks) else rows
        return StepFeatures(
            layout=self.config.layout,
            kind="decode" if kind == "decode" else "prefill",
            rows=rows,
            rows_computed=rows_computed,
            new_tokens=sum(tokens),
            new_tokens_computed=rows_computed * max(tokens) if padded else sum(tokens),
            context_tokens=pairs,
            kv_columns_computed=rows_computed * max(tokens) * max(ends) if padded else pairs,
            kv_tokens_read=sum(ends),
            longest_context=max(ends),
            blocks_touched=blocks,
            sampled_rows=sum(start + n == job.known for job, start, n in pieces),
        )

    def columns(self, f: StepFeatures) -> StepColumns:
        return StepColumns(f.layout, f.kind, 1, f.rows, f.rows_computed, f.new_tokens, f.new_tokens_computed,
                           f.context_tokens, f.kv_columns_computed, f.kv_tokens_read, f.longest_context,
                           f.sampled_rows)  # fmt: skip

    def finish_step(self, pieces: list[Piece], features: StepFeatures, end: int) -> None:
        self.steps.append((features.kind, {job.request.id: (start, n) for job, start, n in pieces}))
        self.features.append(features)
        self.count_step(features)
        for job, start, n in pieces:
            grows = self.grows_blocks and features.kind == "decode"
            if grows and isinstance(self.memory, Blocks) and start % self.memory.size == 0:
                self.memory.grow(job)
            job.computed = start + n
        self.count_memory([job for job, _, _ in pieces])
        for job, _, _ in pieces:
            if job.computed == job.known:
                self.emit(job, end)
        if not self.residents and self.prefilling is None:
            self.closed_rows = 0

    def emit(self, job: Job, end: int) -> None:
        if job is self.prefilling:
            self.prefilling = None
        if job.token_times:
            gap = end - job.token_times[-1]
            self.gaps[gap] += 1
            self.counters.longest_gap_ns = max(self.counters.longest_gap_ns, gap)
            self.check_starvation(job, gap)
        job.token_times.append(end)
        job.known += 1
        if job.known == job.limit:
            self.memory.give_back(job, "finished")
            if job in self.residents:
                self.residents.remove(job)
            job.state, job.finish = "finished", end
            self.counters.finished += 1
        elif job not in self.residents:
            job.state = "resident"
            self.residents.append(job)

    def check_starvation(self, job: Job, gap: int) -> None:
        if gap > self.starvation and not job.starved:
            job.starved = True
            self.counters.over_threshold += 1

    def count_step(self, f: StepFeatures) -> None:
        c = self.counters
        if f.kind == "prefill":
            c.steps_prefill += 1
            c.linear_useful_prefill += f.new_tokens
            c.linear_computed_prefill += f.new_tokens_computed
            c.attention_useful_prefill += f.context_tokens
            c.attention_computed_prefill += f.kv_columns_computed
        else:
            c.steps_decode += 1
            c.linear_useful_decode += f.new_tokens
            c.linear_computed_decode += f.new_tokens_computed
            c.attention_useful_decode += f.context_tokens
            c.attention_computed_decode += f.kv_columns_computed
            c.decode_rows += f.rows
            c.decode_rows_computed += f.rows_computed

    def count_memory(self, stepped: list[Job]) -> None:
        c, memory = self.counters, self.memory
        held = sum(job.computed for job in {*self.residents, *stepped})
        reserved = memory.reserved
        c.kv_peak_tokens = max(c.kv_peak_tokens, held)
        c.kv_held_sum += held
        c.kv_reserved_sum += reserved
        c.kv_free_sum += memory.total * memory.size - reserved
        if self.waiting:
            c.kv_unusable_sum += memory.unusable(self.booking(self.prefill_queue(None)[0]))
        c.kv_allocations = sum(memory.taken.values())
        c.kv_reused = memory.taken["finished"]
        c.kv_reused_after_preemption = memory.taken["evicted"]

    # -- what is compared

    def hexdigest(self) -> str:
        """Maximal runs of equal decode steps, each hashed as the sums that SCHEDULER.md names."""
        runs: list[tuple[str, dict[str, tuple[int, int]], int]] = []
        for kind, members in self.steps:
            if runs and kind == "decode" == runs[-1][0]:
                _, first, count = runs[-1]
                if members == {name: (start + count, 1) for name, (start, _) in first.items()}:
                    runs[-1] = ("decode", first, count + 1)
                    continue
            runs.append((kind, members, 1))
        digest = hashlib.sha256()
        for kind, members, count in runs:
            hashed = [(_hash(name), start, n) for name, (start, n) in members.items()]
            sums = (
                sum(h for h, _, _ in hashed) % 2**64,
                sum(h * start for h, start, _ in hashed) % 2**64,
                sum(h * n for h, _, n in hashed) % 2**64,
            )
            digest.update(repr((kind, len(members), *sums, count)).encode())
        return digest.hexdigest()


def _hash(name: str) -> int:
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little")
