"""The parts that go with any policy, by the names that their settings take."""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

from scheduler.errors import ConfigError, unknown_name

BATCHINGS = {
    "iteration": "the batch is chosen anew at each step (Orca)",
    "slice:K": "a batch is closed for K decode steps, then chosen anew",
    "run-to-completion": "a batch is closed until its last member ends (FasterTransformer)",
}
PHASES = {
    "prefill-first": "who can be admitted is prefilled before anybody is stepped",
    "decode-first": "nobody is prefilled while anybody can be stepped",
    "mixed": "prompts are computed in chunks beside the decoding rows, within a token budget (Sarathi-Serve)",
}
ADMISSIONS = {
    "now": "as soon as its known tokens fit; memory grows with the sequence (vLLM)",
    "reserve-max": "prompt and max_tokens are booked (Orca's Max)",
    "reserve-pow2": "prompt and the power of two above the output are booked (Orca's Pow2)",
    "reserve-oracle": "prompt and output are booked exactly (Orca's Oracle)",
    "peak-future": "if the memory at its fullest, with everybody's predicted length, will do (LightLLM)",
    "quantile:Q": "if prompts and the Q-quantile of recent output lengths fit for all (default Q 0.9)",
}
AGEINGS = {
    "none": "nobody is favoured for having waited",
    "linear": "the rank improves with the time since arrival, by aging_weight",
    "threshold": "who has been here for aging_s leads",
}
VICTIMS = {
    "newest": "the last that came is evicted first",
    "longest-remaining": "the one with the most predicted output left",
    "lowest-priority": "the one with the largest priority number",
}
PREEMPTIONS = {
    "recompute": "an evicted sequence's KV is dropped and computed again",
    "swap": "it is moved to host memory while there is room, and back",
}

#: setting -> its names, one line each
PARTS = {
    "batching": BATCHINGS,
    "phase": PHASES,
    "admission": ADMISSIONS,
    "aging": AGEINGS,
    "victim": VICTIMS,
    "preemption": PREEMPTIONS,
}

DEFAULT_QUANTILE = 0.9


class Batching(NamedTuple):
    """What the setting ``batching`` says; ``steps`` are a slice's decode steps, 0 for the others."""

    kind: Literal["iteration", "slice", "run-to-completion"]
    steps: int = 0


class Admission(NamedTuple):
    """What the setting ``admission`` says; ``share`` is the quantile's."""

    kind: Literal["now", "reserve-max", "reserve-pow2", "reserve-oracle", "peak-future", "quantile"]
    share: float = DEFAULT_QUANTILE


def parse_batching(text: str) -> Batching:
    """From the setting's text: ``iteration``, ``slice:K`` or ``run-to-completion``. Raises :class:`ConfigError`."""
    match text:
        case "iteration" | "run-to-completion":
            return Batching(text)
    kind, _, value = text.partition(":")
    if kind != "slice":
        raise ConfigError(unknown_name("batching", text, BATCHINGS))
    steps = int(value) if value.isdecimal() else 0
    if steps < 1:
        raise ConfigError(f"batching is {text}; must be slice:K with K >= 1 decode steps")
    return Batching("slice", steps)


def parse_admission(text: str) -> Admission:
    """From the setting's text, as :data:`ADMISSIONS` lists them; ``quantile`` alone is ``quantile:0.9``.

    Raises :class:`ConfigError`.
    """
    match text:
        case "now" | "reserve-max" | "reserve-pow2" | "reserve-oracle" | "peak-future" | "quantile":
            return Admission(text)
    kind, _, value = text.partition(":")
    if kind != "quantile":
        raise ConfigError(unknown_name("admission", text, ADMISSIONS))
    try:
        share = float(value)
    except ValueError:
        share = math.nan
    if not 0 < share < 1:
        raise ConfigError(f"admission is {text}; must be quantile:Q with Q between 0 and 1")
    return Admission("quantile", share)
