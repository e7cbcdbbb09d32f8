"""Workloads by name, made from a seeded generator; no file is needed.

``chat`` and ``code`` stand for the conversation and the code trace of Azure's LLM inference service of November 2023
(Patel et al., "Splitwise", ISCA 2024; CC-BY 4.0). Their lengths are :class:`~workloads.lengths.Quantiles`: the trace's
own nearest-rank quantiles at a few probabilities, uniform in between. The fitted parameters are the constants below.
How well they match, the trace's figure first and the distribution's after it:

==============  ===========  ===========  ===========  =================  ==============
lengths         min          median       p99          mean               largest CDF gap
==============  ===========  ===========  ===========  =================  ==============
chat, prompt    2 / 2        1020 / 1020  4142 / 4142  1154.7 / 1155.4    0.045
chat, output    7 / 7        129 / 129    601 / 601    211.1 / 211.6      0.026
code, prompt    3 / 3        1469 / 1469  7436 / 7436  2047.8 / 2068.2    0.018
code, output    6 / 6        13 / 13      252 / 252    27.9 / 29.3        0.039
==============  ===========  ===========  ===========  =================  ==============

Prompt and output length are drawn independently: the traces' rank correlations are 0.07 (chat) and -0.02 (code).

Arrivals. The conversation trace has 5.53 requests per second with a coefficient of variation of the gaps of 1.09, and
so has ``chat``. The code trace has 2.57 per second in bursts between long pauses, with a coefficient of 13.2 that a few
pauses make: without its 40 longest gaps (0.5%) it is 3.5. A gamma process with 13.2 would put most requests at the same
nanosecond, which the trace does not; ``code`` has its rate and 3.5.

``chat-sessions`` stands for conversations that come back: its prompts share their beginnings, which no Azure trace says
of its own. Four tenants have 1/2, 1/4, 1/8 and 1/8 of the sessions behind system prompts of 512, 1024, 512 and 2048
tokens; a session has 1-10 turns, of messages of 16-256 tokens and answers like ``chat``'s; 32 are open at a time, so
that a session's turns are 8 s apart on average. All of this is assumed, not measured; see :mod:`workloads.sessions`.
"""

from __future__ import annotations

from dataclasses import dataclass

from workloads.arrivals import Arrivals, plan_arrivals
from workloads.errors import WorkloadError, did_you_mean, shown
from workloads.lengths import LengthDistribution, Quantiles, Uniform
from workloads.random_source import RandomSource
from workloads.sessions import Sessions, Tenant
from workloads.workload import DEFAULT_MAX_TOKENS, DEFAULT_TEMPERATURE, Row, Workload

CHAT_PROMPT = Quantiles(
    (0, 0.01, 0.05, 0.1, 0.2, 0.3, 0.35, 0.4, 0.45, 0.5, 0.75, 0.8, 0.85, 0.9, 0.94, 0.95, 0.98, 0.99, 0.999, 1),
    (2, 29, 181, 207, 387, 403, 414, 703, 984, 1020, 1189, 1315, 1877, 2735, 4079, 4083, 4098, 4142, 6212, 14050),
)
CHAT_OUTPUT = Quantiles(
    (0, 0.01, 0.05, 0.1, 0.2, 0.4, 0.5, 0.6, 0.65, 0.7, 0.9, 0.95, 0.99, 0.999, 1),
    (7, 16, 41, 54, 77, 103, 129, 177, 217, 384, 424, 451, 601, 954, 1000),
)
CODE_PROMPT = Quantiles(
    (0, 0.01, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 0.96, 0.99, 1),
    (3, 17, 75, 147, 385, 770, 1075, 1469, 1909, 2433, 3193, 3923, 5194, 7315, 7431, 7436, 7437),
)
CODE_OUTPUT = Quantiles(
    (0, 0.08, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.999, 1),
    (6, 6, 7, 8, 9, 11, 13, 16, 20, 29, 55, 90, 172, 252, 361, 831, 1899),
)


@dataclass(frozen=True, slots=True)
class Preset:
    """How a named workload is made: requests each by itself, or ``sessions`` of turns, whose messages are ``prompt``.

    ``requests`` is how many by default and ``most_requests`` how many at most (``None``: any number). ``max_tokens`` is
    what every row declares. ``rate_per_s`` is the default rate, ``None`` for a preset that has none of its own.
    """

    name: str
    description: str
    prompt: LengthDistribution
    output: LengthDistribution
    max_tokens: int
    requests: int
    arrivals: Arrivals
    rate_per_s: float | None = None
    temperature: float = DEFAULT_TEMPERATURE
    max_running: int | None = None
    min_rows: int | None = None
    max_rows: int | None = None
    most_requests: int | None = None
    sessions: Sessions | None = None


