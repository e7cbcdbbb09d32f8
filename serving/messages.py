"""What a server's two processes say to each other: HTTP in front, the engine behind. Each message is one pickle."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

from engine.light_tokenizer import TokenizerParts
from engine.loop import TokenOutput
from scheduler.request import Request


@dataclass(frozen=True)
class EngineSettings:
    """What an engine is made of.

    ``model`` as :func:`~engine.models.load_model` takes it. ``emulate``: costs by which an emulated device takes its
    time instead (see :mod:`serving.emulation`); the text of such an engine is made of ``tokenizer``'s words.
    ``scheduler`` are fields of :class:`~scheduler.config.SchedulerConfig`.
    """

    model: str | None = None
    emulate: str | None = None
    tokenizer: str | None = None
    dtype: str | None = None
    device: str | None = None
    tp: int = 1
    gpu_memory_utilization: float = 0.9
    scheduler: dict[str, Any] = field(default_factory=dict)


# -- to the engine


class Submit(NamedTuple):
    """Requests that are handed in together. They arrive when the engine hears of them."""

    requests: list[Request]


class Cancel(NamedTuple):
    """Requests that are to end early. Unknown and ended ones are ignored."""

    request_ids: list[str]


class Ask(NamedTuple):
    """How is the engine? It answers with a :class:`Snapshot` of the same number before its next step."""

    number: int


class Leave(NamedTuple):
    """End now: what has not ended is aborted, and told so."""


# -- from the engine


@dataclass(frozen=True)
class EngineInfo:
    """What there is to be known of an engine that is ready.

    ``tokenizer`` is what it is made of, or the place to load it from if it is of a kind that cannot be handed over;
    ``None`` where prompts can be token ids only. ``config`` are the scheduler's settings in full, ``hardware`` names
    the device, ``memory`` says how it is shared out.
    """

    model: str
    tokenizer: TokenizerParts | str | None
    vocab: int
    context_tokens: int
    end_token_ids: frozenset[int]
    config: dict[str, Any]
    hardware: str
    emulated: str | None = None
    memory: dict[str, Any] = field(default_factory=dict)


class Outputs(NamedTuple):
    """The news of one step, or of several."""

    outputs: list[TokenOutput]


class Broken(NamedTuple):
    """The engine could not start, or cannot go on; the process ends now. One line for people."""

    reason: str


class Snapshot(NamedTuple):
    """How an engine is, between two steps. Times are nanoseconds since it was made.

    ``counters`` are :class:`~scheduler.counters.RunCounters`. ``lengths`` are the known tokens of the sequences that
    hold KV, ``waiting_lengths`` those of the requests that wait (the first :data:`MOST_LENGTHS` of each).
    """

    number: int
    now_ns: int
    steps: int
    running: int
    waiting: int
    kv_tokens: int
    """held"""
    kv_capacity_tokens: int
    oldest_wait_ns: int
    """age of the oldest request that waits to be admitted"""
    lengths: list[int]
    waiting_lengths: list[int]
    counters: dict[str, int]
    device_ns: int
    """the device's time over all steps"""
    busy_ns: int
    """time during which there was a step to run"""
    scheduler_ns: int
    """the scheduler's own time over all steps"""
    errors: int
    kv_allocated_tokens: int
    """in blocks that are given out; one that sequences share counts once"""
    step_sizes: list[int]
    """how many steps computed as many tokens as each of :data:`STEP_EDGES` says, and more than the last"""

    @property
    def kv_reserved_tokens(self) -> int:
        """Of the memory that is given out, what no token uses (yet): internal fragmentation."""
        return max(0, self.kv_allocated_tokens - self.kv_tokens)


#: steps are counted by the tokens that they compute: up to 1, above it up to 8, ...; as vLLM counts its iterations
STEP_EDGES = (1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)
#: lengths that a snapshot has of those that hold KV, and of those that wait
MOST_LENGTHS = 2048
