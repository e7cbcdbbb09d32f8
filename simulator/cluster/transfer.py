"""KV on its way from a prefill replica to a decode replica."""

from __future__ import annotations

from dataclasses import dataclass

from simulator.cluster.errors import ClusterError
from simulator.cluster.journey import Journey


@dataclass(frozen=True)
class Link:
    """The way out of a prefill replica: one transfer at a time, in the order in which prompts are done.

    ``token_bytes``: KV of a token. A transfer takes ``latency_s`` + bytes / ``bytes_per_s``.
    """

    token_bytes: int
    bytes_per_s: float
    latency_s: float = 0.0

    def __post_init__(self) -> None:
        if self.token_bytes < 1 or not self.bytes_per_s > 0 or self.latency_s < 0:
            raise ClusterError("a KV transfer needs bytes of a token >= 1, a bandwidth > 0 and a latency >= 0")

    def transfer_ns(self, tokens: int) -> int:
        """How long the KV of ``tokens`` tokens takes."""
        return round((self.latency_s + tokens * self.token_bytes / self.bytes_per_s) * 1e9)


@dataclass
class TransferCounts:
    """What went over the links.

    ``waited_ns``: between the end of a prompt and the start of its transfer. ``lost``: transfers of KV that came to
    nothing, since a replica at one of the ends had died. ``waiting_tokens``: tokens whose KV is done and has not
    arrived, which takes room beside the prefill replicas' KV memory; ``peak_tokens`` the most there were.
    """

    transfers: int = 0
    tokens: int = 0
    busy_ns: int = 0
    waited_ns: int = 0
    lost: int = 0
    waiting_tokens: int = 0
    peak_tokens: int = 0

    def begins_to_wait(self, journey: Journey) -> None:
        """A prompt is done, and its KV is to go."""
        journey.staged_tokens = journey.kv_tokens
        self.waiting_tokens += journey.staged_tokens
        self.peak_tokens = max(self.peak_tokens, self.waiting_tokens)

    def sent(self, tokens: int, waited_ns: int, took_ns: int) -> None:
        """KV went over a link."""
        self.transfers += 1
        self.tokens += tokens
        self.waited_ns += waited_ns
        self.busy_ns += took_ns

    def leaves(self, journey: Journey) -> None:
        """Its KV, if any was to go, has arrived or is of no use any more."""
        self.waiting_tokens -= journey.staged_tokens
        journey.staged_tokens = 0
