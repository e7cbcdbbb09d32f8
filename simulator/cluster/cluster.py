"""Replicas behind a router in simulated time: arrivals, starts and ends of replicas, faults, transfers of KV.

Fast-forward and step by step give the same. So nothing here depends on when a stretch happens to be taken apart: what
replicas report is acted on once all steps that end at a time have ended (:data:`SETTLED`), the lower number first,
and what is handed in then is seen by the plan after the steps that begin at that time.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import pairwise
from random import Random

import simpy
from simpy.events import EventPriority

from scheduler.config import SchedulerConfig
from scheduler.counters import RunCounters
from scheduler.observer import Observer
from scheduler.plan import StepOutcome, StepPlan
from scheduler.request import Request
from scheduler.scheduler import Scheduler
from scheduler.sequence import Sequence as SchedulerSequence
from scheduler.sequence import State
from simulator.cluster.autoscaler import Autoscaler, Observed
from simulator.cluster.faults import Fault, ReplicaConditions
from simulator.cluster.instance import Instance, final_start
from simulator.cluster.journey import Journey
from simulator.cluster.listener import Listener, Silent
from simulator.cluster.plan import ClusterPlan
from simulator.cluster.routers import Router, build_router
from simulator.cluster.transfer import TransferCounts
from simulator.replica import ANY, LATE, Process, Replica

#: after the ends of the steps of all replicas
SETTLED = EventPriority(LATE + (1 << 40))

#: why a request ends that no replica is left for
NO_REPLICA = "no replica is left, and none returns"


class Settled(simpy.Event):
    """Happens now, after the steps of all replicas that end now."""

    def __init__(self, env: simpy.Environment, act: Callable[[simpy.Event], None]) -> None:
        super().__init__(env)
        self._ok = True
        self._value = None
        self.callbacks.append(act)
        env.schedule(self, SETTLED)


@dataclass(eq=False)
class Pool:
    """Replicas that do the same, and who waits for one of them."""

    numbers: range
    router: Router
    queue: deque[Journey] = field(default_factory=deque)


@dataclass
class Usage:
    """What one replica did in a run. ``held_ns``: from the decision to start it until it was stopped or lost."""

    requests: int = 0
    finished: int = 0
    lost: int = 0
    starts: int = 0
    held_ns: int = 0


def new_scheduler(config: SchedulerConfig, observer: Observer) -> Scheduler:
    """What makes the replicas' schedulers by default."""
    return Scheduler(config, observer)


