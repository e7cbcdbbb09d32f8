"""Which replica a request goes to. A router sees replicas through :class:`View`, and nothing else of them."""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from random import Random
from typing import NamedTuple, Protocol

from scheduler.errors import unknown_name
from scheduler.request import Request
from simulator.cluster.errors import ClusterError


class View(Protocol):
    """What a router may know of a replica. Tokens and requests are those of now."""

    @property
    def number(self) -> int: ...

    @property
    def outstanding(self) -> int:
        """Requests that were sent to it and have not ended."""

    @property
    def has_slot(self) -> bool:
        """Whether fewer are outstanding than it may run at a time."""

    @property
    def kv_tokens(self) -> int:
        """Tokens whose KV it holds, and those that wait for their KV."""

    @property
    def expected_tokens(self) -> int:
        """Prompt and expected output tokens of the outstanding requests."""

    def expected_output(self, request: Request) -> int:
        """Output tokens that its length oracle expects of ``request``."""

    def prefix_blocks(self, request: Request) -> int:
        """Blocks at the beginning of the prompt that were sent to it before, and that its memory may still hold."""


class SentPrefixes:
    """Blocks of prompts that a replica was sent, the last ones that fit into its memory: a router's own memory of it.

    It says what the prefix cache may hold, as the router of a cluster knows it, which cannot look into a replica.
    """

    def __init__(self, most_blocks: int) -> None:
        self._most_blocks = most_blocks
        self._blocks: OrderedDict[int, None] = OrderedDict()

    def add(self, request: Request) -> None:
        for block in request.block_hashes:
            self._blocks[block] = None
            self._blocks.move_to_end(block)
        while len(self._blocks) > self._most_blocks:
            self._blocks.popitem(last=False)

    def match(self, request: Request) -> int:
        """Blocks from the prompt's beginning on that are there."""
        for place, block in enumerate(request.block_hashes):
            if block not in self._blocks:
                return place
        return len(request.block_hashes)


class Router(Protocol):
    """Picks one of the replicas that take requests: at least one, in order of number."""

    def pick(self, request: Request, views: Sequence[View]) -> View | None:
        """Where ``request`` goes; ``None``: it waits at the router until a request ends."""


class AtRandom:
    """Any, with equal chances."""

    def __init__(self, rng: Random) -> None:
        self._rng = rng

    def pick(self, request: Request, views: Sequence[View]) -> View | None:
        return self._rng.choice(views)


class RoundRobin:
    """The next in turn."""

    def __init__(self, rng: Random) -> None:
        self._last = -1

    def pick(self, request: Request, views: Sequence[View]) -> View | None:
        chosen = next((view for view in views if view.number > self._last), views[0])
        self._last = chosen.number
        return chosen


class LeastBy:
    """The one with least of something; the lower number of equals."""

    def __init__(self, amount: Callable[[View], int]) -> None:
        self._amount = amount

    def pick(self, request: Request, views: Sequence[View]) -> View | None:
        return min(views, key=lambda view: (self._amount(view), view.number))


class PowerOfTwo:
    """Of two at random the one with fewer outstanding requests (Mitzenmacher, IEEE TPDS 12(10), 2001)."""

    def __init__(self, rng: Random) -> None:
        self._rng = rng

    def pick(self, request: Request, views: Sequence[View]) -> View | None:
        drawn = self._rng.sample(views, min(2, len(views)))
        return min(drawn, key=lambda view: view.outstanding)


