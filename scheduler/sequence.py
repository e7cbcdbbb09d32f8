"""How far a request has got."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from scheduler.request import Request

if TYPE_CHECKING:
    from scheduler.cohorts import Cohort

State = Literal["waiting", "prefilling", "resident", "finished", "rejected", "aborted"]
UNSET = -1


class Sequence:
    """A request on its way: known tokens (prompt and output so far) and computed ones (their KV is held).

    While a sequence is in a :class:`~scheduler.cohorts.Cohort` its length is the cohort's step counter plus a constant,
    so that a decode step of a whole cohort advances one integer instead of every member.

    Times are integer nanoseconds, :data:`UNSET` until known. ``number`` is the order of submission.
    """

    __slots__ = (
        "_computed",
        "_known",
        "admitted_known",
        "arrival_ns",
        "cohort",
        "finish_ns",
        "first_scheduled_ns",
        "first_token_ns",
        "hash64",
        "join",
        "last_served_ns",
        "limit",
        "max_tokens",
        "number",
        "offset",
        "over_threshold",
        "pool_blocks",
        "preemptions",
        "prompt_tokens",
        "reason",
        "recomputed_tokens",
        "request",
        "state",
    )

    def __init__(self, request: Request, number: int, hash64: int, context_tokens: int) -> None:
        self.request = request
        self.number = number
        self.hash64 = hash64
        self.prompt_tokens = request.prompt_tokens
        self.arrival_ns = request.arrival_ns
        #: the declared most output tokens, within the model's context
        self.max_tokens = min(request.max_tokens, context_tokens - request.prompt_tokens)
        #: known tokens at which the sequence ends at the latest
        self.limit = request.prompt_tokens + min(self.max_tokens, request.planned_output_tokens)
        self.state: State = "waiting"
        self.reason = ""
        self._known = request.prompt_tokens
        self._computed = 0
        self.cohort: Cohort | None = None
        self.offset = 0
        self.join = 0
        #: known tokens when it was last admitted: how much it has been served since then
        self.admitted_known = request.prompt_tokens
        self.pool_blocks = 0
        self.first_scheduled_ns = UNSET
        self.first_token_ns = UNSET
        self.last_served_ns = UNSET
        self.finish_ns = UNSET
        self.preemptions = 0
        self.recomputed_tokens = 0
        self.over_threshold = False

    @property
    def id(self) -> str:
        return self.request.id

    @property
    def known(self) -> int:
        """Prompt tokens plus output tokens so far."""
        cohort = self.cohort
        return self._known if cohort is None else self.offset + cohort.tick

    @property
    def computed(self) -> int:
        """Tokens whose KV is held."""
        cohort = self.cohort
        return self._computed if cohort is None else self.offset + cohort.tick - 1

    @property
    def output_tokens(self) -> int:
        """Output tokens so far."""
        return self.known - self.prompt_tokens

    @property
    def ended(self) -> bool:
        return self.state in ("finished", "rejected", "aborted")

    def place(self, known: int, computed: int) -> None:
        """Set the lengths of a sequence that is in no cohort."""
        self._known = known
        self._computed = computed

    def __repr__(self) -> str:
        return f"Sequence({self.id}, {self.state}, {self.computed}/{self.known} of at most {self.limit})"
