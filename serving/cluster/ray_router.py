"""The routers of the simulator as a request router of Ray Serve, in the process that calls the replicas."""

from __future__ import annotations

from typing import Any

from ray.serve._private.common import ReplicaID
from ray.serve.request_router import PendingRequest, ReplicaResult, RequestRouter, RunningReplica

from serving.cluster.calls import HttpCall
from serving.cluster.routing import Routing


class LockstepRouter(RequestRouter):
    """Sends each :class:`~serving.cluster.calls.HttpCall` where a :class:`~serving.cluster.routing.Routing` says."""

    def initialize_state(self, **kwargs: Any) -> None:
        """``router``: its name."""
        self._routing = Routing(kwargs["router"])
        #: calls that have been given a replica and have not got there
        self._underway: dict[str, PendingRequest] = {}

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """The replica of the call first, then any other, should that one refuse it."""
        by_name = {_name(replica.replica_id): replica for replica in candidate_replicas}
        self._routing.settle({name: replica.replica_metadata for name, replica in by_name.items()})
        for name, replica in by_name.items():
            self._routing.report(name, replica.routing_stats)
        for call_id, underway in list(self._underway.items()):
            if underway.future.cancelled():
                self._landed(call_id)
                self._routing.ended(call_id)
        if pending_request is None or not by_name:
            return [candidate_replicas]
        call_id = pending_request.metadata.internal_request_id
        call = pending_request.args[0]
        assert isinstance(call, HttpCall)
        request = call.request(call_id)
        if request is None:
            chosen = self._routing.least_loaded(by_name)
        else:
            chosen = self._routing.pick(request, by_name)
            self._underway[call_id] = pending_request
        return [[by_name.pop(chosen)], list(by_name.values())]

    def on_request_routed(self, pending_request: PendingRequest, replica_id: ReplicaID, result: ReplicaResult) -> None:
        """It has been taken."""
        call_id = pending_request.metadata.internal_request_id
        self._landed(call_id)
        self._routing.moved(call_id, _name(replica_id))

    def on_request_completed(self, replica_id: ReplicaID, internal_request_id: str) -> None:
        """It has ended, in whatever way."""
        self._landed(internal_request_id)
        self._routing.ended(internal_request_id, _name(replica_id))

    def _landed(self, call_id: str) -> None:
        self._underway.pop(call_id, None)


def _name(replica_id: ReplicaID) -> str:
    return str(replica_id.unique_id)
