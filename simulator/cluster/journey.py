"""A request's way through a cluster: what its client sees, over all the replicas that it was sent to."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from scheduler.request import HeadStart, Request
from scheduler.sequence import UNSET, Sequence, State

if TYPE_CHECKING:
    from simulator.cluster.instance import Instance


@dataclass(eq=False)
class Journey:
    """One request. ``replica`` is the last one that it was sent to; ``retries`` counts how often one was lost under it.

    Its output tokens are those that its client has: none is counted twice, and the first one's time never changes.
    Preemptions, recomputed tokens and the like are added up over all replicas.
    """

    request: Request
    number: int
    state: State = "waiting"
    reason: str = ""
    replica: int = -1
    retries: int = 0
    output_tokens: int = 0
    brings_kv: bool = False
    first_scheduled_ns: int = UNSET
    first_token_ns: int = UNSET
    last_token_ns: int = UNSET
    finish_ns: int = UNSET
    preemptions: int = 0
    recomputed_tokens: int = 0
    lost_tokens: int = 0
    swapped_out: int = 0
    swapped_in: int = 0
    prefix_hit_tokens: int = 0
    over_threshold: bool = False
    #: ended early by its client, where no replica can be told so yet
    cancelled: bool = False
    #: the prefill replica that its KV comes from, and since when it is done
    source: Instance | None = None
    done_ns: int = UNSET
    staged_tokens: int = 0

    @property
    def id(self) -> str:
        return self.request.id

    @property
    def arrival_ns(self) -> int:
        return self.request.arrival_ns

    @property
    def prompt_tokens(self) -> int:
        return self.request.prompt_tokens

    @property
    def ended(self) -> bool:
        return self.state in ("finished", "rejected", "aborted")

    @property
    def kv_tokens(self) -> int:
        """Tokens whose KV goes along: all but the newest."""
        return self.prompt_tokens + self.output_tokens - 1

    def absorb(self, sequence: Sequence, start: HeadStart) -> None:
        """Take over how far a replica has got with it."""
        self.output_tokens = start.output_tokens
        self.first_scheduled_ns = start.first_scheduled_ns
        self.first_token_ns = start.first_token_ns
        self.last_token_ns = start.last_token_ns
        self.brings_kv = start.brings_kv
        self.preemptions += sequence.preemptions
        self.recomputed_tokens += sequence.recomputed_tokens
        self.swapped_out += sequence.swapped_out
        self.swapped_in += sequence.swapped_in
        self.prefix_hit_tokens += sequence.prefix_hit_tokens
        self.over_threshold = self.over_threshold or sequence.over_threshold

    def next_request(self, prefill_only: bool = False) -> Request:
        """What the next replica is asked: to go on from here; ``prefill_only``: up to the next token."""
        start = None
        if self.output_tokens or self.first_scheduled_ns != UNSET:
            start = HeadStart(
                self.output_tokens, self.brings_kv, self.first_scheduled_ns, self.first_token_ns, self.last_token_ns
            )
        if prefill_only:
            next_token = self.output_tokens + 1
            return replace(
                self.request, head_start=start, max_tokens=next_token, output_tokens=next_token, stop_kind="length"
            )
        return self.request if start is None else replace(self.request, head_start=start)

    def end(self, state: State, reason: str, now_ns: int) -> None:
        """It has ended."""
        self.state, self.reason, self.finish_ns = state, reason, now_ns
