"""Who goes first under each policy, for the slow reference: a table of keys, worked out anew whenever it is asked."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

from scheduler.buckets import parse_buckets
from scheduler.config import SchedulerConfig
from scheduler.oracle import build_oracle
from scheduler.plan import NEVER
from scheduler.request import Request

SECOND = 1_000_000_000
#: of the first level of ``mlfq``
QUANTUM_NS = 10_000_000


@dataclass(eq=False)
class Job:
    """A request on its way. ``foreseen`` is the number of known tokens at which the scheduler expects it to end."""

    request: Request
    number: int
    most: int
    limit: int
    foreseen: int
    known: int
    computed: int = 0
    admitted_known: int = 0
    state: str = "waiting"
    swapped: bool = False
    brought: bool = False
    holds_memory: bool = False
    commitment: int = 0
    estimates: tuple[int, ...] = ()
    service: int = 0
    last_served: int = 0
    first_scheduled: int = -1
    finish: int = -1
    token_times: list[int] = field(default_factory=list)
    preemptions: int = 0
    recomputed: int = 0
    starved: bool = False

    # what an oracle may ask of a sequence

    @property
    def id(self) -> str:
        return self.request.id

    @property
    def prompt_tokens(self) -> int:
        return self.request.prompt_tokens

    @property
    def max_tokens(self) -> int:
        return self.most

    @property
    def output_tokens(self) -> int:
        return self.known - self.request.prompt_tokens

    @property
    def ended(self) -> bool:
        return self.state in ("finished", "rejected", "aborted")

    # what was predicted

    @property
    def predicted(self) -> int:
        output = self.output_tokens
        return next((e for e in self.estimates if e > output), max(self.estimates[-1], output + 1))

    @property
    def left(self) -> int:
        return self.predicted - self.output_tokens


Key = Callable[[Job], Any]


@dataclass
class Order:
    """Lanes, ranked, and jobs ranked in them. Smaller goes first; keys and numbers break ties."""

    lane: Key = lambda job: 0
    lane_rank: Callable[[Any, list[Job]], Any] = lambda key, jobs: 0
    rank: Key = lambda job: 0
    exclusive: bool = False
    min_rows: int = 0

    def lanes(self, jobs: list[Job], leader: Job | None = None) -> list[list[Job]]:
        """The jobs by lane as they go; the leader's lane first, and in it the leader."""
        found: dict[Any, list[Job]] = {}
        for job in jobs:
            found.setdefault(self.lane(job), []).append(job)
        in_order = sorted(
            found.items(), key=lambda item: (leader not in item[1], self.lane_rank(item[0], item[1]), item[0])
        )
        return [
            sorted(members, key=lambda job: (job is not leader, self.rank(job), job.number)) for _, members in in_order
        ]


def by_key(key: Any, jobs: list[Job]) -> Any:
    return key


def oldest(jobs: list[Job]) -> int:
    return min(job.number for job in jobs)