class Cluster:
    """Replicas, and the router in front of them. ``env``'s time is in integer nanoseconds."""

    def __init__(
        self,
        env: simpy.Environment,
        plan: ClusterPlan,
        listener: Listener | None = None,
        *,
        max_repeat: int = ANY,
        make_scheduler: Callable[[SchedulerConfig, Observer], Scheduler] = new_scheduler,
        is_good: Callable[[Journey], bool] = lambda journey: True,
    ) -> None:
        self._env = env
        self._plan = plan
        self._listener = listener or Silent()
        self._max_repeat = max_repeat
        self._make_scheduler = make_scheduler
        self._is_good = is_good
        rng = Random(f"router {plan.seed}")
        splits = (0, plan.prefill, plan.replicas) if plan.prefill else (0, plan.replicas)
        self._pools = [Pool(range(*ends), build_router(plan.router, rng)) for ends in pairwise(splits)]
        self._links = [simpy.Resource(env) for _ in range(plan.prefill)]
        #: running replicas, by number
        self._running: dict[int, Instance] = {}
        #: numbers that are starting, or return after a fault, each with a mark that is void once it is called off
        self._coming: dict[int, object] = {}
        self._gone: set[int] = set()
        self._held_since_ns: dict[int, int] = {}
        self._unended = 0
        self._arriving = True
        self._over = False
        self._prototypes = [Scheduler(config) for config in plan.configs]
        #: whether what one replica refuses another may serve
        self._differ = any(config != plan.configs[0] for config in plan.configs)
        #: when steps that end at a time had last been acted on
        self._settled_ns = -1
        self._settling = False
        self._handed_over: list[tuple[Journey, Instance]] = []
        self._ended_since = [0, 0]
        self.done = env.event()
        # what a run comes to
        self.journeys: dict[str, Journey] = {}
        self.instances: list[Instance] = []
        self.usage = [Usage() for _ in range(plan.replicas)]
        self.transfers = TransferCounts()
        self.end_ns = 0
        #: (time, replicas that take requests, those that start or return) at each change
        self.sizes: list[tuple[int, int, int]] = []
        initial = plan.replicas if plan.scaling is None else plan.scaling.initial
        for number in range(initial):
            self._hold(number)
            self._start(number)
        if plan.scaling is not None:
            env.process(self._scale(Autoscaler(plan.scaling)))
        if plan.faults:
            env.process(self._fail(plan.faults))

    # -- what a world asks

    @property
    def now_ns(self) -> int:
        return int(self._env.now)

    def submit(self, request: Request) -> None:
        """Take in a request now. Raises ``ValueError`` for an id that was used before."""
        if request.id in self.journeys:
            raise ValueError(f"request id {request.id!r} was used before")
        journey = Journey(request, len(self.journeys))
        self.journeys[request.id] = journey
        self._unended += 1
        refusal = self._refusal(journey)
        if refusal is not None:
            self._end(journey, "rejected", refusal, journey.finish_ns)
        else:
            self._dispatch(journey, self._pools[0])

    def abort(self, request_id: str) -> None:
        """End a request early; unknown and ended ones are ignored."""
        journey = self.journeys.get(request_id)
        if journey is None or journey.ended:
            return
        for pool in self._pools:
            if journey in pool.queue:
                pool.queue.remove(journey)
                self._end(journey, "aborted", "aborted", self.now_ns)
                return
        instance = self._running.get(journey.replica)
        if instance is None or journey.id not in instance.journeys or journey.id in instance.in_transit:
            # on its way, it ends as it arrives
            journey.cancelled = True
        else:
            instance.abort(request_id)

    def no_more_arrivals(self) -> None:
        """The last request was handed in: the cluster is done when all have ended."""
        self._arriving = False
        self._finish_if_done()

    @property
    def counters(self) -> RunCounters:
        """Of all replicas together; requests are counted once, wherever they were."""
        total = RunCounters()
        for instance in self.instances:
            total.add(instance.scheduler.counters)
        states: list[str] = [journey.state for journey in self.journeys.values()]
        total.submitted = len(states)
        total.finished, total.rejected, total.aborted = map(states.count, ("finished", "rejected", "aborted"))
        total.recomputed_tokens += sum(journey.lost_tokens for journey in self.journeys.values())
        total.over_threshold = sum(journey.over_threshold for journey in self.journeys.values())
        return total

    # -- routing

    @property
    def _late(self) -> bool:
        return self._settled_ns == self.now_ns

    def _pool_of(self, number: int) -> Pool:
        return next(pool for pool in self._pools if number in pool.numbers)

    def _stages(self, journey: Journey) -> list[tuple[Pool, Request]]:
        """What is asked of a replica of each pool."""
        if len(self._pools) == 1:
            return [(self._pools[0], journey.next_request())]
        return [(self._pools[0], journey.next_request(prefill_only=True)), (self._pools[1], journey.request)]

    def _refusal(self, journey: Journey) -> str | None:
        """Why no replica, whether it runs or not, can serve the request; ``None`` if one of each pool can."""
        for pool, request in self._stages(journey):
            for number in pool.numbers if self._differ else pool.numbers[:1]:
                refusal = self._refusal_of(number, request)
                if refusal is None:
                    break
            else:
                return refusal
        return None

    def _refusal_of(self, number: int, request: Request) -> str | None:
        instance = self._running.get(number)
        scheduler = self._prototypes[number] if instance is None else instance.scheduler
        return scheduler.refusal(request)

    def _dispatch(self, journey: Journey, pool: Pool) -> None:
        """Send ``journey`` to a replica of ``pool``, after those that wait for one."""
        if (not pool.queue or self._differ) and self._send(journey, pool):
            return
        pool.queue.append(journey)
        self._give_up_hopeless(pool)

    def _send(self, journey: Journey, pool: Pool) -> bool:
        """Send ``journey`` to the replica that the router picks now, if there is one."""
        request = journey.next_request(prefill_only=self._prefills(pool))
        running = [self._running[number] for number in pool.numbers if number in self._running]
        views = [instance for instance in running if not instance.draining]
        if self._differ:
            views = [instance for instance in views if instance.scheduler.refusal(request) is None]
        chosen = pool.router.pick(request, views) if views else None
        if chosen is None:
            return False
        instance = self._running[chosen.number]
        instance.expect(journey, request)
        self.usage[instance.number].requests += 1
        if journey.brings_kv:
            instance.in_transit.add(journey.id)
            self._env.process(self._transfer(journey, instance))
        else:
            instance.submit(request)
        return True

    def _prefills(self, pool: Pool) -> bool:
        return len(self._pools) > 1 and pool is self._pools[0]

    def _flush(self) -> None:
        """Send whom a replica can now be found for, in the order in which they wait."""
        for pool in self._pools:
            if self._differ:
                # who waits for one replica is not in the way of who may go to another
                pool.queue = deque([journey for journey in pool.queue if not self._send(journey, pool)])
            while pool.queue and self._send(pool.queue[0], pool):
                pool.queue.popleft()

    def _give_up_hopeless(self, pool: Pool) -> None:
        """End those who wait for a replica that never comes."""
        numbers = [number for number in pool.numbers if self._may_serve(number)]
        if numbers and not self._differ:
            return
        prefills = self._prefills(pool)
        for journey in list(pool.queue):
            request = journey.next_request(prefills)
            if all(self._refusal_of(number, request) is not None for number in numbers):
                pool.queue.remove(journey)
                self._end(journey, "aborted", NO_REPLICA, self.now_ns)

    def _may_serve(self, number: int) -> bool:
        """Whether the replica takes requests, or may at a later time."""
        instance = self._running.get(number)
        scaled = self._plan.scaling is not None and number not in self._gone
        return number in self._coming or scaled or (instance is not None and not instance.draining)

    # -- what replicas tell

    def _stepped(self, instance: Instance, plan: StepPlan, steps: int, outcome: StepOutcome) -> None:
        self._listener.stepped(instance.number, instance.index, plan, steps, outcome)

    def _ended_at(self, instance: Instance, sequence: SchedulerSequence) -> None:
        """A request has ended at a replica: for good, or its prompt is done."""
        journey = instance.journeys[sequence.id]
        instance.forget(journey)
        going_on = sequence.state == "finished" and self._goes_on(instance, journey, sequence)
        journey.absorb(sequence, final_start(sequence, brings_kv=going_on))
        if going_on:
            self.transfers.begins_to_wait(journey)
            self._handed_over.append((journey, instance))
        else:
            self.usage[instance.number].finished += sequence.state == "finished"
            self._end(journey, sequence.state, sequence.reason, sequence.finish_ns)
        self._settle_later()

    def _goes_on(self, instance: Instance, journey: Journey, sequence: SchedulerSequence) -> bool:
        if not self._prefills(self._pool_of(instance.number)):
            return False
        context = instance.scheduler.config.context_tokens
        request = journey.request
        return sequence.output_tokens < min(request.planned_output_tokens, context - request.prompt_tokens)

    def _settle_later(self) -> None:
        if not self._settling:
            self._settling = True
            Settled(self._env, self._settle)

    def _settle(self, _: simpy.Event) -> None:
        """All steps that end now have ended: act on what they brought."""
        self._settling = False
        self._settled_ns = self.now_ns
        if self._over:
            return
        handed_over, self._handed_over = self._handed_over, []
        for journey, instance in handed_over:
            journey.source = instance
            journey.done_ns = self.now_ns
            self._dispatch(journey, self._pools[1])
        self._flush()
        for instance in [i for i in self._running.values() if i.draining and not i.outstanding]:
            self._stop(instance)

    def _end(self, journey: Journey, state: State, reason: str, now_ns: int) -> None:
        journey.end(state, reason, now_ns)
        self.transfers.leaves(journey)
        self._unended -= 1
        if state != "rejected":
            self._ended_since[0] += 1
            self._ended_since[1] += state == "finished" and self._is_good(journey)
        self._listener.ended(journey)
        self._finish_if_done()

    def _finish_if_done(self) -> None:
        if not self._arriving and not self._unended and not self.done.triggered:
            self.done.succeed()

    # -- replicas come and go

    def _hold(self, number: int) -> None:
        self._held_since_ns[number] = self.now_ns

    def _give_back(self, number: int) -> None:
        self.usage[number].held_ns += self.now_ns - self._held_since_ns.pop(number)

    def _resized(self) -> None:
        up = sum(not instance.draining for instance in self._running.values())
        size = (self.now_ns, up, len(self._coming))
        if self.sizes and self.sizes[-1][0] == size[0]:
            self.sizes.pop()
        if not self.sizes or self.sizes[-1][1:] != size[1:]:
            self.sizes.append(size)

    def _start(self, number: int) -> None:
        """The replica takes requests from now on."""
        plan = self._plan
        instance = Instance(
            number, len(self.instances), self.now_ns, self._stepped, self._listener.gaps, self._ended_at,
            lambda: self._late,
        )  # fmt: skip
        faults = [fault for fault in plan.faults if fault.replica == number]
        conditions = ReplicaConditions(faults, self.now_ns) if faults else None
        scheduler = self._make_scheduler(plan.configs[number], instance)
        replica = Replica(self._env, scheduler, plan.costs[number], self._max_repeat, number, conditions)
        instance.start(scheduler, replica)
        self.instances.append(instance)
        self._running[number] = instance
        self.usage[number].starts += 1
        self._resized()
        self._flush()

    def _start_in(self, number: int, delay_ns: int) -> None:
        """The replica is to take requests that much later, unless that is called off."""
        mark = self._coming[number] = object()
        self._env.process(self._start_after(number, delay_ns, mark))

    def _start_after(self, number: int, delay_ns: int, mark: object) -> Process:
        yield self._env.timeout(delay_ns)
        if self._coming.get(number) is mark and not self._over:
            del self._coming[number]
            if number not in self._held_since_ns:
                self._hold(number)
            self._start(number)

    def _stop(self, instance: Instance) -> None:
        """A drained replica is given back."""
        instance.replica.stop()
        instance.alive = False
        self._leave(instance)
        self._give_back(instance.number)

    def _leave(self, instance: Instance) -> None:
        del self._running[instance.number]
        self._resized()

    def _fail(self, faults: Iterable[Fault]) -> Process:
        """The process of faults: replicas die at their times, with all they hold."""
        for fault in faults:
            if fault.kind != "die":
                continue
            if fault.at_ns > self.now_ns:
                yield self._env.timeout(fault.at_ns - self.now_ns)
            if self._over:
                return
            self._die(fault)

    def _die(self, fault: Fault) -> None:
        number = fault.replica
        instance = self._running.get(number)
        if instance is not None and instance.up_ns == self.now_ns:
            return
        called_off = self._coming.pop(number, None)
        if fault.for_s is None:
            self._gone.add(number)
        if number in self._held_since_ns:
            self._give_back(number)
        elif called_off is None:
            return
        lost: list[Journey] = []
        if instance is not None:
            lost, aborted = instance.lose()
            self._leave(instance)
            for journey in aborted:
                self._end(journey, "aborted", "aborted", self.now_ns)
        returns = fault.for_s is not None and not (instance is not None and instance.draining)
        if returns:
            self._start_in(number, fault.until_ns - fault.at_ns)
        self._resized()
        for journey in [journey for journey in lost if not journey.ended]:
            self._retry(journey, number)
        for pool in self._pools:
            self._give_up_hopeless(pool)

    def _retry(self, journey: Journey, number: int) -> None:
        """A replica was lost under ``journey``: it goes on elsewhere, its KV to be computed again."""
        journey.retries += 1
        journey.brings_kv = False
        self.usage[number].lost += 1
        if journey.cancelled:
            self._end(journey, "aborted", "aborted", self.now_ns)
        else:
            self._dispatch(journey, self._pools[0])

    # -- prefill apart from decode

    def _transfer(self, journey: Journey, instance: Instance) -> Process:
        """The process that brings a prompt's KV to the replica that goes on with it."""
        link, counts, source = self._plan.link, self.transfers, journey.source
        if link is None or source is None:
            raise RuntimeError(f"request {journey.id} has KV to bring, but no way")
        with self._links[source.number].request() as turn:
            yield turn
            tokens = journey.kv_tokens
            started_ns = self.now_ns
            if instance.alive and source.alive and not journey.cancelled:
                yield self._env.timeout(link.transfer_ns(tokens))
                counts.sent(tokens, started_ns - journey.done_ns, self.now_ns - started_ns)
        if instance.alive and source.alive and not journey.cancelled:
            counts.leaves(journey)
            instance.submit(journey.next_request())
            return
        instance.forget(journey)
        if journey.cancelled:
            self._end(journey, "aborted", "aborted", self.now_ns)
        elif source.alive:
            # it is sent again, to another
            counts.lost += 1
            journey.done_ns = self.now_ns
            self._dispatch(journey, self._pools[1])
        else:
            counts.lost += 1
            counts.leaves(journey)
            journey.recomputed_tokens += tokens
            journey.lost_tokens += tokens
            self._retry(journey, source.number)
        self._settle_later()

    # -- the autoscaler

    def _scale(self, autoscaler: Autoscaler) -> Process:
        """The process of the autoscaler: it looks, decides, starts and drains replicas."""
        while True:
            yield self._env.timeout(autoscaler.settings.interval_ns)
            if self._over:
                return
            up = [instance for instance in self._running.values() if not instance.draining]
            observed = Observed(
                now_ns=self.now_ns,
                replicas=len(up) + len(self._coming),
                ongoing=self._unended,
                queued=sum(len(pool.queue) for pool in self._pools)
                + sum(instance.waiting for instance in self._running.values()),
                ended=self._ended_since[0],
                good=self._ended_since[1],
            )
            self._ended_since = [0, 0]
            more = autoscaler.decide(observed) - observed.replicas
            if more > 0:
                self._add(more, autoscaler.settings.cold_start_ns)
            elif more < 0:
                self._take_away(-more)

    def _add(self, count: int, cold_start_ns: int) -> None:
        taken = self._running.keys() | self._coming.keys() | self._gone
        for number in [number for number in range(self._plan.replicas) if number not in taken][:count]:
            self._hold(number)
            self._start_in(number, cold_start_ns)
        self._resized()

    def _take_away(self, count: int) -> None:
        """Those that have not started first, then those with fewest requests, of equals the higher number."""
        for number in sorted(self._coming, reverse=True)[:count]:
            count -= 1
            del self._coming[number]
            if number in self._held_since_ns:
                self._give_back(number)
        up = [instance for instance in self._running.values() if not instance.draining]
        for instance in sorted(up, key=lambda instance: (instance.outstanding, -instance.number))[:count]:
            instance.draining = True
            if not instance.outstanding:
                self._stop(instance)
        self._resized()

    def close(self) -> None:
        """All requests have ended: replicas are held up to now, and nothing happens any more but what runs."""
        self._over = True
        self.end_ns = self.now_ns
        for number in list(self._held_since_ns):
            self._give_back(number)

    def busy_ns(self, number: int) -> int:
        """How long the replica was in steps."""
        return sum(instance.busy_ns for instance in self.instances if instance.number == number)
