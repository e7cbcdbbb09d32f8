"""Which replica a call goes to, as the process in front of the replicas knows them: by what it has sent there.

The decision is the simulator's (:mod:`simulator.cluster.routers`); here is what it goes by.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from random import Random
from typing import Any

from scheduler.errors import unknown_name
from scheduler.request import Request
from serving.cluster.calls import BLOCK_TOKENS
from simulator.cluster.errors import ClusterError
from simulator.cluster.routers import ROUTERS, SentPrefixes, build_router

#: the simulator's routers that cannot be had here, and why
UNSERVED = {"central-queue": "Ray Serve keeps no order among calls that wait for a replica"}
ROUTER_NAMES = tuple(name for name in ROUTERS if name not in UNSERVED)


def check_router(name: str, prefix_cache: bool) -> None:
    """Raises :class:`ClusterError` for a router that is none, or that cannot be had here or with these settings."""
    if name in UNSERVED:
        raise ClusterError(f"router {name} is one of the simulator only: {UNSERVED[name]}")
    if name not in ROUTERS:
        raise ClusterError(unknown_name("router", name, ROUTER_NAMES))
    if ROUTERS[name].needs_prefix_cache and not prefix_cache:
        raise ClusterError(f"router {name} needs --prefix-cache: it would have nothing to go by")


class SeenReplica:
    """A replica as it is seen from outside. A :class:`~simulator.cluster.routers.View`.

    ``capacity``: ``max_running`` and ``kv_tokens`` of its engine.
    """

    def __init__(self, number: int, capacity: Mapping[str, int]) -> None:
        self.number = number
        self._max_running = capacity["max_running"]
        self._calls: dict[str, Request] = {}
        self._prefixes = SentPrefixes(capacity["kv_tokens"] // BLOCK_TOKENS)
        self._reported: Mapping[str, int] = {}
        self._sent_since = 0

    @property
    def outstanding(self) -> int:
        return len(self._calls)

    @property
    def has_slot(self) -> bool:
        return self.outstanding < self._max_running

    @property
    def kv_tokens(self) -> int:
        """As it last reported, and the prompts that were sent there since."""
        return self._reported.get("kv_tokens", 0) + self._sent_since

    @property
    def expected_tokens(self) -> int:
        return sum(call.prompt_tokens + call.max_tokens for call in self._calls.values())

    def expected_output(self, request: Request) -> int:
        """What it declares: nothing else is known here."""
        return request.max_tokens

    def prefix_blocks(self, request: Request) -> int:
        return self._prefixes.match(request)

    def send(self, request: Request) -> None:
        self._calls[request.id] = request
        self._prefixes.add(request)
        self._sent_since += request.prompt_tokens

    def forget(self, call: str) -> Request | None:
        """It has ended there, or never got there."""
        return self._calls.pop(call, None)

    def report(self, state: Mapping[str, int]) -> None:
        """What it says of itself: ``kv_tokens`` held or waited for. Anything new replaces what was reckoned here."""
        if state and state != self._reported:
            self._reported = state
            self._sent_since = 0


class Routing:
    """Calls and the replicas that they were sent to. Raises :class:`ClusterError` for a router that is none."""

    def __init__(self, router: str, seed: int = 0) -> None:
        self._router = build_router(router, Random(f"router {seed}"))
        self._replicas: dict[str, SeenReplica] = {}
        #: where each call was sent or is to be
        self._places: dict[str, str] = {}

    def settle(self, replicas: Mapping[str, Mapping[str, Any]]) -> None:
        """These take calls, by their names, each with its engine's capacity (see :class:`SeenReplica`).

        A new one has the lowest number that is free.
        """
        for name in [name for name in self._replicas if name not in replicas]:
            del self._replicas[name]
        for name in [name for name in replicas if name not in self._replicas]:
            taken = {replica.number for replica in self._replicas.values()}
            number = next(number for number in range(len(taken) + 1) if number not in taken)
            self._replicas[name] = SeenReplica(number, replicas[name])

    def report(self, name: str, state: Mapping[str, int]) -> None:
        """What the replica ``name`` says of itself."""
        self._replicas[name].report(state)

    def pick(self, request: Request, candidates: Iterable[str]) -> str:
        """Where ``request`` goes: where it was to go before, if it still can. From now on it counts as sent there."""
        views = sorted((self._replicas[name] for name in candidates), key=lambda replica: replica.number)
        names = {self._replicas[name].number: name for name in self._replicas}
        place = self._places.get(request.id)
        if place is not None and any(names[view.number] == place for view in views):
            return place
        chosen = self._router.pick(request, views)
        assert chosen is not None, "only a router that is not served here lets calls wait"
        self.sent(request, names[chosen.number])
        return self._places[request.id]

    def least_loaded(self, candidates: Iterable[str]) -> str:
        """For a call that asks for no tokens."""
        return min(candidates, key=lambda name: (self._replicas[name].outstanding, self._replicas[name].number))

    def sent(self, request: Request, name: str) -> None:
        """It is at the replica ``name``, or on its way there."""
        self.ended(request.id)
        self._places[request.id] = name
        if name in self._replicas:
            self._replicas[name].send(request)

    def moved(self, call: str, name: str) -> None:
        """It went to ``name``, wherever it was to go."""
        place = self._places.get(call)
        if place is None or place == name:
            return
        request = self._replicas[place].forget(call) if place in self._replicas else None
        if request is not None:
            self.sent(request, name)

    def ended(self, call: str, name: str | None = None) -> None:
        """It has ended (at ``name``, if it is still there). Unknown ones are ignored."""
        place = self._places.get(call)
        if place is None or name not in (None, place):
            return
        del self._places[call]
        if place in self._replicas:
            self._replicas[place].forget(call)