_ALL = (
    # The seed's test: inputs 128-512, "mixed lengths", a dynamic batch of 4-16, temperature 0.7. It does not say how
    # long its outputs were. Uniform 64-512 is mixed (the longest is eight times the shortest), takes its upper end from
    # the inputs, and is near the 500 tokens that its examples ask for.
    Preset(
        "seed",
        "the seed's benchmark: inputs 128-512, outputs 64-512, both uniform, all at once, at most 16 running",
        Uniform(128, 512),
        Uniform(64, 512),
        max_tokens=512,
        requests=64,
        arrivals=Arrivals("all-at-once"),
        max_running=16,
        min_rows=4,
        max_rows=16,
    ),
    # Small enough for a laptop's CPU; half of the requests wait at first, or no policy would have anything to decide.
    Preset(
        "tour",
        "the first look: at most 16 requests, inputs 32-128, outputs 8-32, all at once, greedy, at most 8 running",
        Uniform(32, 128),
        Uniform(8, 32),
        max_tokens=32,
        requests=16,
        arrivals=Arrivals("all-at-once"),
        temperature=0.0,
        max_running=8,
        most_requests=16,
    ),
    Preset(
        "chat",
        "like Azure's conversation trace: inputs 2-14050 (median 1020), outputs 7-1000 (129), 5.53/s",
        CHAT_PROMPT,
        CHAT_OUTPUT,
        max_tokens=DEFAULT_MAX_TOKENS,
        requests=1000,
        arrivals=Arrivals("gamma", 1.09),
        rate_per_s=5.53,
    ),
    Preset(
        "code",
        "like Azure's code trace: inputs 3-7437 (median 1469), outputs 6-1899 (13), 2.57/s in bursts",
        CODE_PROMPT,
        CODE_OUTPUT,
        max_tokens=DEFAULT_MAX_TOKENS,
        requests=1000,
        arrivals=Arrivals("gamma", 3.5),
        rate_per_s=2.57,
    ),
    Preset(
        "chat-sessions",
        "conversations that come back: 1-10 turns behind the system prompts of 4 tenants, prompts to 7168, 4/s",
        Uniform(16, 256),
        CHAT_OUTPUT,
        max_tokens=1024,
        requests=1000,
        arrivals=Arrivals("poisson"),
        rate_per_s=4.0,
        sessions=Sessions(
            tenants=(Tenant("a", 0.5, 1), Tenant("b", 0.25, 2), Tenant("c", 0.125, 1), Tenant("d", 0.125, 4)),
            turns=Uniform(1, 10),
            open_sessions=32,
            longest=8192,
        ),
    ),
)

#: every preset by its name
PRESETS = {preset.name: preset for preset in _ALL}


def find_preset(name: str) -> Preset:
    """The preset of that name. Raises :class:`WorkloadError` with the nearest name and all names."""
    preset = PRESETS.get(name)
    if preset is None:
        raise WorkloadError(f"unknown preset {shown(name)}{did_you_mean(name, PRESETS)} presets: {', '.join(PRESETS)}")
    return preset


def build_preset(
    name: str,
    *,
    rng: RandomSource,
    requests: int | None = None,
    rate: float | None = None,
    arrivals: str | None = None,
    time_scale: float | None = None,
) -> Workload:
    """Make the preset ``name``; what is ``None`` is the preset's own.

    The lengths are drawn first and the arrivals after them, so that one seed gives the same requests under every
    arrival process and rate. Raises :class:`WorkloadError`.
    """
    preset = find_preset(name)
    count = _how_many(preset, requests)
    plan = plan_arrivals(
        arrivals,
        rate=rate,
        time_scale=time_scale,
        default=preset.arrivals,
        default_rate=preset.rate_per_s,
        recorded=False,
        what=f"preset {name}",
    )
    if preset.sessions is None:
        lengths = [(preset.prompt.draw(rng), preset.output.draw(rng)) for _ in range(count)]
        rows = [Row(0, prompt, output, preset.max_tokens) for prompt, output in lengths]
        made = f"inputs {preset.prompt}, outputs {preset.output}"
    else:
        rows = preset.sessions.rows(count, preset.prompt, preset.output, preset.max_tokens, rng)
        made = f"{preset.sessions}, messages {preset.prompt}, outputs {preset.output}"
    times = plan.times_ns(count, rng)
    return Workload(
        name=name,
        rows=tuple(row.arriving_at(time) for time, row in zip(times, rows, strict=True)),
        source=f"preset {name}: {count} requests, {made}, {plan}",
        temperature=preset.temperature,
        max_running=preset.max_running,
        min_rows=preset.min_rows,
        max_rows=preset.max_rows,
    )


def _how_many(preset: Preset, requests: int | None) -> int:
    count = preset.requests if requests is None else requests
    if count < 1:
        raise WorkloadError(f"{count} requests asked for; must be >= 1")
    if preset.most_requests is not None and count > preset.most_requests:
        raise WorkloadError(
            f"preset {preset.name} has at most {preset.most_requests} requests and {count} were asked for; "
            "take preset seed for more"
        )
    return count