class Rules:
    """What a policy says: its two orders, who may be evicted for whom, and its own account of service."""

    def __init__(self, config: SchedulerConfig, hit_tokens: Key) -> None:
        self.config = config
        self.policy = {"orca": "srpt"}.get(config.policy, config.policy)
        self.hit_tokens = hit_tokens
        self.now = 0
        self.n_waiting = 0
        self.oracle: Any = build_oracle(config)
        #: told of everybody who comes to wait or waits no longer
        self.buckets: list[Any] = []
        self.tenant_counter: dict[str, int] = {}
        batching = config.batching or ("run-to-completion" if self.policy in ("static", "multi-bin") else "iteration")
        #: decode steps of a closed batch; 0: batches are never closed
        self.batch_steps = {"iteration": 0, "run-to-completion": NEVER}.get(batching, -1)
        if self.batch_steps < 0:
            self.batch_steps = int(batching.partition(":")[2])
        self.runs_to_completion = self.batch_steps == NEVER
        self.full_bin = config.min_batch or config.max_running
        default_batch = config.max_running if self.policy == "multi-bin" else 1
        self.min_batch = (config.min_batch or default_batch) if self.runs_to_completion else 1
        default_wait = 1.0 if self.policy == "multi-bin" else 0.0
        self.max_wait = round((default_wait if config.max_wait_s is None else config.max_wait_s) * SECOND)
        self.weight = self._weight()
        self.aging = self._threshold()
        self.quantum = self._quantum()
        self.waiting, self.resident, self.urgency = self._orders()

    # -- parts

    def _weight(self) -> float | None:
        config = self.config
        if config.aging == "linear" or (config.aging is None and config.aging_weight is not None):
            return 10.0 if config.aging_weight is None else config.aging_weight
        return None

    def _threshold(self) -> int | None:
        config = self.config
        wanted = config.aging == "threshold" or config.aging_s is not None
        if config.aging is None and self.policy in ("sjf-aging", "sjf-predicted") and self.weight is None:
            wanted = True
        return round((60 if config.aging_s is None else config.aging_s) * SECOND) if wanted else None

    def _quantum(self) -> int:
        if self.config.quantum is not None:
            return self.config.quantum
        return {"srpt": 32, "trail": 32, "las": 128, "mlfq": 128, "edf": 128}.get(self.policy, 0)

    def aged(self, rank: Key) -> Key:
        """Linear ageing: a second of waiting weighs as much as ``weight`` units of rank."""
        weight = self.weight
        if weight is None:
            return rank
        return lambda job: rank(job) * SECOND + round(weight * job.request.arrival_ns)

    def aged_lane(self, rank: Key) -> Callable[[Any, list[Job]], Any]:
        """The rank of a lane is what its oldest member's is, in tokens."""
        aged = self.aged(rank)
        return lambda _, jobs: aged(min(jobs, key=lambda job: job.number))

    # -- orders

    def _orders(self) -> tuple[Order, Order, Key | None]:
        by_arrival = Order()
        policy = self.policy
        if policy in ("sjf", "sjf-aging", "sjf-bucket"):
            return self._by_length()
        if policy in ("srpt", "trail"):
            order = Order(rank=self.aged(lambda job: job.left))
            return order, order, lambda job: job.left
        if policy == "sjf-predicted":
            return Order(rank=self.aged(lambda job: job.predicted)), by_arrival, None
        if policy == "las":
            order = Order(
                lambda job: job.output_tokens // self.quantum,
                self.aged_lane(lambda job: job.output_tokens // self.quantum * self.quantum),
            )
            return order, order, order.lane
        if policy == "mlfq":
            order = Order(self.level, by_key)
            return order, order, self.level
        if policy == "hrrn":
            return Order(rank=lambda job: Fraction(job.request.arrival_ns - self.now, job.predicted)), by_arrival, None
        if policy == "multi-bin":
            order = Order(self.bin, lambda _, jobs: (len(jobs) < self.full_bin, oldest(jobs)), exclusive=True)
            return order, by_arrival, None
        if policy == "bucket-serve":
            buckets = parse_buckets("adaptive")
            self.buckets.append(buckets)
            lanes = Order(lambda job: buckets.key(job.known), lambda _, jobs: oldest(jobs), exclusive=True)
            return lanes, by_arrival, None
        if policy == "vtc":
            tenants = Order(lambda job: job.request.tenant, lambda tenant, _: self.tenant_counter[tenant])
            return tenants, by_arrival, None
        if policy == "lpm":
            return Order(rank=lambda job: -self.hit_tokens(job) if self.n_waiting <= 128 else 0), by_arrival, None
        if policy == "edf":
            order = Order(rank=deadline)
            return order, order, deadline
        return by_arrival, by_arrival, None

    def _by_length(self) -> tuple[Order, Order, None]:
        config = self.config
        buckets = parse_buckets((config.bucket or 32) if self.policy == "sjf-bucket" else 1)
        self.buckets.append(buckets)

        def lane(job: Job) -> int:
            return buckets.key(job.known)

        ranks: dict[str, Callable[[Any, list[Job]], Any]] = {
            "lowest": self.aged_lane(lambda job: buckets.last(job.known)),
            "fullest": lambda _, jobs: (-len(jobs), oldest(jobs)),
            "oldest": lambda _, jobs: oldest(jobs),
        }
        rank: Key = (lambda job: job.known) if self.policy == "sjf-bucket" else (lambda job: 0)
        waiting = Order(lane, ranks["fullest"], exclusive=True)
        resident = Order(lane, ranks[config.bucket_order or "lowest"], rank, True, config.min_rows or 0)
        return waiting, resident, None

    def bin(self, job: Job) -> int:
        table = sorted(self.config.length_quantiles or ())
        bins = self.config.bins or 4
        edges = [table[-(-j * len(table) // bins) - 1] for j in range(1, bins)]
        return sum(job.estimates[0] > edge for edge in edges)

    def level(self, job: Job) -> int:
        """Each level has its quantum of service, and what is left over counts on the next."""
        level, service = 0, job.service
        while service >= 2**level * QUANTUM_NS:
            service -= 2**level * QUANTUM_NS
            level += 1
        return level

    def evictable(self, job: Job) -> bool:
        """Whether a resident job may lose its place for its rank."""
        if self.policy == "trail" and not job.output_tokens < 0.8 * job.estimates[0]:
            return False
        return job.known - job.admitted_known >= self.quantum

    # -- what a policy keeps

    def submitted(self, job: Job, waiting: list[Job]) -> None:
        """``job`` has come, while ``waiting`` wait."""
        job.last_served = job.request.arrival_ns
        level = 0
        while 2**level * QUANTUM_NS < self.config.prefill_token_ns * job.prompt_tokens:
            job.service += 2**level * QUANTUM_NS
            level += 1
        counter, tenant = self.tenant_counter, job.request.tenant
        counter.setdefault(tenant, 0)
        active = {other.request.tenant for other in waiting}
        if active and tenant not in active:
            counter[tenant] = max(counter[tenant], min(counter[name] for name in active))

    def promote(self, jobs: list[Job], now: int) -> None:
        """Those that nobody has served for 3 s start anew."""
        for job in jobs:
            if now - job.last_served >= 3 * SECOND:
                job.service = 0


def deadline(job: Job) -> int:
    return NEVER if job.request.deadline_ns is None else job.request.deadline_ns
