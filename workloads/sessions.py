"""Conversations: requests whose prompts repeat what was said before, behind a system prompt that tenants share."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import count

from workloads.lengths import LengthDistribution, Uniform
from workloads.random_source import RandomSource
from workloads.workload import PREFIX_BLOCK_TOKENS, Row


@dataclass(frozen=True, slots=True)
class Tenant:
    """Who asks: with this share of all sessions, each behind the same ``system_blocks`` blocks of system prompt."""

    name: str
    share: float
    system_blocks: int


@dataclass(frozen=True, slots=True)
class Sessions:
    """Conversations of several turns, ``open_sessions`` at a time.

    A turn's prompt is the system prompt, all messages and answers before it, and a new message. An arrival is the next
    turn of one of the open sessions, each as likely; a session that has had its ``turns``, or whose next turn might
    need more than ``longest`` tokens, gives its place to a new one. So the arrivals are the workload's, and a session's
    turns come ``open_sessions`` over the rate apart on average.
    """

    tenants: tuple[Tenant, ...]
    turns: Uniform
    open_sessions: int
    longest: int

    def rows(
        self, requests: int, message: LengthDistribution, answer: LengthDistribution, max_tokens: int, rng: RandomSource
    ) -> list[Row]:
        """``requests`` turns in order, all at time 0. Their ``prefix_ids`` are of 512 tokens each.

        A block of a session keeps its id while it fills, since what is in it already stays.
        """
        new_ids = count()
        system_ids = {tenant.name: [next(new_ids) for _ in range(tenant.system_blocks)] for tenant in self.tenants}
        places: list[_Session | None] = [None] * self.open_sessions
        rows = []
        for _ in range(requests):
            place = int(rng.random() * self.open_sessions)
            message_tokens, answer_tokens = message.draw(rng), answer.draw(rng)
            session = places[place]
            if session is None or session.tokens + message_tokens + max_tokens > self.longest:
                tenant = self._tenant(rng.random())
                prefix_ids = [*system_ids[tenant.name]]
                session = _Session(tenant.name, self.turns.draw(rng), len(prefix_ids) * PREFIX_BLOCK_TOKENS, prefix_ids)
            session.tokens += message_tokens
            while len(session.prefix_ids) * PREFIX_BLOCK_TOKENS < session.tokens:
                session.prefix_ids.append(next(new_ids))
            rows.append(
                Row(
                    0,
                    session.tokens,
                    answer_tokens,
                    max_tokens,
                    session.tenant,
                    prefix_ids=tuple(session.prefix_ids),
                )
            )
            session.tokens += answer_tokens
            session.turns_left -= 1
            places[place] = session if session.turns_left else None
        return rows

    def _tenant(self, draw: float) -> Tenant:
        for tenant in self.tenants:
            draw -= tenant.share
            if draw < 0:
                return tenant
        return self.tenants[-1]

    def __str__(self) -> str:
        return f"sessions of {self.turns.low}-{self.turns.high} turns from {len(self.tenants)} tenants"


@dataclass(slots=True)
class _Session:
    tenant: str
    turns_left: int
    tokens: int
    """system prompt, messages and answers so far"""
    prefix_ids: list[int]
