"""What is asked of the scheduler: a request, and how its tokens are to be sampled."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from typing import Literal, Protocol

from scheduler.prefix_hashes import block_hashes_of_prefix

StopKind = Literal["length", "eos"]
GrammarKind = Literal["json_schema", "json_object", "regex", "lark"]

DEFAULT_MAX_TOKENS = 2048
#: the most alternatives that log-probabilities are given of
MOST_LOGPROBS = 20


@dataclass(frozen=True, slots=True)
class Grammar:
    """What the output's text has to look like: ``source`` is a JSON schema, a regular expression or a Lark grammar.

    ``json_object`` is any JSON object, and has no source. Whether the source is right is found out where the model is
    known.
    """

    kind: GrammarKind
    source: str = ""

    def __post_init__(self) -> None:
        kinds = ("json_schema", "json_object", "regex", "lark")
        if self.kind not in kinds:
            raise ValueError(f"unknown grammar kind {self.kind!r} (valid: {', '.join(kinds)})")
        if self.kind == "json_object" and self.source:
            raise ValueError("a json_object grammar has no source; a schema is of the kind json_schema")
        if self.kind in ("json_schema", "lark") and not self.source.strip():
            raise ValueError(f"the source of a {self.kind} grammar is empty")


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How tokens are chosen. ``temperature`` 0 is greedy; the filters apply in the order top-k, top-p, min-p.

    The noise of a draw is keyed by (``seed``, position), so that tokens do not depend on the schedule.
    ``seed=None`` lets the engine derive one from the request's id. ``stop`` are strings that end the text (they are
    cut off), ``stop_token_ids`` tokens that end it (kept out of the text), ``ignore_eos`` keeps the model's own end
    token from ending it.

    Before the temperature, the model's logits are changed, in this order:

    - ``logit_bias``: (token id, what is added), -100 to 100; ids of the model's vocabulary, each once.
    - ``repetition_penalty``: logits of the tokens in prompt and output are divided by it, negative ones multiplied.
    - ``frequency_penalty`` and ``presence_penalty``, -2 to 2: of each token in the output, the first times its count
      and the second are subtracted.
    - ``min_tokens``: until the output has so many, end tokens and ``stop_token_ids`` are impossible, and no stop string
      ends it. A grammar comes first: text that is complete ends.
    - ``grammar``: tokens with which the text could not become what it asks for are impossible. The request ends, with
      the reason ``stop``, when nothing can follow.

    ``logprobs``: with each token its log-probability comes, and those of so many (0 to 20) most likely tokens; of the
    model's own distribution, before any of the above and whatever the temperature. ``None``: none of it.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    min_tokens: int = 0
    grammar: Grammar | None = None
    logprobs: int | None = None

    def __reduce__(self) -> tuple[type[SamplingParams], tuple[object, ...]]:
        """Ranks are sent it; where this module is compiled, only the constructor can set a frozen field."""
        return SamplingParams, tuple(getattr(self, each.name) for each in fields(self))

    @property
    def filters(self) -> bool:
        """Whether tokens are ruled out before one is drawn."""
        return self.temperature > 0 and (self.top_k > 0 or self.top_p < 1 or self.min_p > 0)

    @property
    def penalizes(self) -> bool:
        """Whether logits depend on the tokens so far."""
        return self.presence_penalty != 0 or self.frequency_penalty != 0 or self.repetition_penalty != 1

    @property
    def follows_output(self) -> bool:
        """Whether no token can be drawn before the one before it is known to the host."""
        return self.penalizes or self.grammar is not None

    @property
    def plain(self) -> bool:
        """Whether a token is drawn with the temperature alone, and nothing is told but the token."""
        changes = self.follows_output or bool(self.logit_bias) or self.min_tokens > 0
        return not (self.filters or changes or self.logprobs is not None)

    def __post_init__(self) -> None:
        if self.temperature < 0:
            raise ValueError(f"temperature is {self.temperature}; must be >= 0 (0 is greedy)")
        if self.top_k < 0:
            raise ValueError(f"top_k is {self.top_k}; must be >= 0 (0 keeps every token)")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p is {self.top_p}; must be in (0, 1]")
        if not 0 <= self.min_p <= 1:
            raise ValueError(f"min_p is {self.min_p}; must be in [0, 1]")
        if any(not text for text in self.stop):
            raise ValueError("a stop string is empty; give at least one character")
        for name, penalty in (("presence", self.presence_penalty), ("frequency", self.frequency_penalty)):
            if not -2 <= penalty <= 2:
                raise ValueError(f"{name}_penalty is {penalty}; must be in [-2, 2]")
        if not 0 < self.repetition_penalty < math.inf:
            raise ValueError(f"repetition_penalty is {self.repetition_penalty}; must be > 0 (1 changes nothing)")
        for token_id, bias in self.logit_bias:
            if not -100 <= bias <= 100:
                raise ValueError(f"logit_bias of token {token_id} is {bias}; must be in [-100, 100]")
        ids = [token_id for token_id, _ in self.logit_bias]
        if len(ids) != len(set(ids)):
            twice = next(token_id for token_id in ids if ids.count(token_id) > 1)
            raise ValueError(f"logit_bias has token {twice} twice")
        if self.min_tokens < 0:
            raise ValueError(f"min_tokens is {self.min_tokens}; must be >= 0")
        if self.logprobs is not None and not 0 <= self.logprobs <= MOST_LOGPROBS:
            raise ValueError(f"logprobs is {self.logprobs}; must be from 0 to {MOST_LOGPROBS}, or None")


@dataclass(frozen=True, slots=True)
class HeadStart:
    """How far a request has got elsewhere, before it is handed in here.

    It has ``output_tokens``, the last of which came at ``last_token_ns``. With ``brings_kv`` the KV of all its tokens
    but the newest comes with it, and is booked as it is admitted; else the prompt *and* those tokens are computed as
    one prompt, as after an eviction. Times are integer nanoseconds, -1 for what has not happened.
    """

    output_tokens: int = 0
    brings_kv: bool = False
    first_scheduled_ns: int = -1
    first_token_ns: int = -1
    last_token_ns: int = -1


@dataclass(frozen=True, slots=True)
class Request:
    """One request, as the world hands it to :meth:`Scheduler.submit`.

    ``prompt_tokens`` and ``max_tokens`` are what a policy may see. ``output_tokens`` is *hidden*: a benchmark's row
    says how long its answer will be, and the scheduler ends it there, but a policy learns of it only through a
    :class:`~scheduler.oracle.LengthOracle`. ``stop_kind`` says how that hidden end shows: ``length`` is foreseen,
    ``eos`` is found out when the token has been sampled. Times are integer nanoseconds since the start of the run.

    ``block_hashes`` identify the prompt's full KV blocks: each stands for its block *and* all before it, so that two
    requests share a prefix exactly as far as their hashes agree. ``deadline_ns``: when the first token is due.
    ``priority``: a smaller number is more important, as in vLLM. ``head_start``: what it has had elsewhere.
    """

    id: str
    arrival_ns: int
    prompt_tokens: int
    max_tokens: int = DEFAULT_MAX_TOKENS
    output_tokens: int | None = None
    stop_kind: StopKind = "length"
    tenant: str = ""
    priority: int = 0
    deadline_ns: int | None = None
    block_hashes: tuple[int, ...] = field(default=(), repr=False)
    prompt_token_ids: tuple[int, ...] | None = field(default=None, repr=False)
    sampling: SamplingParams = SamplingParams()
    head_start: HeadStart | None = None

    def __post_init__(self) -> None:
        if self.arrival_ns < 0:
            raise ValueError(f"request {self.id}: arrival is {self.arrival_ns} ns; must be >= 0")
        for name in ("prompt_tokens", "max_tokens", "output_tokens"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"request {self.id}: {name.replace('_', ' ')} is {value}; must be >= 1")
        if self.prompt_token_ids is not None and len(self.prompt_token_ids) != self.prompt_tokens:
            raise ValueError(
                f"request {self.id}: {len(self.prompt_token_ids)} prompt token ids but prompt_tokens is "
                f"{self.prompt_tokens}"
            )
        if self.sampling.min_tokens > self.max_tokens:
            raise ValueError(
                f"request {self.id}: min_tokens is {self.sampling.min_tokens}; must be <= max_tokens, which is "
                f"{self.max_tokens}"
            )
        if self.head_start is not None:
            had = self.head_start.output_tokens
            if not 0 <= had < self.planned_output_tokens:
                raise ValueError(
                    f"request {self.id}: it comes with {had} output tokens; must be >= 0 and < "
                    f"{self.planned_output_tokens}"
                )
            if self.head_start.brings_kv and not had:
                raise ValueError(f"request {self.id}: it brings KV, and so must have an output token")

    @property
    def planned_output_tokens(self) -> int:
        """Tokens after which the request ends at the latest, with the hidden length where there is one."""
        return self.max_tokens if self.output_tokens is None else min(self.max_tokens, self.output_tokens)


class WorkloadRow(Protocol):
    """What a workload says of a request."""

    @property
    def arrival_ns(self) -> int: ...

    @property
    def prompt_tokens(self) -> int: ...

    @property
    def output_tokens(self) -> int: ...

    @property
    def max_tokens(self) -> int: ...

    @property
    def tenant(self) -> str: ...

    @property
    def priority(self) -> int: ...

    @property
    def ttft_slo_ns(self) -> int | None: ...

    @property
    def prefix_ids(self) -> tuple[int, ...]: ...


def requests_of(
    rows: Iterable[WorkloadRow], block_tokens: int = 16, prefix_block_tokens: int = 512, prefix_cache: bool = True
) -> list[Request]:
    """The requests of a workload, each with its hidden output length; ids are ``r0``, ``r1``, ... in row order.

    Their block hashes are for a ``prefix_cache`` of ``block_tokens`` blocks: what the rows' ``prefix_ids`` (of
    ``prefix_block_tokens`` each) say that prompts share, and the rest of each prompt its own. Raises
    :class:`~scheduler.errors.ConfigError` where blocks of the one size cannot be told in blocks of the other.
    """
    requests = []
    for index, row in enumerate(rows):
        name = f"r{index}"
        hashes: tuple[int, ...] = ()
        if prefix_cache:
            hashes = block_hashes_of_prefix(row.prefix_ids, prefix_block_tokens, row.prompt_tokens, block_tokens, name)
        deadline_ns = None if row.ttft_slo_ns is None else row.arrival_ns + row.ttft_slo_ns
        requests.append(
            Request(
                name,
                row.arrival_ns,
                row.prompt_tokens,
                row.max_tokens,
                row.output_tokens,
                tenant=row.tenant,
                priority=row.priority,
                deadline_ns=deadline_ns,
                block_hashes=hashes,
            )
        )
    return requests
