"""How far a request has got."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from scheduler.request import HeadStart, Request

if TYPE_CHECKING:
    from scheduler.cohorts import Cohort

State = Literal["waiting", "prefilling", "resident", "ending", "finished", "rejected", "aborted"]
UNSET = -1


class Served:
    """When a step ended in which sequences were served; :data:`UNSET` while it runs. One mark for all its members."""

    __slots__ = ("end_ns",)

    def __init__(self) -> None:
        self.end_ns = UNSET


class Sequence:
    """A request on its way: known tokens (prompt and output so far) and computed ones (their KV is held).

    While a sequence is in a :class:`~scheduler.cohorts.Cohort` its length is the cohort's step counter plus a constant,
    so that a decode step of a whole cohort advances one integer instead of every member.

    Times are integer nanoseconds, :data:`UNSET` until known. ``number`` is the order of submission.
    """

    __slots__ = (
        "_computed",
        "_known",
        "_service_ns",
        "admitted_known",
        "arrival_ns",
        "brings_kv",
        "cohort",
        "committed_tokens",
        "estimates",
        "finish_ns",
        "first_scheduled_ns",
        "first_token_ns",
        "foreseen",
        "hash64",
        "host_tokens",
        "idle_since_ns",
        "join",
        "limit",
        "max_tokens",
        "number",
        "offset",
        "over_threshold",
        "pool_blocks",
        "preemptions",
        "prefix_hit_tokens",
        "prompt_tokens",
        "reason",
        "recomputed_tokens",
        "request",
        "served",
        "state",
        "swapped_in",
        "swapped_out",
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
        #: known tokens at which a plan knows that it ends; more than ``limit`` where an end token comes before
        self.foreseen = self.limit if request.stop_kind == "length" else request.prompt_tokens + self.max_tokens
        #: predicted output tokens, and what is predicted once that is outlived, and so on; increasing
        self.estimates: tuple[int, ...] = (self.max_tokens,)
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
        #: tokens whose KV is in host memory
        self.host_tokens = 0
        #: tokens that its admission counts on
        self.committed_tokens = 0
        self._service_ns = 0
        #: end of the last prefill step that it was in, or its promotion if that was later
        self.idle_since_ns = UNSET
        self.first_scheduled_ns = UNSET
        self.first_token_ns = UNSET
        #: the step that gave it its last token
        self.served: Served | None = None
        self.finish_ns = UNSET
        self.preemptions = 0
        self.recomputed_tokens = 0
        #: how often its KV went to host memory and came back
        self.swapped_out = 0
        self.swapped_in = 0
        #: tokens that it did not have to compute, because the prefix cache held their KV
        self.prefix_hit_tokens = 0
        self.over_threshold = False
        #: its KV comes with it, and is not in the pool yet
        self.brings_kv = False
        if request.head_start is not None:
            self._resume(request.head_start)

    def _resume(self, start: HeadStart) -> None:
        """Go on from where the request has got elsewhere."""
        self._known += start.output_tokens
        self.admitted_known = self._known
        self.brings_kv = start.brings_kv
        if start.brings_kv:
            self._computed = self._known - 1
        self.first_scheduled_ns = start.first_scheduled_ns
        self.first_token_ns = start.first_token_ns
        if start.output_tokens:
            self.served = Served()
            self.served.end_ns = start.last_token_ns

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
    def predicted(self) -> int:
        """Predicted output tokens in all: the first estimate that it has not outlived."""
        output = self.known - self.prompt_tokens
        for estimate in self.estimates:
            if estimate > output:
                return estimate
        return max(self.estimates[-1], output + 1)

    @property
    def service_ns(self) -> int:
        """Time of the steps that it was in, as a timed order counts it."""
        cohort = self.cohort
        return self._service_ns if cohort is None else self._service_ns + cohort.clock_ns

    def set_service(self, service_ns: int) -> None:
        """Set :attr:`service_ns`."""
        self._service_ns = service_ns if self.cohort is None else service_ns - self.cohort.clock_ns

    @property
    def kv_elsewhere(self) -> bool:
        """Whether its KV is held outside the pool, so that it is brought in and not computed."""
        return self.host_tokens > 0 or self.brings_kv

    @property
    def ended(self) -> bool:
        return self.state in ("finished", "rejected", "aborted")

    def place(self, known: int, computed: int) -> None:
        """Set the lengths of a sequence that is in no cohort."""
        self._known = known
        self._computed = computed

    def __repr__(self) -> str:
        return f"Sequence({self.id}, {self.state}, {self.computed}/{self.known} of at most {self.limit})"