class PrefixAffinity:
    """The one that has had most of the prompt's beginning, unless the load is out of balance.

    As SGLang's cache-aware router decides: least outstanding requests where the most and the least loaded are more than
    :data:`BALANCE_REQUESTS` apart and the one has more than :data:`BALANCE_RATIO` times what the other has, or where no
    replica had half of the prompt's blocks. Ties go to the fewer outstanding requests, then to the lower number.
    """

    BALANCE_REQUESTS = 32
    BALANCE_RATIO = 1.5
    LEAST_MATCH = 0.5

    def pick(self, request: Request, views: Sequence[View]) -> View | None:
        loads = [view.outstanding for view in views]
        most, least = max(loads), min(loads)
        unbalanced = most - least > self.BALANCE_REQUESTS and most > self.BALANCE_RATIO * least
        blocks = len(request.block_hashes)
        found = {view.number: 0 if unbalanced else view.prefix_blocks(request) for view in views}
        if not blocks or max(found.values()) < self.LEAST_MATCH * blocks:
            found = dict.fromkeys(found, 0)
        return min(views, key=lambda view: (-found[view.number], view.outstanding, view.number))


class LengthAware:
    """Requests of similar expected lengths to the same replica, each replica the same share of the tokens.

    Size-interval task assignment with equal load (Harchol-Balter, Crovella and Murta, "On choosing a task assignment
    policy for a distributed server system", JPDC 59(2), 1999). The intervals follow the last :data:`WINDOW` requests:
    a request goes by the share of all their tokens that those shorter than it have.
    """

    WINDOW = 1000

    def __init__(self) -> None:
        self._recent: deque[int] = deque()
        self._sorted: list[int] = []
        self._total = 0

    def pick(self, request: Request, views: Sequence[View]) -> View | None:
        length = request.prompt_tokens + views[0].expected_output(request)
        self._recent.append(length)
        insort(self._sorted, length)
        self._total += length
        if len(self._recent) > self.WINDOW:
            old = self._recent.popleft()
            del self._sorted[bisect_left(self._sorted, old)]
            self._total -= old
        # of equal lengths the middle one stands for all
        first, last = bisect_left(self._sorted, length), bisect_right(self._sorted, length)
        below = sum(self._sorted[:first]) + length * (last - first) / 2
        return views[min(len(views) - 1, int(len(views) * below / self._total))]


class CentralQueue:
    """First come, first served at the router: a request goes to a replica only once it can run there at once."""

    def pick(self, request: Request, views: Sequence[View]) -> View | None:
        free = [view for view in views if view.has_slot]
        return min(free, key=lambda view: (view.outstanding, view.number)) if free else None


class RouterEntry(NamedTuple):
    """A router by name. ``needs_prefix_cache``: it would have nothing to go by without."""

    summary: str
    build: Callable[[Random], Router]
    needs_prefix_cache: bool = False


#: by the names that the command line takes
ROUTERS: dict[str, RouterEntry] = {
    "round-robin": RouterEntry("the next in turn (default)", RoundRobin),
    "random": RouterEntry("any, with equal chances", AtRandom),
    "least-outstanding": RouterEntry(
        "fewest requests that have not ended", lambda rng: LeastBy(lambda view: view.outstanding)
    ),
    "power-of-two": RouterEntry("of two at random the one with fewer outstanding requests", PowerOfTwo),
    "shortest-kv": RouterEntry(
        "fewest KV tokens, held or waited for (join the shortest KV)", lambda rng: LeastBy(lambda view: view.kv_tokens)
    ),
    "least-work": RouterEntry(
        "fewest prompt and expected output tokens outstanding", lambda rng: LeastBy(lambda view: view.expected_tokens)
    ),
    "prefix-affinity": RouterEntry(
        "where most of the prompt's beginning was sent before, while loads are in balance",
        lambda rng: PrefixAffinity(),
        needs_prefix_cache=True,
    ),
    "length-aware": RouterEntry(
        "similar expected lengths together, equal shares of the tokens (SITA-E)", lambda rng: LengthAware()
    ),
    "central-queue": RouterEntry(
        "first come, first served at the router, to a replica with a free slot", lambda rng: CentralQueue()
    ),
}


def build_router(name: str, rng: Random) -> Router:
    """The router of that name, which draws from ``rng`` if from anything. Raises :class:`ClusterError`."""
    if name not in ROUTERS:
        raise ClusterError(unknown_name("router", name, ROUTERS))
    return ROUTERS[name].build(rng)
