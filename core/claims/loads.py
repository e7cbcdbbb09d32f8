"""What the claims' runs play: mixed lengths as the seed describes them, at the size that the machine can carry.

The seed's test has inputs of 128 to 512 tokens, at most 16 running, temperature 0.7; of its outputs it says nothing.
Here they are 8 to 48 tokens, since same-length decoding makes about a token a step and its runs are to end. Where no
GPU is, every length is a quarter of that: inputs, outputs, buckets, blocks, prompt tokens of a step.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from workloads.arrivals import Arrivals, plan_arrivals
from workloads.lengths import Uniform
from workloads.workload import Row, Workload

INPUTS, OUTPUTS = (128, 512), (8, 48)
#: of the experiment on starvation: the long requests, and the short ones that keep coming
LONG, SHORT_INPUTS, SHORT_OUTPUTS = (512, 48), (32, 64), (4, 12)
#: short requests come for so many thresholds
THRESHOLDS = 4
#: tokens that prompts of the prefix cache's runs begin with together, in blocks of ``SHARED_BLOCK``
SHARED, SHARED_BLOCK = 128, 64


@dataclass(frozen=True)
class Scale:
    """The size of all runs. ``divisor`` of all lengths; ``threshold_s`` stands for the seed's 60 s; ``burst``: requests
    that are there at once."""

    name: str
    divisor: int
    threshold_s: float
    burst: int

    def tokens(self, unscaled: int) -> int:
        """A length at this size."""
        return max(1, unscaled // self.divisor)

    def uniform(self, bounds: tuple[int, int]) -> Uniform:
        """Lengths between ``bounds``, scaled."""
        return Uniform(self.tokens(bounds[0]), self.tokens(bounds[1]))

    def text(self) -> str:
        """What a reader must know of it."""
        lengths = "as the seed has them" if self.divisor == 1 else f"a {_ORDINALS[self.divisor]} of the seed's"
        return (
            f"{self.burst} requests at once, inputs {self.uniform(INPUTS)} tokens ({lengths}), outputs "
            f"{self.uniform(OUTPUTS)}, temperature 0.7; the seed's 60 s threshold scaled to {self.threshold_s:g} s"
        )


_ORDINALS = {2: "half", 4: "quarter", 8: "eighth"}
FULL = Scale("full", 1, 3.0, 32)
QUARTER = Scale("quarter", 4, 6.0, 20)
SCALES = {scale.name: scale for scale in (FULL, QUARTER)}

#: rows of a load: at this size, from this seed's numbers, at so many requests a second
Rows = Callable[[Scale, random.Random, float], list[Row]]


@dataclass(frozen=True)
class Load:
    """Requests. ``rate_of`` names the run whose requests per second, times ``share``, they arrive at; all at once
    without one."""

    name: str
    text: str
    rows: Rows
    rate_of: str | None = None
    share: float = 0.0

    def workload(self, scale: Scale, seed: int, rate_per_s: float | None) -> Workload:
        """The requests of a round; ``rate_per_s`` is where ``rate_of`` leads to."""
        rows = self.rows(scale, random.Random(seed), rate_per_s or 0.0)
        at = "" if rate_per_s is None else f", {rate_per_s:.4g} requests/s"
        return Workload(self.name, tuple(rows), f"{self.text}; lengths: {scale.name} size{at}",
                        prefix_block_tokens=scale.tokens(SHARED_BLOCK))  # fmt: skip


def mixed(
    count: int | None = None, *, declared: int = 1, take: int | None = None, shared: bool = False,
    inputs: tuple[int, int] = INPUTS, outputs: tuple[int, int] = OUTPUTS,
) -> Rows:  # fmt: skip
    """``count`` requests of mixed lengths, by default as many as the scale's burst, of which the first ``take`` are
    played.

    Each declares ``declared`` times the longest output. With ``shared`` all prompts begin with the same tokens.
    """

    def rows(scale: Scale, rng: random.Random, rate_per_s: float) -> list[Row]:
        prompt, output = scale.uniform(inputs), scale.uniform(outputs)
        requests = scale.burst if count is None else count
        lengths = [(prompt.draw(rng), output.draw(rng)) for _ in range(requests)]
        prefix = tuple(range(1, SHARED // SHARED_BLOCK + 1)) if shared else ()
        times = _arrivals(rng, rate_per_s, requests)
        drawn = [Row(time, *length, declared * output.high, prefix_ids=prefix)
                 for time, length in zip(times, lengths, strict=True)]  # fmt: skip
        return drawn[:take]

    return rows


def starving(scale: Scale, rng: random.Random, rate_per_s: float) -> list[Row]:
    """Two long requests, and short ones that keep coming for :data:`THRESHOLDS` thresholds."""
    prompt, output = scale.uniform(SHORT_INPUTS), scale.uniform(SHORT_OUTPUTS)
    count = max(8, round(rate_per_s * THRESHOLDS * scale.threshold_s))
    long = [Row(0, scale.tokens(LONG[0]), scale.tokens(LONG[1]), scale.tokens(LONG[1]), tenant="long")] * 2
    lengths = [(prompt.draw(rng), output.draw(rng)) for _ in range(count)]
    times = _arrivals(rng, rate_per_s, count)
    return long + [Row(time, *length, output.high, tenant="short") for time, length in zip(times, lengths, strict=True)]


def _arrivals(rng: random.Random, rate_per_s: float, count: int) -> list[int]:
    if not rate_per_s:
        return [0] * count
    plan = plan_arrivals("poisson", rate=rate_per_s, time_scale=None, default=Arrivals("poisson"), default_rate=None,
                         recorded=False, what="the claims' load")  # fmt: skip
    return plan.times_ns(count, rng)


BURST = Load("burst", "all requests at once", mixed())
FEW = Load("few", "the first 5 of those requests, at once", mixed(take=5))
SIXTEEN = Load("sixteen", "16 requests, all at once, so that nobody joins later", mixed(16))
OPEN = Load("open", "34 requests, Poisson at 0.7 of what fcfs on padded carries", mixed(34), "fcfs-padded", 0.7)
CALM = Load("calm", "12 requests, Poisson at 0.7 of what sjf-bucket on padded carries", mixed(12), "bucket-padded", 0.7)
STREAM = Load(
    "stream", "34 requests, Poisson at twice what fcfs on paged carries, so that a queue forms", mixed(34),
    "fcfs-paged", 2.0,
)  # fmt: skip
SHARED_STREAM = Load(
    "shared", "34 requests whose prompts begin with the same tokens, Poisson at 0.7 of what fcfs on paged carries",
    mixed(34, shared=True), "fcfs-paged", 0.7,
)  # fmt: skip
STARVING = Load(
    "starving", "2 long requests, and short ones that keep coming for four thresholds, more than sjf carries",
    starving, "sjf-paged", 4.5,
)  # fmt: skip
MEMORY = Load("memory", "40 requests, all at once, each declaring its longest output", mixed(40))
MEMORY_DECLARED = Load("memory-declared", "the same, declaring four times the longest output", mixed(40, declared=4))
CHURN = Load("churn", "96 requests with inputs of 32 to 128 tokens, all at once", mixed(96, inputs=(32, 128)))
#: for the profiler, which takes down every kernel
GLANCE = Load("glance", "4 requests, all at once", mixed(4))
SEED = Load("seed", "32 requests at once, inputs 128-512, outputs 64-512", mixed(32, outputs=(64, 512)))
